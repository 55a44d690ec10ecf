"""Models of all kinds, as they are: compiled ones, stateful ones, nested structures, ragged outputs, `tf.Module`s."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models
from tests.support.keras_cases import compare_variables

L = models.L
SPARSE = "sparse_categorical_crossentropy"


def sgd():
    return keras.optimizers.SGD(0.1)


def trained_by_hand(model, batches, loss, epochs=1):
    optimizer = sgd()
    for _ in range(epochs):
        for x, y in batches:
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True)) + sum(model.losses)
            optimizer.build(model.trainable_variables)
            optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
    return model


def test_a_model_that_was_compiled_and_fitted_before():
    """Its metrics and its optimizer are for Keras' own fit: looper leaves them alone, and reads none of them."""
    x, y = models.data(examples=32)
    model = models.dense()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x, y, epochs=1, verbose=0)
    metric = [v.numpy() for m in model.metrics for v in m.variables]
    trainer = looper.Trainer(model=model, optimizer=sgd, loss=models.cross_entropy, metrics=["accuracy"])
    history = trainer.fit((x, y), epochs=1, batch_size=8, progress=False)
    assert {"loss", "accuracy"} <= history.names()
    assert not {name for name in history.names() if "compile" in name}
    for before, after in zip(metric, [v.numpy() for m in model.metrics for v in m.variables], strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_bare_layer_that_is_not_built_yet():
    x, y = models.data((5,), examples=16)
    ones = {"kernel_initializer": "ones", "activation": "softmax"}
    by_hand = trained_by_hand(
        L.Dense(3, **ones),
        [(x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)],
        keras.losses.SparseCategoricalCrossentropy(),
    )
    trainer = looper.Trainer(model=lambda: L.Dense(3, **ones), optimizer=sgd, loss=SPARSE)
    trainer.fit((x, y), epochs=1, batch_size=4, shuffle=False, progress=False)
    compare_variables(trainer.model.variables, by_hand.variables)


def test_a_stateful_recurrent_model():
    """Its state goes from batch to batch, as in a loop by hand."""

    def make():
        return keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), L.GRU(6, stateful=True), L.Dense(3, "softmax")])

    x, y = models.data((5, 3), examples=16)
    keras.utils.set_random_seed(0)
    by_hand = make()
    loss = keras.losses.SparseCategoricalCrossentropy()
    trained_by_hand(by_hand, tf.data.Dataset.from_tensor_slices((x, y)).batch(4), loss)
    trainer = looper.Trainer(model=make, optimizer=sgd, loss=SPARSE)
    trainer.fit((x, y), epochs=1, batch_size=4, shuffle=False, progress=False)
    compare_variables(trainer.model.variables, by_hand.variables)


def test_lists_of_inputs():
    def make():
        a, b = keras.Input((4,)), keras.Input((2,))
        return keras.Model([a, b], L.Dense(3, "softmax")(L.Concatenate()([a, b])))

    x, y = models.data((4,), examples=24)
    keras.utils.set_random_seed(0)
    theirs = make()
    theirs.compile(sgd(), SPARSE)
    theirs.fit([x, x[:, :2]], y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    trainer = looper.Trainer(model=make, optimizer=sgd, loss=SPARSE)
    trainer.fit(((x, x[:, :2]), y), epochs=2, batch_size=8, shuffle=False, progress=False)
    compare_variables(trainer.model.variables, theirs.variables)
    np.testing.assert_allclose(trainer.predict(((x, x[:, :2]), y)), theirs.predict([x, x[:, :2]], verbose=0), atol=1e-6)


class DeepOutputs(keras.Model):
    """Outputs in a nest, built by the first batch."""

    def __init__(self):
        super().__init__()
        self.kind, self.boxes = L.Dense(3, "softmax"), [L.Dense(2), L.Dense(1)]

    def call(self, x, training=False):
        return {"kind": self.kind(x), "box": [box(x) for box in self.boxes]}


def test_nested_outputs_with_losses_in_their_structure():
    x, y = models.data(examples=24)
    targets = {"kind": y, "box": (x[:, :2], x[:, 2:3])}
    keras.utils.set_random_seed(0)
    theirs = DeepOutputs()
    theirs.compile(sgd(), {"kind": SPARSE, "box": ["mse", "mae"]})
    batches = tf.data.Dataset.from_tensor_slices((x, targets)).batch(8)
    losses = {"kind": SPARSE, "box": ["mse", "mae"]}
    trainer = looper.Trainer(
        model=DeepOutputs,
        optimizer=sgd,
        loss=losses,
        loss_weights={"kind": 1.0, "box": [0.5, 2.0]},
        metrics={"kind": ["accuracy"], "box": [["mse"], None]},
    )
    history = trainer.fit(batches, epochs=1, progress=False)
    keras.utils.set_random_seed(0)
    by_hand = DeepOutputs()
    by_hand(x[:1])

    def loss(y, outputs):
        one = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y["kind"], outputs["kind"]))
        two = tf.reduce_mean((y["box"][0] - outputs["box"][0]) ** 2)
        return one + 0.5 * two + 2.0 * tf.reduce_mean(tf.abs(y["box"][1] - outputs["box"][1]))

    trained_by_hand(by_hand, batches, loss)
    compare_variables(trainer.model.variables, by_hand.variables)
    assert {"kind_loss", "box/0_loss", "box/1_loss", "kind_accuracy", "box/0_mse"} <= history.names()


