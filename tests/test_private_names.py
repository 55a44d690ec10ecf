"""The private names of TensorFlow and Keras that looper uses: one test each fails if they change."""

import keras
import numpy as np
import pytest
import tensorflow as tf


def test_all_reduce_sum_gradients_is_what_apply_reduces_with():
    """looper/gradients.py overrides it on the instance, for gradients that are reduced already (Keras 3.15)."""
    optimizer = keras.optimizers.SGD(1.0)
    variable = keras.Variable([0.0])
    optimizer.build([variable])
    seen = []
    original = optimizer._all_reduce_sum_gradients
    optimizer._all_reduce_sum_gradients = lambda pairs: seen.append(len(pairs)) or original(pairs)
    optimizer.apply([tf.constant([1.0])], [variable])
    assert seen == [1]
    assert variable.numpy() == [-1.0]


@pytest.mark.parametrize("kind", [keras.optimizers.AdamW, keras.optimizers.Muon])
def test_decay_is_apart_from_update_step_and_reads_the_learning_rate(kind):
    """looper/groups.py scales both for some variables, and counts the steps of some from later on (Keras 3.15)."""
    optimizer = kind(0.5, weight_decay=0.5)
    variable = keras.Variable([[1.0]])
    optimizer.build([variable])
    optimizer._get_current_learning_rate = lambda: 0.25
    optimizer._apply_weight_decay([variable])
    assert variable.numpy() != 1.0
    assert float(optimizer.learning_rate) == 0.25
    assert optimizer.iterations is optimizer._iterations
    assert optimizer.variables[0] is optimizer._iterations
    before, steps = variable.numpy(), []
    optimizer.update_step = lambda gradient, variable, learning_rate: steps.append(float(learning_rate))
    optimizer.weight_decay = None
    optimizer.apply([tf.constant([[1.0]])], [variable])
    assert steps == [0.25]
    assert kind is keras.optimizers.Muon or variable.numpy() == before


def test_layers_hold_layers():
    """looper/layers.py walks through a model by this name (Keras 3.15)."""
    layer = keras.layers.Bidirectional(keras.layers.LSTM(2))
    assert layer._flatten_layers(include_self=False, recursive=False) == [layer.forward_layer, layer.backward_layer]


def test_layers_that_augment_data_live_in_one_package():
    """looper/freezing.py lets them go on (Keras 3.15)."""
    for layer in (keras.layers.RandomFlip(), keras.layers.RandAugment(), keras.layers.Rescaling(0.5)):
        assert type(layer).__module__.startswith("keras.src.layers.preprocessing.")


def test_keras_mask_is_where_losses_look_for_it():
    """looper/losses.py reads the mask of a model's outputs there (Keras 3.15)."""
    model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(4, 2, mask_zero=True)])
    outputs = model(np.array([[1, 2, 0]], "int32"))
    np.testing.assert_array_equal(outputs._keras_mask.numpy(), [[True, True, False]])


@pytest.mark.parametrize("layer", [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0)])
def test_seed_states_are_among_a_layers_variables(layer):
    """looper/state.py finds seeds by this name."""
    assert [v.name for v in layer.variables] == ["seed_generator_state"]


def test_what_datasets_are_made_of():
    """looper/data/exact.py walks through a dataset by these names (TensorFlow 2.21)."""
    numbers = tf.data.Dataset.range(4)
    shuffled = numbers.shuffle(4, seed=1, reshuffle_each_iteration=False)
    assert type(shuffled).__name__ == "_ShuffleDataset"
    assert (shuffled._reshuffle_each_iteration, int(shuffled._seed2)) == (False, 1)
    assert [type(part).__name__ for part in shuffled._inputs()] == ["_RangeDataset"]
    assert type(numbers.repeat()).__name__ == "_RepeatDataset"
    assert type(numbers.cache()).__name__ == "CacheDataset"
    assert type(tf.data.Dataset.random(1)).__name__ == "_RandomDataset"
    assert (int(tf.data.Dataset.random(7)._seed), int(tf.data.Dataset.random(7)._seed2)) != (0, 0)
    copied = numbers.apply(tf.data.experimental.copy_to_device("/cpu:0"))
    assert type(copied).__name__ == "_CopyToDeviceDataset"
    mapped = numbers.map(lambda x: x + 1, num_parallel_calls=2, deterministic=False)
    assert mapped._deterministic == "false"
    [function] = mapped._functions()
    assert "AddV2" in {node.op for node in function.function.graph.as_graph_def().node}


def test_initial_epoch_is_where_fit_begins():
    """looper/callbacks/keras_callback.py reads it: BackupAndRestore tells `fit` with it where to begin (Keras 3.15)."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert model._initial_epoch is None
    model._initial_epoch = 2
    assert model.fit(np.ones((2, 1)), np.ones((2, 1)), epochs=3, verbose=0).epoch == [2]


def test_metrics_know_their_direction():
    """looper/callbacks/keras_callback.py reads it, as Keras' monitoring callbacks with mode="auto" do (Keras 3.15)."""
    assert keras.metrics.SparseCategoricalAccuracy()._direction == "up"
    assert keras.metrics.MeanSquaredError()._direction == "down"
