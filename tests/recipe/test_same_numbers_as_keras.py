"""Whatever is given to `compile` and `fit`, the same weights, seeds and order give the numbers that Keras gives.

Each case trains the same model under both. Compared are every step's loss, every log of every evaluation, and all
variables of model and optimizer after it.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.recipe.optimizers import inner
from tests.support import models
from tests.support.keras_cases import (
    BATCH,
    CASES,
    EPOCHS,
    EXAMPLES,
    Case,
    L,
    StepLosses,
    classes,
    compare_logs,
    compare_variables,
    made,
    momentum,
    one_hot,
    run_both,
    sgd,
    softmax_dense,
    unsupervised,
    weights_of_examples,
)

UNSEEN = [name for name, case in CASES.items() if case.optimizer is not momentum and name != "ema"]
"""Cases of what an evaluation does not know of: the optimizer's own settings. One of them is evaluated."""


CONTAINED = {
    "gru_masked_sequences": "masked_temporal_weights",
    "accumulation": "accumulation_schedule_ema",
    "schedule": "accumulation_schedule_ema",
    "global_clipnorm": "loss_scale_factor",
    "optimizer_AdamW": "weight_decay_with_exclusions",
}
"""Cases whose settings another case has too."""


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONTAINED])
def test_fit(name):
    case = CASES[name]
    evaluated = name not in UNSEEN
    batches = tf.data.Dataset.from_tensor_slices(case.data()).batch(BATCH)
    keras.utils.set_random_seed(3)
    theirs = case.model()
    # eager: it takes half as long as compiling does; but Keras 3.15 trains other numbers so if a gradient is missing
    eager = name != "an_output_without_a_loss"
    theirs.compile(case.optimizer(), made(case.loss), **made(case.compile), run_eagerly=eager)
    step_losses = StepLosses()
    options = {"callbacks": [step_losses], "class_weight": case.class_weight}
    data = batches if evaluated else None
    expected = theirs.fit(batches, epochs=EPOCHS, validation_data=data, verbose=0, **options).history

    trainer = looper.Trainer(
        model=case.model,
        optimizer=case.optimizer,
        loss=made(case.loss),
        seed=3,
        execution="graph",
        **made(case.compile),
    )
    history = trainer.fit(
        batches,
        epochs=EPOCHS,
        log_every=looper.Every(steps=1),
        eval_data=data,
        class_weight=case.class_weight,
        progress=False,
    )
    # 1e-5: float32, and Keras' running mean loses a digit when it is taken apart
    np.testing.assert_allclose(history["loss"], step_losses.losses, rtol=1e-5, atol=1e-5)
    compare_variables(trainer.model.variables, theirs.variables)
    compare_variables(inner(trainer.optimizer).variables, inner(theirs.optimizer).variables)
    compare_logs(history, expected, case.skip)


@pytest.mark.parametrize(
    "name", ["list_outputs", "a_weight_for_each_output"]
)  # names come from a list, and from a dict
def test_losses_of_outputs_are_means_over_examples_where_keras_averages_its_batches(name):
    """Keras 3.15 weighs a last batch of 2 like one of 16 in `kind_loss`; with equal batches the numbers agree."""
    expected, history, *_ = run_both(CASES[name], 48, sgd())
    for output in ("kind", "size"):
        np.testing.assert_allclose(history[f"{output}_loss"], expected[f"{output}_loss"], rtol=1e-5)
        np.testing.assert_allclose(history[f"eval/{output}_loss"], expected[f"val_{output}_loss"], rtol=1e-5)

    expected, history, theirs, _ = run_both(CASES[name], EXAMPLES, sgd())
    data = CASES[name].data()
    in_one_batch = theirs.evaluate(
        *data[:2], sample_weight=(*data, None)[2], batch_size=EXAMPLES, verbose=0, return_dict=True
    )
    assert history["eval/kind_loss"][0] == pytest.approx(in_one_batch["kind_loss"], rel=1e-5)
    assert expected["val_kind_loss"][0] != pytest.approx(in_one_batch["kind_loss"], rel=1e-3)


