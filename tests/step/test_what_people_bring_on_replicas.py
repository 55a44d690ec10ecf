"""Losses, weights, outputs and optimizers of all kinds: two replicas, with micro-batches too, give what one gives."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models
from tests.support.keras_cases import CASES, classes, made, momentum, sgd

L = models.L
TWO = {"strategy": "mirrored", "devices": 2}


def plain() -> keras.Model:
    layers = [L.Dense(8, activation="tanh"), L.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input((6,)), *layers])


def tagger(masked: bool = True) -> keras.Model:
    """One output for each token; with a mask it reaches the loss."""
    layers = [L.Embedding(9, 5, mask_zero=masked), L.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input((7,), dtype="int32"), *layers])


def constrained() -> keras.Model:
    dense = L.Dense(3, activation="softmax", kernel_constraint="max_norm", kernel_regularizer="l2")
    return keras.Sequential([keras.Input((6,)), dense])


def scaled() -> keras.optimizers.Optimizer:
    return keras.optimizers.LossScaleOptimizer(momentum())


MATRIX = {
    "masked_temporal_weights": dataclasses.replace(
        CASES["masked_temporal_weights"],
        model=tagger,
        compile={"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]},
    ),
    "mask_without_weights": dataclasses.replace(CASES["gru_masked_sequences"], model=tagger),
    "temporal_weights": dataclasses.replace(
        CASES["temporal_weights"],
        model=lambda: tagger(masked=False),
        optimizer=CASES["groups_of_learning_rates"].optimizer,
    ),
    "a_weight_for_each_output": dataclasses.replace(
        CASES["dict_outputs"],
        data=CASES["a_weight_for_each_output"].data,
        optimizer=scaled,
    ),
    "an_output_without_a_loss": dataclasses.replace(
        CASES["an_output_without_a_loss"], optimizer=CASES["weight_decay_with_exclusions"].optimizer
    ),
    "ignored_class": dataclasses.replace(
        CASES["sample_weight"],
        model=plain,
        loss=CASES["ignored_class"].loss,
        optimizer=CASES["ema_overwriting"].optimizer,
    ),
    "accumulation": dataclasses.replace(
        CASES["class_weight"], model=plain, optimizer=CASES["accumulation_schedule_ema"].optimizer
    ),
    "both_overwriting_and_accumulating": dataclasses.replace(
        CASES["strings"],
        model=constrained,
        compile={"metrics": ["accuracy"]},
        optimizer=sgd(use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2, gradient_accumulation_steps=2),
    ),
}
"""Each loss, mask, weight, structure of outputs and optimizer once, a loss and an optimizer in one case.

The ends of all variables, those of the optimizer too, are compared, so that a mistake in either is seen. What they have
in common with the cases of tests/step/test_one_equals_many.py, such as clipping, is tried there.
"""
MICRO_BATCHES = (
    "masked_temporal_weights",
    "mask_without_weights",
    "a_weight_for_each_output",
    "an_output_without_a_loss",
)
"""Losses whose divisors are the micro-batches' own, tried with those and two replicas; optimizers come after these."""

OF_TRAINING = ("accumulation", "both_overwriting_and_accumulating")
"""Optimizers with losses that other cases evaluate."""


def run(case, evaluate=True, **options):
    trainer = looper.Trainer(
        model=case.model,
        optimizer=case.optimizer,
        loss=lambda: made(case.loss),  # inside the precision
        seed=3,
        precision="float64",
        **made(case.compile),
        **options,
    )
    data = case.data()
    fit = {"epochs": 1, "batch_size": 16, "eval_data": data if evaluate else None, "progress": False}
    history = trainer.fit(data, class_weight=case.class_weight, **fit)
    return trainer, history


@pytest.mark.parametrize("name", MATRIX)
def test_one_equals_two(name):
    case, evaluate = MATRIX[name], name not in OF_TRAINING
    options = TWO | ({"accumulate": 3} if name in MICRO_BATCHES else {})
    (one, expected), (other, history) = run(case, evaluate), run(case, evaluate, **options)
    for a, b in zip(one.model.weights, other.model.weights, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-9, atol=1e-9, err_msg=a.path)
    for a, b in zip(one.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-9, atol=1e-9, err_msg=a.path)
    for log in sorted(expected.names() - {"steps_per_second", "examples_per_second"}):
        # 1e-6: Keras' metrics hold float32 sums, whatever the precision
        np.testing.assert_allclose(history[log], expected[log], rtol=1e-6, err_msg=log)


def averaging(optimizer=sgd(momentum=0.9), **more):
    return looper.Trainer(model=plain, optimizer=optimizer, loss="sparse_categorical_crossentropy", seed=3, **more)


@functools.cache
def averaged_by_keras():
    """Predictions and loss of a run that ends on the averages, as Keras' fit does."""
    theirs = averaging(sgd(momentum=0.9, use_ema=True, ema_momentum=0.9))
    theirs.fit(classes(), epochs=2, batch_size=16, progress=False)
    return theirs.predict(classes()[0]), theirs.evaluate(classes())["loss"]


