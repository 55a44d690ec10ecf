"""The private names of TensorFlow and Keras that looper uses: one test each fails if they change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from looper.base.function_names import APART, numbered_by, ops


def test_all_reduce_sum_gradients_is_what_apply_reduces_with():
    """looper/recipe/optimizers.py overrides it on the instance, for gradients that are reduced already (Keras 3.15)."""
    optimizer = keras.optimizers.SGD(1.0)
    variable = keras.Variable([0.0])
    optimizer.build([variable])
    seen = []
    original = optimizer._all_reduce_sum_gradients
    optimizer._all_reduce_sum_gradients = lambda pairs: seen.append(len(pairs)) or original(pairs)
    optimizer.apply([tf.constant([1.0])], [variable])
    assert seen == [1]
    assert variable.numpy() == [-1.0]


def built(optimizer, *variables):
    optimizer.build(list(variables))
    return optimizer


def values(variables):
    return [variable.numpy().tolist() for variable in variables]


def test_backend_apply_gradients_is_what_apply_calls_with_unscaled_gradients():
    """looper/recipe/optimizers.py overrides it on the instance, to decide whether this call updates (Keras 3.15)."""
    one, other = keras.Variable([1.0]), keras.Variable([2.0])
    optimizer = built(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2, loss_scale_factor=4.0), one, other)
    seen = []
    optimizer._backend_apply_gradients = lambda gradients, variables: seen.append((gradients, variables))
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.constant([8.0]), None], [one, other])
    [([gradient], [variable])] = seen
    assert gradient.numpy() == [2.0]
    assert variable is one
    assert values([one, other]) == [[1.0], [2.0]]


def test_the_first_variable_of_an_optimizer_counts_the_calls_of_apply():
    """looper/recipe/optimizers.py knows by it which call updates; `iterations` counts the updates (Keras 3.15)."""
    variable = keras.Variable([0.0])
    optimizer = built(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), variable)
    for count, iterations, value in [(1, 0, 0.0), (2, 1, -1.0), (3, 1, -1.0)]:
        optimizer.apply([tf.constant([1.0])], [variable])
        assert int(optimizer.variables[0].value) == count
        assert int(optimizer.iterations) == iterations
        assert variable.numpy() == [value]


def test_accumulated_gradients_are_in_the_order_of_build():
    """looper/recipe/optimizers.py adds to them, reads them by the variable's index and empties them (Keras 3.15)."""
    one, other = keras.Variable([1.0]), keras.Variable([2.0, 3.0])
    optimizer = built(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), one, other)
    sums = [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in (other, one)]
    for _ in range(2):
        optimizer._backend_increment_gradient_accumulators([tf.constant([1.0, 2.0]), tf.constant([5.0])], sums)
    assert values(optimizer._accumulated_gradients) == [[10.0], [2.0, 4.0]]
    assert {id(v) for v in sums} <= {id(v) for v in optimizer.variables}  # a part of the checkpoint
    optimizer._backend_reset_gradient_accumulators()
    assert values(sums) == [[0.0, 0.0], [0.0]]
    assert values([one, other]) == [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("setting", "clipped"),
    [
        ({}, [[3.0], [4.0]]),
        ({"clipvalue": 3.5}, [[3.0], [3.5]]),
        ({"clipnorm": 2.0}, [[2.0], [2.0]]),
        ({"global_clipnorm": 2.5}, [[1.5], [2.0]]),
    ],
)
def test_clip_gradients_does_the_optimizers_own_clipping(setting, clipped):
    """looper/recipe/optimizers.py clips with it what it accumulated (Keras 3.15)."""
    optimizer = built(keras.optimizers.SGD(1.0, **setting), keras.Variable([0.0]), keras.Variable([0.0]))
    found = optimizer._clip_gradients([tf.constant([3.0]), tf.constant([4.0])])
    np.testing.assert_allclose(found, clipped, rtol=1e-6)


def test_an_update_is_weight_decay_and_then_the_step_alone():
    """looper/recipe/optimizers.py calls the two one after the other; neither clips or counts (Keras 3.15)."""
    one, other = keras.Variable([8.0]), keras.Variable([4.0])
    optimizer = keras.optimizers.SGD(0.5, weight_decay=0.5, clipvalue=1.0)
    optimizer.exclude_from_weight_decay(var_list=[other])
    built(optimizer, one, other)
    optimizer._apply_weight_decay([one, other])
    assert values([one, other]) == [[6.0], [4.0]]
    optimizer._backend_update_step([tf.constant([2.0]), tf.constant([4.0])], [one, other], optimizer.learning_rate)
    assert values([one, other]) == [[5.0], [2.0]]
    assert int(optimizer.iterations) == 0


