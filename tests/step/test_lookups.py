"""A large table's rows are read without the table, and with the same numbers as Keras' own lookup."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.step import lookups, rows
from tests.support import inside

L = keras.layers
WORDS = 50
INDICES = [[0, -1, 7], [49, 7, -50]]


@pytest.fixture(autouse=True)
def _every_table_is_large(monkeypatch):
    monkeypatch.setattr(rows, "LARGE", 0)


class Doubled(L.Embedding):
    def call(self, inputs):
        return 2 * super().call(inputs)


def with_lora():
    layer = L.Embedding(WORDS, 3)
    layer.build()
    layer.enable_lora(2)
    layer.lora_embeddings_b.assign(np.ones((2, 3)))
    return layer


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32"])
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16"])
def test_rows_and_their_gradient_are_those_of_keras(policy, dtype):
    layer = L.Embedding(WORDS, 3, dtype=policy)
    layer.build()
    indices = tf.cast(np.abs(INDICES) % WORDS if dtype == "uint8" else INDICES, dtype)

    def looked_up():
        with tf.GradientTape() as tape:
            found = layer(indices)
            total = tf.reduce_sum(tf.cast(found, tf.float32) ** 2)
        return found, tf.convert_to_tensor(tape.gradient(total, layer.embeddings.value))

    expected = tf.function(looked_up)()
    with lookups.of_rows(lookups.find([layer])):
        found = tf.function(looked_up)()
    assert found[0].dtype == expected[0].dtype
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def wrapped():
    layer = L.Embedding(WORDS, 3)
    call = layer.call
    vars(layer)["call"] = functools.wraps(call)(lambda x: 2 * call(x))
    return layer


@pytest.mark.parametrize("make", [lambda: Doubled(WORDS, 3), with_lora, wrapped], ids=["a subclass", "LoRA", "wrapped"])
def test_a_layer_that_does_something_else_is_left_alone(make):
    layer = make()
    layer.build()
    expected = layer(tf.constant(INDICES))
    assert lookups.find([layer]) == ()
    with lookups.of_rows(lookups.find([layer])):
        np.testing.assert_array_equal(layer(tf.constant(INDICES)), expected)


def test_values_that_are_given_for_a_call_are_looked_up_and_what_is_ragged_stays_ragged():
    layer = L.Embedding(WORDS, 3)
    layer.build()
    with lookups.of_rows(lookups.find([layer])):
        given, _ = layer.stateless_call([np.ones((WORDS, 3), "float32")], [], tf.constant(INDICES))
        ragged = layer(tf.ragged.constant([[1], [2, 3]]))
    np.testing.assert_array_equal(given, np.ones((2, 3, 3)))
    assert ragged.shape.as_list() == [2, None, 3]
    assert "call" not in vars(layer)


@pytest.mark.parametrize(
    "options",
    [
        {"execution": "graph"},
        {"execution": "graph", "accumulate": 2},
        {"execution": "graph", "strategy": "mirrored", "devices": 2},
        {"execution": "xla_loop"},
    ],
    ids=str,
)
def test_steps_read_rows_and_the_audit_sees_the_layer(options):
    def model():
        return keras.Sequential([keras.Input((3,), dtype="int32"), L.Embedding(WORDS, 3), L.Flatten(), L.Dense(1)])

    trainer = looper.Trainer(model=model, optimizer=lambda: keras.optimizers.SGD(0.1), loss="mse", **options)
    data = (np.abs(INDICES * 4) % WORDS, np.ones((8, 1), "float32"))
    trainer.fit(data, eval_data=data, epochs=1, batch_size=8, progress=False)
    assert "Embedding" in str(trainer.audit(data, batch_size=8))
    executions = [*inside.executions(trainer, "train"), *inside.executions(trainer, "eval")]
    assert len(executions) == 2
    for execution in executions:
        assert inside.operations(trainer, execution)["ResourceGather"] > 0