@pytest.mark.xdist_group("averages of Keras")
@pytest.mark.parametrize("options", [{}, TWO])
def test_averaged_weights(options, tmp_path):
    """`ema=` evaluates, predicts and exports the averages that Keras' optimizers compute, and trains on as without."""
    x, y = classes()
    without, ours = averaging(**options), averaging(ema=0.9, **options)
    for trainer in (without, ours):
        trainer.fit((x, y), epochs=2, batch_size=16, progress=False)
    for a, b in zip(without.model.weights, ours.model.weights, strict=True):
        assert (a.numpy() == b.numpy()).all()
    predicted, loss = averaged_by_keras()
    assert np.abs(predicted - without.model(x)).max() > 1e-3
    np.testing.assert_allclose(ours.predict(x), predicted, rtol=1e-5)
    assert ours.evaluate((x, y))["loss"] == pytest.approx(loss, rel=1e-5)
    ours.save_model(tmp_path / "averaged.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "averaged.keras")(x), predicted, rtol=1e-5)


def test_averaged_weights_are_continued(tmp_path):
    def run(folder, epochs):
        trainer = looper.Trainer(
            model=plain, optimizer=sgd(), loss="sparse_categorical_crossentropy", ema=0.8, workdir=tmp_path / folder
        )
        trainer.fit(classes(), epochs=epochs, batch_size=16, progress=False)
        return trainer

    whole = run("whole", 4)
    run("parts", 2)
    x, _ = classes()
    assert (run("parts", 4).predict(x) == whole.predict(x)).all()


def test_unfrozen_layers_keep_the_optimizers_state_of_the_others():
    """The step is built anew when `trainable` changes, and says so; what stays trainable keeps its moments."""
    x, y = classes()

    def by_hand():
        keras.utils.set_random_seed(3)
        model = plain()
        optimizers = {}

        def train(variables):
            for start in range(0, 50, 10):
                with tf.GradientTape() as tape:
                    outputs = model(x[start : start + 10], training=True)
                    loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y[start : start + 10], outputs))
                for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                    optimizer = optimizers.get(variable.path)
                    if optimizer is None:  # one for each variable: its state is only its own
                        optimizer = optimizers[variable.path] = keras.optimizers.SGD(0.05, momentum=0.9)
                        optimizer.build([variable])
                    optimizer.apply([gradient], [variable])

        train(model.layers[1].trainable_variables)
        train(model.trainable_variables)
        train(model.layers[0].trainable_variables)
        return model

    trainer = looper.Trainer(model=plain, optimizer=sgd(momentum=0.9), loss="sparse_categorical_crossentropy", seed=3)
    first, second = trainer.model.layers
    fit = {"batch_size": 10, "shuffle": False, "progress": False}
    first.trainable = False
    trainer.fit((x, y), epochs=1, **fit)
    first.trainable = True
    with pytest.warns(
        UserWarning, match="4 variables are trainable now, 2 were before: .* 2 keep their values and 2 are new"
    ):
        trainer.fit((x, y), epochs=2, **fit)
    second.trainable = False
    with pytest.warns(
        UserWarning, match="2 variables are trainable now, 4 were before: .* 2 keep their values and 0 are new"
    ):
        trainer.fit((x, y), epochs=3, **fit)
    for mine, other in zip(trainer.model.weights, by_hand().weights, strict=True):
        assert models.norm_difference(mine.numpy(), other.numpy()) < 1e-6  # float32
    assert int(trainer.optimizer.iterations) == 15


def test_both_evaluations_of_averaged_weights():
    x, y = classes()
    fit = {"epochs": 2, "batch_size": 16, "eval_data": (x, y), "progress": False}
    parts = {"model": plain, "optimizer": sgd(), "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    without = looper.Trainer(**parts).fit((x, y), **fit)
    averaged = looper.Trainer(**parts, ema=0.9).fit((x, y), **fit)
    both = looper.Trainer(**parts, ema=0.9).fit((x, y), **fit, callbacks=[looper.callbacks.EmaEvaluation()])
    assert both["eval/raw_loss"] == without["eval/loss"] != averaged["eval/loss"]
    assert both["eval/raw_accuracy"] == without["eval/accuracy"]
    assert both["eval/loss"] == averaged["eval/loss"]
    with pytest.raises(looper.InputError, match="give the Trainer ema= and fit eval_data="):
        looper.Trainer(**parts).fit((x, y), **fit, callbacks=[looper.callbacks.EmaEvaluation()])


@pytest.mark.parametrize("strategy", [{}, TWO])
def test_a_skipped_step_leaves_the_averages_alone(strategy):
    """As if the batch had not been there."""
    x, y = models.data(examples=40)
    spoiled = x.copy()
    spoiled[25] = np.inf  # later than the averages have left the weights
    keep = np.r_[0:20, 30:40]
    fit = {"epochs": 1, "batch_size": 10, "shuffle": False, "progress": False}
    parts = {"model": plain, "optimizer": sgd(), "loss": "sparse_categorical_crossentropy", "ema": 0.7}
    guard = looper.callbacks.NanGuard("skip")
    skipping = looper.Trainer(**parts, **strategy)
    history = skipping.fit((spoiled, y), **fit, callbacks=[guard])
    without = looper.Trainer(**parts, **strategy)
    without.fit((x[keep], y[keep]), **fit)
    assert history["skipped_steps"] == [1]
    np.testing.assert_array_equal(skipping.predict(x), without.predict(x))