def test_moving_averages_are_those_of_trainable_variables_in_the_order_of_build():
    """looper/recipe/optimizers.py moves them, sets them, and puts them into the variables (Keras 3.15)."""
    one, other = keras.Variable([1.0]), keras.Variable([2.0, 3.0])
    optimizer = built(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5), one, other)
    assert all(a is b for a, b in zip(optimizer._trainable_variables, [one, other], strict=True))
    optimizer._update_model_variables_moving_average(optimizer._trainable_variables)
    assert values(optimizer._model_variables_moving_average) == [[1.0], [2.0, 3.0]]  # the first time: as they are
    optimizer.iterations.assign(1)
    one.assign([3.0])
    optimizer._update_model_variables_moving_average(optimizer._trainable_variables)
    assert values(optimizer._model_variables_moving_average) == [[2.0], [2.0, 3.0]]
    optimizer._model_variables_moving_average[1].assign([7.0, 8.0])
    optimizer.finalize_variable_values(optimizer._trainable_variables)
    assert values([one, other]) == [[2.0], [7.0, 8.0]]


def test_an_optimizer_can_be_built_again():
    """looper/recipe/optimizers.py takes away what was built and builds for other variables (Keras 3.15)."""
    one, other = keras.Variable([1.0]), keras.Variable([2.0])
    optimizer = built(keras.optimizers.SGD(1.0, momentum=0.5), one)
    first, rate, slot = optimizer._variables
    assert first is optimizer.variables[0]
    assert rate is optimizer._learning_rate
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.constant([1.0])], [other])
    optimizer._untrack_variable(slot)
    assert [id(v) for v in optimizer.variables] == [id(first), id(rate)]
    optimizer._trainable_variables_indices = {}
    optimizer.built = False
    built(optimizer, other)
    assert len(optimizer.variables) == 3
    optimizer.apply([tf.constant([1.0])], [other])
    assert values([one, other]) == [[1.0], [1.0]]
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.constant([1.0])], [one])


def test_the_variables_of_a_multi_optimizer_itself():
    """looper/recipe/optimizers.py tells by `_variables` which are its own, and which its members' (Keras 3.15)."""
    member = keras.optimizers.SGD(1.0, momentum=0.5)
    optimizer = built(keras.optimizers.MultiOptimizer(lambda variable: member), keras.Variable([1.0]))
    assert [id(v) for v in optimizer.variables] == [id(v) for v in [*optimizer._variables, *member._variables]]
    assert [v.name for v in optimizer._variables] == ["iteration", "learning_rate"]


def test_an_optimizers_variable_is_named_after_the_trained_one():
    """looper/saved/variables.py tells by its name whose momentum it is (Keras 3.15)."""
    layer = keras.layers.Dense(1, name="layer")
    layer.build((None, 1))
    optimizer = built(keras.optimizers.SGD(1.0, momentum=0.5), layer.kernel)
    assert layer.kernel.path == "layer/kernel"
    assert optimizer.variables[-1].name == "layer_kernel_momentum"
    assert optimizer.variables[-1].path == f"{optimizer.name}/layer_kernel_momentum"


@pytest.mark.parametrize("kind", [keras.optimizers.AdamW, keras.optimizers.Muon])
def test_decay_is_apart_from_update_step_and_reads_the_learning_rate(kind):
    """looper/recipe/learning_rates.py scales both for some variables, and counts some steps apart (Keras 3.15)."""
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
    """looper/recipe/layers.py walks through a model by this name (Keras 3.15)."""
    layer = keras.layers.Bidirectional(keras.layers.LSTM(2))
    assert layer._flatten_layers(include_self=False, recursive=False) == [layer.forward_layer, layer.backward_layer]


def test_layers_that_augment_data_live_in_one_package():
    """looper/recipe/freezing.py lets them go on (Keras 3.15)."""
    for layer in (keras.layers.RandomFlip(), keras.layers.RandAugment(), keras.layers.Rescaling(0.5)):
        assert type(layer).__module__.startswith("keras.src.layers.preprocessing.")


def test_keras_mask_is_where_losses_look_for_it():
    """looper/recipe/losses.py reads the mask of a model's outputs there (Keras 3.15)."""
    model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(4, 2, mask_zero=True)])
    outputs = model(np.array([[1, 2, 0]], "int32"))
    np.testing.assert_array_equal(outputs._keras_mask.numpy(), [[True, True, False]])


@pytest.mark.parametrize("layer", [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0)])
def test_seed_states_are_among_a_layers_variables(layer):
    """looper/saved/variables.py finds seeds by this name."""
    assert [v.name for v in layer.variables] == ["seed_generator_state"]


def test_what_datasets_are_made_of():
    """looper/data/exact.py walks through a dataset by these names (TensorFlow 2.21)."""
    numbers = tf.data.Dataset.range(4)
    shuffled = numbers.shuffle(4, seed=1, reshuffle_each_iteration=False)
    assert type(shuffled).__name__ == "_ShuffleDataset"
    assert (shuffled._reshuffle_each_iteration, int(shuffled._seed2)) == (False, 1)
    assert [type(stage).__name__ for stage in shuffled._inputs()] == ["_RangeDataset"]
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


