"""Wrong input gets one clear line: what was given, what was expected, what to do."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base.errors import StepError
from looper.data import augment
from looper.saved.workdir import Workdir
from tests.support import dense, line, models

L = models.L


def trainer(**changes):
    parts = {
        "model": lambda: models.dense(),
        "optimizer": lambda: keras.optimizers.SGD(0.1),
        "loss": models.cross_entropy,
        "metrics": lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
    }
    return looper.Trainer(**{**parts, **changes})


def fit(mine, data=None, **options):
    data = models.data() if data is None else data
    return mine.fit(data, **{"epochs": 1, "progress": False, **options})


def fails(message, kind=looper.InputError):
    """The error's text holds all words of `message`, in their order, and is one line."""
    return pytest.raises(kind, match="^[^\n]*" + "[^\n]*".join(message.split(" ... ")) + "[^\n]*$")


class OwnLoss(looper.Trainer):
    returned = staticmethod(lambda outputs: outputs)

    def build(self):
        self.model = models.dense()
        self.optimizer = keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        return self.returned(self.model(batch[0], training=training))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda y: None, "loss is None; expected a tensor"),
        (lambda y: "high", "loss is a tensor of dtype string; expected a tensor"),
        (lambda y: (y, tf.ones([7, 7, 7])), r"weights of shape \(7, 7, 7\) do not broadcast to values of shape \("),
        (lambda y: (y, y, y), r"loss is a tuple of 3 things; expected"),
    ],
)
def test_loss_of_the_wrong_kind_or_shape(returned, message):
    class Recipe(OwnLoss):
        pass

    Recipe.returned = staticmethod(returned)
    with fails(message):
        fit(Recipe(), batch_size=10)


def test_targets_that_do_not_fit_the_outputs():
    with fails(
        r"the loss 'mean_squared_error' cannot compare targets of shape \(10, 5\) ... outputs of shape \(10, 3\)"
    ):
        fit(trainer(loss="mse"), (models.data()[0], np.ones((50, 5), "float32")), batch_size=10)


def test_loss_function_that_returns_too_many_values():
    def pairwise(y, outputs):
        return tf.reduce_sum(outputs, -1)[:3]

    with fails(r"the loss 'pairwise' returned values of shape \(3,\) for a batch of 10 examples; expected one value"):
        fit(trainer(loss=pairwise), batch_size=10)


def test_batch_of_the_wrong_structure():
    with fails(r"the data yields EagerTensor|the data yields ... of shapes ... expected \(x, y\)"):
        fit(trainer(), models.data()[0])
    with fails(r"expected \(x, y\) or \(x, y, sample_weight\)"):
        fit(trainer(), {"x": models.data()[0]})


def test_batch_that_does_not_fit_the_model():
    with fails(r"the model failed on a batch x of float32\[\d+, 5\]: "):
        fit(trainer(), models.data((5,)), batch_size=10)


def test_data_that_is_no_data():
    with fails("the training data is str: expected a tf.data.Dataset of batches, arrays as x"):
        fit(trainer(), "digits.csv")
    with fails("the training data is tuple of float, int: expected"):
        fit(trainer(), (1.0, 1))
    with fails("the training data is dict of object: expected"):
        fit(trainer(), {"x": [1.0], "y": object()})
    with fails("the training data is tuple of object: expected"):
        fit(trainer(), ([object()], [1]))
    with fails("the training data is list of object: expected"):
        fit(trainer(), [object()])
    with fails("a list of 2 items is no array: its lists differ in length"):
        fit(trainer(), ([[1, 2], [3]], [0, 1]))
    with fails("there is no data to train on: give fit"):
        trainer().fit(epochs=1, progress=False)
    with fails("different numbers of examples: shapes"):
        fit(trainer(), (np.ones((5, 6), "float32"), np.ones(4, "int32")))
    with fails("the data yields scalars, not batches"):
        fit(trainer(), tf.data.Dataset.from_tensor_slices((np.ones((5, 6)), np.ones(5))))
    with fails("batch_size=4 is for arrays and examples: a tf.data.Dataset has its batches already"):
        fit(trainer(), tf.data.Dataset.from_tensor_slices(models.data()).batch(5), batch_size=4)


@pytest.mark.parametrize("which", ["arrays", "dataset", "unknown length"])
def test_empty_data(which):
    x, y = models.data()
    data = {
        "arrays": (x[:0], y[:0]),
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(8).take(0),
        "unknown length": tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: False).batch(8),
    }[which]
    with fails("the data is empty"):
        fit(trainer(), data)
    if which == "unknown length":
        with fails("the evaluation data is empty"):
            trainer().evaluate(data)


def test_a_batch_without_examples():
    x, y = models.data(examples=24)

    def batches():
        for start, stop in ((0, 8), (8, 8), (8, 24)):
            yield x[start:stop], y[start:stop]

    with fails(r"a batch has no examples \(step 2\)"):
        fit(trainer(), batches)


