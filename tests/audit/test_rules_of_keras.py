"""Two rules of Keras differ between its versions: the audit says what the Keras that runs does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.audit.rules import default_leaks

L = keras.layers
X = np.ones((8, 6), "float32")


@pytest.fixture(params=["Keras 3.15", "a snapshot of Keras 3.16"])
def leaks(request, monkeypatch):
    """Whether a default leaks; for the later Keras its rule is put in the place of the other."""
    older = request.param == "Keras 3.15"
    if not older:
        assert hasattr(keras.Layer, "_resolve_and_populate_arg")  # private (Keras 3.15): the rule stands there

        def resolve(layer, name, call_spec, context, kwargs):
            value, outer = call_spec.arguments_dict.get(name), context.get_value(name)
            if name in call_spec.user_arguments_dict:
                context.set_value(name, value)
            elif outer is not None:
                value = outer
            if layer._call_has_context_arg.get(name, False) and value is not None:
                kwargs[name] = value

        monkeypatch.setattr(keras.Layer, "_resolve_and_populate_arg", resolve)
    default_leaks.cache_clear()
    yield older
    default_leaks.cache_clear()


class TrueByDefault(L.Layer):
    def call(self, x, training=True):
        return x


class WithADefault(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.head = TrueByDefault(name="first"), L.Dropout(0.5, name="drop"), L.Dense(1)

    def call(self, x):
        return self.head(self.drop(self.first(x)))


class Recipe(looper.Trainer):
    """Forgets the flag."""

    def build(self):
        self.model, self.optimizer = WithADefault(), keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        return tf.square(self.model(batch))


def test_the_probe_sees_the_rule(leaks):
    assert default_leaks() == leaks


@pytest.mark.parametrize("execution", ["graph", "eager"])
def test_the_audit_says_what_the_layers_received(leaks, execution):
    report = Recipe(execution=execution).audit(X)
    [row] = [row for row in report.rows if row.path == "model/drop"]
    received = {value for value, _ in (*row.training, *row.evaluation)}
    assert received == {leaks}  # its own default is False
    assert {how for _, how in row.training} == ({"leaked"} if leaks else {"default"})
    kinds = {(finding.kind, finding.path) for finding in report.findings}
    assert (("leaked-flag", "model/drop") in kinds) == leaks
    assert any(kind == "no-flag" for kind, _ in kinds) != leaks


def functional():
    inputs = keras.Input((6,))
    normalized = L.BatchNormalization(name="norm")(inputs, training=False)
    return keras.Model(inputs, L.Dense(1)(normalized))


@pytest.mark.parametrize("holds", [False, True])
def test_a_flag_that_a_functional_model_was_built_with(holds, monkeypatch):
    """In 3.15 the flag outside overrides it."""
    kind = type(functional())
    if holds:
        run = kind.call

        def call(model, inputs, training=None, mask=None, **kwargs):
            return run(model, inputs, training=None, mask=mask, **kwargs)  # what is written in the nodes then holds

        monkeypatch.setattr(kind, "call", call)
    report = looper.Trainer(model=functional, optimizer="sgd", loss="mse").audit((X, np.ones((8, 1), "float32")))
    found = {finding.kind for finding in report.findings if finding.path == "model/norm"}
    assert ("overridden" in found) != holds
    [row] = [row for row in report.rows if row.path == "model/norm"]
    assert {value for value, _ in row.training} == {not holds}


def test_the_probe_leaves_keras_names_as_they_are():
    before = keras.layers.Dense(1).name
    default_leaks.cache_clear()
    default_leaks()
    after = keras.layers.Dense(1)
    after.build((None, 1))
    number = int(before.rpartition("_")[2]) if "_" in before else 0
    assert after.kernel.path == f"dense_{number + 1}/kernel"