def test_traced_functions_are_numbered_by_uid():
    """looper/base/function_names.py replaces `ops.uid` while a step is traced (TensorFlow 2.21)."""
    function = tf.function(lambda n: tf.while_loop(lambda i: i < n, lambda i: (i + 1,), (0,)), autograph=False)
    with numbered_by("a private name"):
        first = ops.uid()
        concrete = function.get_concrete_function(tf.constant(3))
    names = [concrete.name, *(each.signature.name for each in concrete.graph.as_graph_def().library.function)]
    numbers = [int(name.rsplit("_", 1)[1].removesuffix(".")) for name in map(str, names) if name[-1].isdigit()]
    assert numbers
    assert all(first < number < first + APART for number in numbers)


def test_how_datasets_are_batched():
    """looper/data/chunks.py reads these names, to group the batches (TensorFlow 2.21)."""
    numbers = tf.data.Dataset.range(4)
    batched = numbers.batch(3, drop_remainder=True)
    assert type(batched).__name__ == "_BatchDataset"
    assert int(batched._batch_size) == 3
    assert batched._input_dataset is numbers
    assert type(numbers.batch(2, num_parallel_calls=2)).__name__ == "_ParallelBatchDataset"
    prefetched = batched.prefetch(1).with_options(tf.data.Options())
    assert [type(one).__name__ for one in (prefetched, prefetched._input_dataset)] == [
        "_OptionsDataset",
        "_PrefetchDataset",
    ]
    sources = (tf.data.Dataset.from_tensor_slices([1]), tf.data.Dataset.from_tensors(1), numbers)
    assert [type(one).__name__ for one in sources] == ["_TensorSliceDataset", "_TensorDataset", "_RangeDataset"]
    stages = (numbers.take(1), numbers.skip(1), numbers.concatenate(numbers), tf.data.Dataset.zip(numbers, numbers))
    names = ["_TakeDataset", "_SkipDataset", "_ConcatenateDataset", "_ZipDataset"]
    assert [type(one).__name__ for one in stages] == names
    assert type(batched.rebatch(2)).__name__ == "_RebatchDataset"


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


def test_a_functional_models_nodes_hold_the_flag_that_was_written():
    """looper/audit/flag_checks.py reads it: `get_config`, the public way, fails for some layers (3.15)."""
    base, inputs = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), keras.Input((2,))
    model = keras.Model(inputs, base(inputs, training=False))
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    [own] = [node for node in base._inbound_nodes if any(node is other for other in nodes)]
    assert own.arguments.kwargs["training"] is False
    dropout = keras.layers.Dropout(0.5)
    keras.Model(inputs, dropout(inputs))
    assert dropout._inbound_nodes[0].arguments.kwargs["training"] is False  # a default looks the same


def test_unseeded_datasets_draw_from_the_eager_contexts_generator():
    """looper/audit/record.py puts it back after reading a batch (TensorFlow 2.21)."""
    from tensorflow.python.eager import context

    tf.random.set_seed(0)
    generator = context.context()._rng
    kept = generator.getstate()
    first = list(tf.data.Dataset.range(100).shuffle(100).as_numpy_iterator())
    second = list(tf.data.Dataset.range(100).shuffle(100).as_numpy_iterator())
    assert first != second
    generator.setstate(kept)
    assert first == list(tf.data.Dataset.range(100).shuffle(100).as_numpy_iterator())


def test_assigning_is_done_by_these_methods():
    """looper/audit/record.py watches them (TensorFlow 2.21)."""
    from looper.audit.record import ASSIGNING

    names = dir(tf.Variable(0.0))
    assert {name for name in names if name.startswith(("assign", "scatter", "batch_scatter"))} == set(ASSIGNING)


def test_random_operations_that_keep_their_state_ask_for_their_seeds(monkeypatch):
    """looper/audit/record.py listens to it (TensorFlow 2.21)."""
    from tensorflow.python.framework import random_seed

    asked, get_seed = [], random_seed.get_seed
    monkeypatch.setattr(random_seed, "get_seed", lambda seed: asked.append(seed) or get_seed(seed))
    images = tf.zeros([2, 4, 4, 3])
    for draw in (
        lambda: tf.random.normal([2]),
        lambda: tf.random.truncated_normal([2]),
        lambda: tf.random.uniform([2]),
        lambda: tf.random.uniform([2], maxval=3, dtype=tf.int32),
        lambda: tf.random.gamma([2], 1.0),
        lambda: tf.random.poisson([2], 1.0),
        lambda: tf.random.categorical([[0.0, 0.0]], 2),
        lambda: tf.random.shuffle([1, 2, 3]),
        lambda: tf.random.log_uniform_candidate_sampler([[0]], 1, 1, True, 5),
        lambda: tf.nn.dropout(images, 0.5),
        lambda: tf.image.random_flip_left_right(images),
        lambda: tf.image.random_brightness(images, 0.1),
        lambda: tf.image.random_crop(images, [2, 2, 2, 3]),
    ):
        before = len(asked)
        draw()
        assert len(asked) > before