@pytest.mark.parametrize("known", [True, False])
def test_data_that_ends_before_steps(known):
    data = tf.data.Dataset.from_tensor_slices(models.data()).batch(10)
    data = data if known else data.filter(lambda x, y: True)
    with pytest.warns(
        UserWarning, match="the data ends after step 5, before steps=13 is reached, and is read again"
    ) as told:
        rolled = trainer()
        fit(rolled, data, epochs=None, steps=13)
    assert (rolled.step, rolled.epoch) == (13, 2)
    assert sum("is read again" in str(each.message) for each in told) == 1
    whole = trainer()
    fit(whole, data.repeat(), epochs=None, steps=13)
    for a, b in zip(rolled.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with fails(r"the data ends after step 5, before ... steps_per_epoch=4"):
        fit(trainer(), data, epochs=3, steps_per_epoch=4)
    with fails("the evaluation data ends after 5 batches, before eval_steps=6|evaluation data ended"):
        fit(trainer(), eval_data=data, eval_steps=6)


def test_data_that_never_ends():
    endless = tf.data.Dataset.from_tensor_slices(models.data()).repeat().batch(10)
    with fails("the data never ends, so an epoch has no end: give steps_per_epoch="):
        fit(trainer(), endless)
    with fails("the evaluation data never ends: give eval_steps="):
        trainer().evaluate(endless)
    assert trainer().evaluate(endless, steps=3)["examples"] == 30


def test_trainable_variable_without_a_gradient():
    class Recipe(OwnLoss):
        def build(self):
            super().build()
            self.unused = L.Dense(2, name="unused")
            self.unused.build((None, 6))

    with fails("no gradient reaches the trainable variables unused/kernel, unused/bias"):
        fit(Recipe(), batch_size=10)


def test_monitors():
    callbacks = looper.callbacks
    with fails("monitor='eval/los' is not logged: did you mean 'eval/loss'"):
        fit(trainer(), eval_data=models.data(), callbacks=[callbacks.EarlyStopping("eval/los")])
    with fails("monitor='val_loss' is not logged: did you mean 'eval/loss'"):
        fit(trainer(), eval_data=models.data(), callbacks=[callbacks.EarlyStopping("val_loss")])
    with fails("monitor='eval/loss' is not logged, because nothing is evaluated: give fit eval_data="):
        fit(trainer(), callbacks=[callbacks.EarlyStopping("eval/loss")])
    with fails("needs a directory: give the Trainer workdir="):
        fit(trainer(), callbacks=[callbacks.Checkpoint(best="loss")])
    with fails("expected an instance of a looper.callbacks.Callback or keras.callbacks.Callback"):
        fit(trainer(), callbacks=["EarlyStopping"])
    with fails("ProgbarLogger: looper draws a progress bar of its own"):
        fit(trainer(), callbacks=[keras.callbacks.ProgbarLogger()])


def test_options():
    with fails("precision='bfloat16': did you mean 'mixed_bfloat16'"):
        trainer(precision="bfloat16")
    with fails("has no option 'clipnorm': did you mean 'clip_norm'"):
        trainer(clipnorm=1.0)
    with fails("Trainer has no option 'progress': it is an option of fit."):
        trainer(progress=False)
    with fails("fit has no option 'workdir': it is an option of Trainer."):
        fit(trainer(), workdir="runs")
    with fails("fit has no option 'epoch': did you mean 'epochs'"):
        fit(trainer(), epoch=3)
    with fails("fit has no option 'validation_data': looper calls it eval_data"):
        fit(trainer(), validation_data=models.data())
    with fails("fit has no option 'verbose': looper calls it progress, as in progress=False"):
        fit(trainer(), verbose=0)
    for value in ({"shuffle": "yes"}, {"progress": 0}):
        with fails(f"{next(iter(value))}={next(iter(value.values()))!r}: expected True or False"):
            fit(trainer(), **value)
    with fails("resume=1: expected 'auto', 'weights', True or False"):
        fit(trainer(), resume=1)
    for method in ("evaluate", "predict", "predict_batches", "audit", "check_replicas"):
        with fails(f"{method} has no option 'batch_sizes': did you mean 'batch_size'"):
            getattr(trainer(), method)(models.data(), batch_sizes=3)
    for method in ("evaluate", "predict"):
        with fails(f"{method}\\(\\) takes the data as one argument"):
            getattr(trainer(), method)(*models.data())
    with fails("strategy='miror': did you mean 'mirrored'"):
        trainer(strategy="miror")
    with fails("epochs=None and steps=None: give one of them"):
        fit(trainer(), epochs=None)
    with fails("epochs=1 and steps=5: give one of them"):
        fit(trainer(), steps=5)
    with fails("epochs=-1: expected a positive whole number"):
        fit(trainer(), epochs=-1)
    with fails("eval_every=3: expected a looper.Every"):
        fit(trainer(), eval_every=3)
    with fails("give exactly one of steps, epochs, seconds and minutes"):
        looper.Every(steps=3, epochs=1)
    with fails("clip_norm=1.0 and clip_value=2.0: give one"):
        trainer(clip_norm=1.0, clip_value=2.0)
    with fails("the Trainer has clip_norm=1.0 and the optimizer clipnorm=2.0: keep one"):
        trainer(optimizer=keras.optimizers.SGD(clipnorm=2.0), clip_norm=1.0)
    with fails("optimizer='sgdd': Keras knows no optimizer of this name; did you mean 'sgd'"):
        trainer(optimizer="sgdd")
    with fails("optimizer=3: expected a Keras optimizer"):
        trainer(optimizer=3)
    with fails("Keras knows no loss of this name"):
        trainer(loss="crossentropyy")
    with fails("metrics: 'acuracy' is str; expected Keras metrics"):
        trainer(metrics=["acuracy"])
    with fails("ema=1.5: expected a decay between 0 and 1"):
        trainer(ema=1.5)
    with fails("there is no optimizer"):
        fit(trainer(optimizer=None))


def test_own_train_step_with_accumulate():
    class Recipe(OwnLoss):
        def train_step(self, batch):
            return {}

    class Minimizes(OwnLoss):
        def train_step(self, batch):
            for _ in range(2):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(self.model(batch[0], training=True))
                self.minimize(loss, tape)
            return {"loss": loss}

    with fails(
        r"accumulate=2: train_step calls neither super\(\).train_step\(batch\) nor self.minimize, and so cannot"
    ):
        fit(Recipe(accumulate=2))
    with fails("accumulate=2: train_step calls minimize 2 times, and so cannot be done in micro-batches: leave"):
        fit(Minimizes(accumulate=2))


def test_model_made_in_the_wrong_place():
    model = models.dense()
    with fails("the model was made outside the strategy's scope, which has 2 replicas: give a function"):
        trainer(model=model, strategy="mirrored", devices=2)
    with fails("the model was made with the dtype policy 'float32', but precision='mixed_bfloat16'"):
        trainer(model=model, precision="mixed_bfloat16")


def test_too_late_or_too_many_devices():
    with fails("devices=5: TensorFlow has already started with 2 CPU"):
        trainer(strategy="mirrored", devices=5)


def test_fewer_examples_than_replicas():
    """A whole pass of such batches is a mistake; a last batch may be small (tests/step/test_idle_replicas.py)."""
    x, y = models.data(examples=9)
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    for data, options in (
        ((x, y), {"batch_size": 1}),
        ((x[:1], y[:1]), {"batch_size": 8}),
        (examples.batch(1), {}),
        (examples.batch(1, drop_remainder=True), {}),
        (lambda: ((x[i : i + 1], y[i : i + 1]) for i in range(9)), {}),
    ):
        with fails(r"a batch has 1 example\(s\), fewer than the 2 replicas: choose a batch size of at least 2"):
            fit(trainer(strategy="mirrored", devices=2), data, **options)


def test_an_empty_batch_on_replicas():
    data = tf.data.Dataset.from_tensor_slices(models.data(examples=9)).batch(8)
    empty = data.take(1).map(lambda x, y: (x[:0], y[:0]))
    with fails(r"a batch has no examples \(step 2\)"):
        fit(trainer(strategy="mirrored", devices=2), data.take(1).concatenate(empty))
    with fails(r"a batch has no examples \(step 1\)"):
        fit(trainer(strategy="mirrored", devices=2), empty.concatenate(data))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a file system read-only for itself by being another user")
def test_unwritable_workdir(tmp_path):
    """As user `nobody` for a moment: root may write anywhere."""
    os.seteuid(65534)
    try:
        with fails(r"cannot write there \(Permission denied\)"):
            Workdir(tmp_path / "run")
    finally:
        os.seteuid(0)


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with fails("workdir=.*run': cannot write there"):
        fit(trainer(workdir=tmp_path / "run"))


def test_workdir_of_another_configuration(tmp_path):
    fit(trainer(workdir=tmp_path))
    for changes, options, message in [
        ({"optimizer": lambda: keras.optimizers.SGD(0.2)}, {}, "optimizer.SGD.learning_rate was 0.1.*, is now 0.2"),
        ({"model": lambda: models.dense(dropout=0.1)}, {}, "model.Sequential.2.Dropout was not there, is now there"),
        ({}, {"batch_size": 5}, "data.batch_size was 32, is now 5"),
        ({"accumulate": 2}, {}, "options.accumulate was 1, is now 2"),
        ({"seed": 1}, {}, "options.seed was 0, is now 1"),
        ({"loss": lambda: keras.losses.Poisson()}, {}, "loss.SparseCategoricalCrossentropy was"),
    ]:
        with fails(f"holds a run of another configuration: .*{message}.*resume='weights' to start anew"):
            fit(trainer(workdir=tmp_path, **changes), **options)
    fit(trainer(workdir=tmp_path), epochs=2)


@pytest.mark.parametrize("length", ["known", "unknown"])
def test_non_finite_loss_names_the_step(length, tmp_path):
    x, y = models.data(examples=64)
    x[21, 0] = np.inf  # batch normalization makes NaN of it; NaN itself becomes 0 in some CPUs' relu
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = data if length == "known" else data.filter(lambda x, y: True)
    # without a ReLU: on some processors it makes 0 of NaN, and only the gradient shows it
    mine = trainer(model=lambda: keras.Sequential([keras.Input((6,)), L.Dense(3)]), workdir=tmp_path)
    with fails("the loss became nan at step 3", looper.NonFiniteLossError):
        fit(mine, data, save_every=looper.Every(steps=1))
    assert not (tmp_path / "checkpoints" / "step_00000003").exists()


def test_an_error_inside_tensorflow_names_the_step():
    def checked(x, y):
        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 1e3, "too bright")]):
            return tf.identity(x), y

    x, y = models.data(examples=40)
    x[33] = 1e6
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).map(checked)
    with fails("TensorFlow failed in step.*assertion failed: .too bright", StepError):
        fit(trainer(), data)


