"""A learning rate that follows the length of the run, and `self.last_step` inside and outside of steps."""

import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.recipe.schedules import ends_early

X = np.ones((48, 1), "float32")
EACH = looper.Every(steps=1)
TWO = {"strategy": "mirrored", "devices": 2}


class Scheduled(looper.Trainer):
    """The gradient is 1: its weight falls by the learning rate in each step."""

    warmup = 0

    def build(self):
        self.model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        self.optimizer = keras.optimizers.SGD(looper.CosineDecay(self, 0.1, warmup=self.warmup, alpha=0.1))

    def compute_loss(self, batch, training):
        return self.model(batch, training=training), {"last": tf.cast(self.last_step, tf.float32)}

    @property
    def weight(self):
        return float(self.model.get_weights()[0][0, 0])


class WarmedUp(Scheduled):
    warmup = 2


def fit(trainer, **options):
    options = {"batch_size": 8, "log_every": EACH, "progress": False, **options}
    return trainer.fit(X, **options)


def rates(steps, warmup=0):
    """The rates before the first of so many steps and after each of them, by Keras' schedule of this length."""
    schedule = keras.optimizers.schedules.CosineDecay(
        *(0.0 if warmup else 0.1, steps - warmup), alpha=0.1, warmup_target=0.1 if warmup else None, warmup_steps=warmup
    )
    return [float(schedule(step)) for step in range(steps + 1)]


@pytest.mark.parametrize(
    "options",
    [
        {"execution": "graph"},
        {"execution": "xla_step", "accumulate": 2},
        {"execution": "xla_loop"},
        {"execution": "eager"},
        {"execution": "graph", **TWO},
        {"execution": "xla_step", "precision": "mixed_float16", **TWO},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("kind", [Scheduled, WarmedUp])
def test_the_rate_is_that_of_keras_for_a_run_of_this_length(kind, options):
    """Also when the same trainer goes on to a larger number: from there with the rate of the longer run."""
    trainer = kind(**options)
    assert trainer.last_step == 0
    begun, short, long = trainer.weight, rates(6, kind.warmup), rates(12, kind.warmup)
    # float32, and sums of a few of its numbers
    np.testing.assert_allclose(fit(trainer, epochs=1)["learning_rate"], short[1:], rtol=1e-5)
    np.testing.assert_allclose(begun - trainer.weight, sum(short[:-1]), rtol=1e-4)
    begun, both = trainer.weight, fit(trainer, epochs=2)
    np.testing.assert_allclose(both["learning_rate"], short[1:] + long[7:], rtol=1e-5)
    np.testing.assert_allclose(begun - trainer.weight, sum(long[6:-1]), rtol=1e-4)
    if options["execution"] != "eager":
        assert both["last"] == [6.0] * 6 + [12.0] * 6
    assert trainer.last_step == 12


def test_a_run_that_was_stopped_has_the_rates_of_the_undisturbed(tmp_path):
    whole = fit(Scheduled(), epochs=2)
    fit(Scheduled(workdir=tmp_path), epochs=2, max_time=1e-9)
    assert fit(Scheduled(workdir=tmp_path), epochs=2)["learning_rate"] == whole["learning_rate"]


def test_a_share_of_the_run_is_warmed_up():
    class Run:
        last_step = 40

    rate = looper.CosineDecay(Run(), 2.0, warmup=0.25)
    assert [float(rate(step)) for step in (0, 5, 10)] == [0.0, 1.0, 2.0]
    assert float(rate(25)) == pytest.approx(1.0)
    assert float(rate(40)) == pytest.approx(0.0, abs=1e-6)  # float32's cosine of pi
    assert rate.get_config() == {"learning_rate": 2.0, "warmup": 0.25, "alpha": 0.0}


def test_data_of_unknown_length_needs_a_number():
    def batches():
        for _ in range(4):
            yield X[:8]

    trainer = Scheduled()
    with pytest.raises(looper.InputError, match=r"last_step is not known.*give fit steps="):
        trainer.fit(batches, epochs=1, progress=False)
    assert trainer.step == 0
    trainer.fit(batches, epochs=1, steps_per_epoch=4, progress=False)
    assert trainer.step == 4


@pytest.mark.parametrize("execution", ["graph", "eager"])
def test_somebody_elses_loop_has_no_length(execution):
    """Neither before a `fit` nor after it; nothing is trained."""
    trainer = Scheduled(execution=execution)
    begun = trainer.weight
    with pytest.raises(looper.InputError, match="with train_on_batch use what has a length of its own"):
        trainer.train_on_batch(X[:8])
    assert trainer.weight == begun
    fit(trainer, epochs=1)
    begun = trainer.weight
    with pytest.raises(looper.InputError, match="with train_on_batch use"):
        trainer.train_on_batch(X[:8])
    assert (trainer.weight, trainer.step) == (begun, 6)


def test_before_any_fit_it_is_as_if_the_run_had_no_end():
    trainer = WarmedUp()
    rate = trainer.optimizer.learning_rate
    schedule = looper.CosineDecay(trainer, 0.1, warmup=2, alpha=0.1)
    assert [round(float(schedule(step)), 3) for step in (0, 1, 2, 1000)] == [0.0, 0.05, 0.1, 0.1]
    assert float(rate) == 0.0


def test_a_run_that_does_not_read_it_may_be_of_unknown_length():
    make = lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])  # noqa: E731
    trainer = looper.Trainer(model=make, optimizer="sgd", loss="mse")
    trainer.fit(lambda: iter([(X[:8], X[:8])] * 3), epochs=1, progress=False)
    assert trainer.step == 3
    with pytest.raises(looper.InputError, match="last_step is not known"):
        _ = trainer.last_step