def test_all_losses_of_one_output_count_where_keras_takes_the_first():
    """Keras 3.15 documents a sum over a list of losses, and for a model of one output returns the first alone."""
    losses, factors = ["mse", "categorical_crossentropy"], [2.0, 0.5]
    case = Case(softmax_dense, one_hot, losses, compile={"loss_weights": factors})
    expected, history, _, trainer = run_both(case, EXAMPLES, lambda: keras.optimizers.SGD(0.0))
    x, y = one_hot()
    predicted = trainer.predict(x)
    single = [float(tf.reduce_mean(keras.losses.get(f)(y, predicted))) for f in ("mse", "categorical_crossentropy")]
    assert history["eval/loss"][0] == pytest.approx(2 * single[0] + 0.5 * single[1], rel=1e-5)
    assert expected["val_loss"][0] == pytest.approx(2 * single[0], rel=1e-5)
    assert history["eval/mean_squared_error_loss"][0] == pytest.approx(single[0], rel=1e-5)


def test_schedule_free_adamw_starts_from_the_weights_where_keras_fit_starts_from_zeros():
    """Keras 3.15's `fit` builds the optimizer in a stateless scope, which loses the copy of the initial weights."""

    def optimizer():
        return keras.optimizers.ScheduleFreeAdamW(0.01, warmup_steps=3)

    case = Case(lambda: keras.Sequential([keras.Input((6,)), L.Dense(3, activation="softmax")]), classes)
    _, _, theirs, trainer = run_both(case, 32, optimizer)
    keras.utils.set_random_seed(3)
    by_hand, own = case.model(), optimizer()
    own.build(by_hand.trainable_variables)
    x, y = classes()
    for i in (0, 16):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(y[i : i + 16], by_hand(x[i : i + 16], training=True))
            )
        own.apply(tape.gradient(loss, by_hand.trainable_variables), by_hand.trainable_variables)
    compare_variables(trainer.model.variables, by_hand.variables)
    assert models.norm_difference(theirs.weights[0].numpy(), by_hand.weights[0].numpy()) > 0.1


def test_epoch_values_of_metrics_are_those_of_keras():
    """`log_every` leaves an epoch whole: its loss and metrics are Keras' epoch logs."""
    for name in (
        "sample_weight",
        "gru_masked",
        "metric_vector",
    ):  # plain metrics: test_window_means_are_keras_epoch_means
        expected, history, *_ = run_both(CASES[name], EXAMPLES, sgd())
        for key in (key for key in expected if not key.startswith("val_")):
            theirs = np.ravel(expected[key])
            mine = [history[key][0]] if len(theirs) == 1 else [history[f"{key}/{i}"][0] for i in range(len(theirs))]
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, err_msg=f"{name}: {key}")


def test_x_alone_trains_a_model_that_adds_its_own_loss():
    x, _ = classes()
    keras.utils.set_random_seed(3)
    theirs = unsupervised()
    theirs.compile(keras.optimizers.SGD(0.1))
    expected = theirs.fit(x, epochs=2, batch_size=10, shuffle=False, verbose=0).history
    ours = looper.Trainer(model=unsupervised, optimizer=sgd(), seed=3)
    ours.optimizer.learning_rate = 0.1
    history = ours.fit(x, epochs=2, batch_size=10, shuffle=False, progress=False)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(history["activity"], expected["activity"], rtol=1e-4, atol=1e-6)
    compare_variables(ours.model.variables, theirs.variables)


def test_classes_that_are_not_named_count_one():
    """As in Keras with arrays; with datasets Keras wants a weight for each class. Sample weights multiply, where Keras
    refuses both."""
    x, y = classes()
    keras.utils.set_random_seed(3)
    theirs = softmax_dense()
    theirs.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    theirs.fit(x, y, epochs=1, batch_size=10, shuffle=False, class_weight={2: 4.0}, verbose=0)
    fit = {"epochs": 1, "batch_size": 10, "shuffle": False, "progress": False}

    def trained(data, **options):
        trainer = looper.Trainer(model=softmax_dense, optimizer=sgd(), loss="sparse_categorical_crossentropy", seed=3)
        trainer.optimizer.learning_rate = 0.1
        trainer.fit(data, **fit, **options)
        return trainer.model.variables

    compare_variables(trained((x, y), class_weight={2: 4.0}), theirs.variables)
    each = weights_of_examples()
    both = trained((x, y, each[:, None]), class_weight={2: 4.0})
    compare_variables(both, trained((x, y, each * np.where(y == 2, 4.0, 1.0).astype("float32"))))
