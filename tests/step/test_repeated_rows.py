"""A row that an Embedding looks up several times gets one gradient: the sum, as a dense gradient has it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base import xla
from looper.step import rows
from tests.support import inside

L = keras.layers
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.5, centered=True),
    "Adam": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.1),
    "Adadelta": lambda: keras.optimizers.Adadelta(1.0),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adamax": lambda: keras.optimizers.Adamax(0.1),
    "Nadam": lambda: keras.optimizers.Nadam(0.1),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1, l1_regularization_strength=0.01),
    "Lion": lambda: keras.optimizers.Lion(0.1),
    "Lamb": lambda: keras.optimizers.Lamb(0.1),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.1),
}
TABLE, INDICES = (7, 3), [5, 1, 5, 5, 2, 1, 0]


def gradient():
    values = np.random.default_rng(1).normal(size=(len(INDICES), TABLE[1])).astype("float32")
    return tf.IndexedSlices(tf.constant(values), tf.constant(INDICES), tf.constant(TABLE))


@pytest.mark.parametrize("way", ["graph", "xla, a large table"])
def test_every_optimizer_moves_a_row_as_with_a_dense_gradient(way, monkeypatch):
    monkeypatch.setattr(rows, "DENSE", 0 if way == "xla, a large table" else rows.DENSE)
    start = np.random.default_rng(0).normal(size=TABLE).astype("float32")
    tables = {name: [keras.Variable(start, name=name) for _ in range(2)] for name in OPTIMIZERS}
    optimizers = {name: [make(), make()] for name, make in OPTIMIZERS.items()}
    for name, both in optimizers.items():
        for optimizer, table in zip(both, tables[name], strict=True):
            optimizer.build([table])

    def steps():
        slices = gradient()
        for name, (sparse, dense) in optimizers.items():
            for _ in range(2):
                sparse.apply([rows.sum_repeated(slices)], tables[name][:1])
                dense.apply([tf.convert_to_tensor(slices)], tables[name][1:])

    (tf.function(steps) if way == "graph" else xla.program(steps))()
    for name, (sparse, dense) in tables.items():
        # float32, in other orders; what is divided by a root near 0 has fewer digits
        np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.abs(sparse.numpy() - start).max() > 1e-4, name


def test_adam_takes_the_square_of_the_sum_where_keras_adds_squares():
    """The first step of Adam is its rate, whatever the gradient: that of Keras is sqrt(2) times as long for two."""

    def moved(change):
        table, optimizer = keras.Variable(np.zeros(TABLE, "float32")), keras.optimizers.Adam(0.01)
        optimizer.build([table])
        slices = tf.IndexedSlices(tf.ones([2, 3]), tf.constant([5, 5]), tf.constant(TABLE))
        optimizer.apply([change(slices)], [table])
        return -table.numpy()[5]

    np.testing.assert_allclose(moved(rows.sum_repeated), 0.01, rtol=1e-5)  # an epsilon of 1e-7 beside 1
    np.testing.assert_allclose(moved(lambda slices: slices), 0.01 * np.sqrt(2), rtol=1e-5)


@pytest.mark.parametrize("large", [False, True])
def test_rows_in_a_program_of_fixed_shapes(large, monkeypatch):
    monkeypatch.setattr(rows, "DENSE", 0 if large else rows.DENSE)
    found = xla.program(lambda: tf.convert_to_tensor(rows.sum_repeated(gradient())))()
    np.testing.assert_allclose(found, tf.convert_to_tensor(gradient()), rtol=1e-6)  # sums of three float32
    in_graph = tf.function(lambda: rows.sum_repeated(gradient()))()
    assert in_graph.indices.numpy().tolist() == [5, 1, 2, 0]


def test_the_thread_of_a_mirrored_strategy_knows_that_it_traces_a_program():
    strategy, seen = tf.distribute.MirroredStrategy(["CPU:0"]), []

    class Looks(looper.Trainer):
        def compute_loss(self, batch, training):
            seen.append(xla.traces())
            return super().compute_loss(batch, training)

    parts = {"model": lambda: model(False), "optimizer": lambda: keras.optimizers.Adadelta(0.1), "loss": "mse"}
    words = np.random.default_rng(0).integers(0, 5, (8, 6)).astype("int32")
    trainer = Looks(**parts, strategy=strategy, execution="xla_loop")
    trainer.fit((words, np.zeros((8, 1), "float32")), epochs=1, batch_size=8, progress=False)
    assert inside.mode(trainer) == "xla_loop" and seen[-1]


WORDS = 200
"""In the table; few of them occur in a batch."""


def model(dense):
    """Looks rows up, or multiplies one-hot vectors with the same table, which gives a dense gradient."""
    table = np.random.default_rng(0).normal(size=(WORDS, 3)).astype("float32")
    first = L.Dense(3, use_bias=False) if dense else L.Embedding(WORDS, 3)
    kind = {} if dense else {"dtype": "int32"}
    made = keras.Sequential([keras.Input((6, WORDS) if dense else (6,), **kind), first, L.Flatten(), L.Dense(1)])
    made.layers[0].set_weights([table])
    made.layers[-1].set_weights([np.linspace(-1, 1, 18, dtype="float32")[:, None], np.zeros(1, "float32")])
    return made


def trained(dense=False, **options):
    """Four steps of Adam in one call, with a clip of the norm: the norm must be that of the sums, too."""
    words = np.random.default_rng(0).integers(0, 5, (32, 6)).astype("int32")
    x, y = np.eye(WORDS, dtype="float32")[words] if dense else words, words.mean(1, keepdims=True).astype("float32")
    parts = {"model": lambda: model(dense), "optimizer": lambda: keras.optimizers.Adam(0.05), "loss": "mse"}
    trainer = looper.Trainer(**parts, clip_norm=0.5, **options)
    history = trainer.fit(
        (x, y), epochs=1, batch_size=8, shuffle=False, progress=False, log_every=looper.Every(steps=4)
    )
    return trainer, trainer.model.get_weights(), history["gradient_norm"]


@pytest.mark.parametrize(
    "options",
    [
        {"execution": "graph"},
        {"execution": "xla_step"},
        {"execution": "xla_loop"},
        {"execution": "graph", "accumulate": 4},
        {"execution": "graph", "strategy": "mirrored", "devices": 2},
    ],
    ids=str,
)
def test_training_is_that_of_a_dense_gradient(options):
    check_against_dense(options)


@pytest.mark.parametrize(
    "options",
    [
        {"execution": "graph", "accumulate": 4},
        {"execution": "xla_step", "accumulate": 4},
        {"execution": "graph", "strategy": "mirrored", "devices": 2, "accumulate": 2},
        {"execution": "xla_step", "strategy": "mirrored", "devices": 2},
    ],
    ids=str,
)
def test_so_it_is_where_rows_are_added_up_and_reduced_as_rows(options, monkeypatch):
    monkeypatch.setattr(rows, "LARGE", 0)
    monkeypatch.setattr(rows, "DENSE", 0)
    trainer = check_against_dense(options)
    [execution] = inside.executions_in(trainer, options["execution"])
    graph = inside.operations(trainer, execution)
    assert bool(graph["Unique"]) == (
        options != {"execution": "xla_step", "accumulate": 4}
    )  # rows cannot grow in XLA's loop


def check_against_dense(options):
    _, expected, norms = trained(dense=True, execution="graph")
    trainer, found, found_norms = trained(**options)
    assert inside.mode(trainer) == options["execution"]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)  # float32, sums in other orders, four steps
    np.testing.assert_allclose(found_norms, norms, rtol=1e-5)
    return trainer