def test_the_trainer_comes_first():
    with pytest.raises(looper.InputError, match="expected the trainer first"):
        looper.CosineDecay(0.1, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"warmup": -1}, "warmup=-1"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"alpha": 2.0}, "alpha=2.0"),
    ],
)
def test_what_is_out_of_range_is_named(options, message):
    class Run:
        last_step = 7

    with pytest.raises(looper.InputError, match=message):
        looper.CosineDecay(Run(), **{"learning_rate": 0.1, **options})


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (keras.optimizers.schedules.CosineDecay(0.1, 6), "CosineDecay ends at step 6 of 12, and stays at 0 from"),
        (keras.optimizers.schedules.CosineDecay(0.1, 4, warmup_target=0.2, warmup_steps=2), "ends at step 6 of 12"),
        (keras.optimizers.schedules.CosineDecay(0.1, 4, warmup_steps=7), "ends at step 4 of 12"),  # without a target
        (
            keras.optimizers.schedules.PolynomialDecay(0.1, 6, 0.02),
            "PolynomialDecay ends at step 6 of 12, and stays at 0.02",
        ),
        (keras.optimizers.schedules.PolynomialDecay(0.1, 6, cycle=True), None),
        (keras.optimizers.schedules.CosineDecay(0.1, 11), None),
        (keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), None),
        (keras.optimizers.schedules.CosineDecayRestarts(0.1, 2), None),
        (0.1, None),
    ],
    ids=lambda value: value.__class__.__name__ if not isinstance(value, str) else value[:12],
)
def test_a_schedule_that_ends_long_before_the_run_is_told(schedule, said):
    found = ends_early(keras.optimizers.SGD(schedule), 12)
    assert found is None if said is None else said in found


def test_it_is_told_when_training_begins_and_not_where_nothing_is_left():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 6)
    trainer = looper.Trainer(
        model=lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]),
        optimizer=lambda: keras.optimizers.SGD(schedule),
        loss="mse",
    )
    options = {"batch_size": 8, "progress": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit((X, X), epochs=1, **options)
        assert not caught
        for _ in range(2):
            trainer.fit((X, X), epochs=2, **options)
    assert [str(warning.message)[-23:] for warning in caught] == ["follows the run's length."[-23:]]