def test_minimize_outside_a_step():
    mine = trainer()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(mine.model(np.ones((2, 6), "float32"), training=True))
    with fails("minimize.. was called outside a step"):
        mine.minimize(loss, tape)


def test_predict_and_save():
    with fails("the data never ends: predict"):
        trainer().predict(tf.data.Dataset.from_tensor_slices(models.data()).repeat().batch(3))
    with fails("save.. needs a path, or a Trainer with workdir="):
        trainer().save()
    with fails("save_model.*ends in .keras, or a directory"):
        trainer().save_model("model.h5")
    with fails("is not a checkpoint: expected a directory"):
        trainer().restore("/tmp")


def test_there_is_no_tpu():
    with fails(r"strategy='tpu': no TPU is found here \("):
        looper.Trainer(model=None, strategy="tpu")


def test_what_a_keras_user_types_first():
    with pytest.raises(looper.InputError, match=r"fit\(\(x, y\), epochs=...\), not fit\(x, y\)"):
        dense.trainer().fit(dense.X, dense.Y, epochs=1)
    with pytest.raises(looper.InputError, match=r"evaluate\(\(x, y\)\), not evaluate\(x, y\)"):
        dense.trainer().evaluate(dense.X, dense.Y)
    with pytest.raises(looper.InputError, match="there is no model"):
        dense.fit(dense.trainer(model=None), epochs=1)
    with pytest.raises(looper.InputError, match="strategy=3: one of"):
        dense.trainer(strategy=3)
    with pytest.raises(looper.InputError, match="a tensor as a Python bool"):

        class Branch(looper.Trainer):
            def build(self):
                self.weight, self.optimizer = tf.Variable(1.0), keras.optimizers.SGD(0.1)

            def compute_loss(self, batch, training):
                return self.weight if tf.reduce_sum(batch) > 0 else -self.weight

        Branch().fit(dense.X, epochs=1, progress=False)
    dense.fit(dense.trainer(), epochs=np.int64(1))


class SquaredLoss(looper.Trainer):
    def build(self):
        self.model, self.optimizer = line.model(), keras.optimizers.SGD(0.1)

    def compute_loss(self, batch, training):
        x, y = batch
        return (self.model(x, training=training) - y) ** 2


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: SquaredLoss().fit((line.X, line.X), epochs=1, class_weight={0: 1.0}),
            "class_weight is for looper's own compute_loss",
        ),
        (
            lambda: line.trainer(loss_weights="a").fit((line.X, line.X), epochs=1, progress=False),
            "loss_weights has 'a'; expected numb",
        ),
        (
            lambda: line.trainer(metrics=["mae"], loss=None).fit(line.X, epochs=1, progress=False),
            "no targets y to compare with|no l",
        ),
        (lambda: augment.crop(1.5), "crop: padding=1.5: expected a positive whole number"),
        (lambda: augment.mixup(-1.0), "mixup: alpha=-1.0: expected a positive number"),
        (lambda: augment.cutout(-2), "cutout: size=-2: expected a positive whole number"),
        (lambda: augment.augmented((line.X, line.X), augment.flip(), seed="a"), "seed='a': expected a whole number"),
    ],
)
def test_one_line(attempt, message):
    with pytest.raises(looper.InputError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)