class RaggedTagger(keras.Model):
    """One vector of class scores for each token of sentences of different lengths."""

    def __init__(self):
        super().__init__()
        self.table = L.Embedding(20, 3)

    def call(self, tokens, training=False):
        return tf.RaggedTensor.from_row_splits(tf.nn.softmax(self.table(tokens.flat_values)), tokens.row_splits)


@pytest.mark.parametrize("weighted", [False, True])
def test_ragged_outputs_count_every_token_once(weighted):
    """The loss is the mean over all tokens of a batch; Keras' losses refuse ragged tensors."""
    random = np.random.default_rng(0)
    lengths = [3, 1, 5, 2, 4, 6]
    tokens = tf.ragged.constant([random.integers(0, 20, n).tolist() for n in lengths], tf.int32)
    tags = tf.ragged.constant([random.integers(0, 3, n).tolist() for n in lengths], tf.int32)
    weights = tf.constant([1.0, 0.5, 2.0, 1.0, 0.0, 3.0])
    data = (tokens, tags, weights) if weighted else (tokens, tags)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(3)
    trainer = looper.Trainer(
        model=RaggedTagger,
        optimizer=sgd,
        loss=lambda: keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    results = trainer.evaluate(batches)
    rows = tf.nn.softmax(trainer.model.table(tokens.flat_values))
    each = keras.losses.sparse_categorical_crossentropy(tags.flat_values, rows).numpy()
    scale = np.repeat(weights.numpy(), lengths) if weighted else np.ones(len(each))
    assert results["loss"] == pytest.approx((each * scale).sum() / len(each), rel=1e-6)
    assert results["accuracy"] == pytest.approx(np.mean(rows.numpy().argmax(-1) == tags.flat_values.numpy()))
    before = results["loss"]
    trainer.fit(batches, epochs=20, progress=False)
    assert trainer.evaluate(batches)["loss"] < before


def test_frozen_layers_without_weights_are_looked_at_again():
    """Batch normalization without scale and offset trains nothing, and still is to stand still when it is frozen."""
    x, y = models.data(examples=32)
    norm = L.BatchNormalization(center=False, scale=False)
    trainer = looper.Trainer(
        model=keras.Sequential([keras.Input((6,)), norm, L.Dense(3)]), optimizer=sgd, loss=models.cross_entropy
    )
    trainer.fit((x, y), epochs=1, batch_size=8, progress=False)
    moved = norm.moving_mean.numpy()
    norm.trainable = False
    trainer.fit((x, y), epochs=2, batch_size=8, progress=False)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), moved)


def test_frozen_layers_are_looked_at_again_in_each_fit():
    """Keras 3.15 ignores it until the next `compile`; here batch normalization is frozen from the next fit on."""
    x, y = models.data(examples=32)
    trainer = looper.Trainer(model=models.dense, optimizer=sgd, loss=models.cross_entropy)
    norm = trainer.model.layers[1]
    trainer.fit((x, y), epochs=1, batch_size=8, progress=False)
    moved = norm.moving_mean.numpy()
    norm.trainable = False
    with pytest.warns(UserWarning, match="the step is compiled anew"):
        trainer.fit((x, y), epochs=2, batch_size=8, progress=False)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), moved)

    theirs = models.dense()
    theirs.compile(sgd(), models.cross_entropy())
    theirs.fit(x, y, epochs=1, batch_size=8, verbose=0)
    moved = theirs.layers[1].moving_mean.numpy()
    theirs.layers[1].trainable = False
    theirs.fit(x, y, epochs=1, batch_size=8, verbose=0)
    assert np.abs(theirs.layers[1].moving_mean.numpy() - moved).max() > 1e-4
