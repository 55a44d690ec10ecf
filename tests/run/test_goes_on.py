"""What a trainer goes on from: a checkpoint that was restored, whatever is done first, and one that could not be."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper import callbacks
from tests.support import inside, models

L = models.L
X, Y = models.data(examples=24)
FIT = {"batch_size": 8, "progress": False, "shuffle": False}


class Own(looper.Trainer):
    """Its optimizer is built by its first step, its metric when the targets are known."""

    def build(self):
        self.model = keras.Sequential([keras.Input((6,)), L.Dense(8, name="base"), L.Dropout(0.3), L.Dense(3)])
        self.adam, self.loss, self.metrics = keras.optimizers.Adam(0.05), models.cross_entropy(), ["accuracy"]

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(batch, training=True)
        self.minimize(loss, tape, self.adam)
        return {"loss": loss}


def weights(trainer):
    return [w.numpy() for w in trainer.model.weights]


def assert_same(one, other):
    for mine, theirs in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture
def saved(tmp_path):
    """An undisturbed run of nine steps, and its checkpoint after four."""
    trainer = Own(workdir=tmp_path / "run")
    trainer.fit((X, Y), steps=9, save_every=looper.Every(steps=4), **FIT)
    return trainer, tmp_path / "run" / "checkpoints" / "step_00000004"


FIRST = {
    "nothing": lambda trainer: None,
    "evaluate": lambda trainer: trainer.evaluate((X, Y)),
    "predict": lambda trainer: trainer.predict(X),
    "audit": lambda trainer: trainer.audit((X[:8], Y[:8])),
}


@pytest.mark.parametrize("first", FIRST)
def test_what_is_done_first_changes_nothing(first, saved):
    undisturbed, path = saved
    again = Own()
    again.restore(path)
    FIRST[first](again)
    again.fit((X, Y), steps=9, **FIT)
    assert_same(again, undisturbed)


def test_a_checkpoint_that_is_saved_again_is_whole(saved, tmp_path):
    undisturbed, path = saved
    between = Own()
    between.restore(path)
    between.save(tmp_path / "again")
    last = Own()
    last.restore(tmp_path / "again")
    last.fit((X, Y), steps=9, **FIT)
    assert_same(last, undisturbed)


def test_single_batches_go_on_from_it(saved):
    _, path = saved
    batches = [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[:4], Y[:4])]
    one, other = Own(), Own()
    for trainer in (one, other):
        trainer.restore(path)
    other.audit(batches[0])  # which makes all variables first
    assert [one.train_on_batch(batch)["loss"] for batch in batches] == [
        other.train_on_batch(batch)["loss"] for batch in batches
    ]
    assert int(one.adam.iterations) == 4 + 3


@pytest.mark.filterwarnings("ignore:.*due after the last step")
def test_what_is_made_in_mid_run_is_not_of_the_checkpoint(tmp_path):
    def run(folder, *steps):
        class Predict(callbacks.Callback):
            def on_epoch_end(self, epoch, logs):
                self.run.predict(X)

        for until in steps:

            def model():
                made = keras.Sequential([keras.Input((6,)), L.Dense(8, name="base"), L.Dense(3)])
                looper.freeze(made, layers="base")
                return made

            trainer = looper.Trainer(
                model=model, optimizer="adam", loss=models.cross_entropy, ema=0.9, workdir=tmp_path / folder
            )
            trainer.fit((X, Y), steps=until, callbacks=[callbacks.Unfreeze(looper.At([5]), "base"), Predict()], **FIT)
        return trainer

    assert_same(run("stopped", 4, 9), run("undisturbed", 9))


def test_a_model_that_is_built_after_restore_is_trained_as_the_checkpoint_says(tmp_path):
    def make():
        def model():
            return keras.Sequential([L.Dense(8, name="base"), L.Dense(3)])

        return looper.Trainer(model=model, optimizer="sgd", loss=models.cross_entropy)

    frozen = make()
    frozen.model.layers[0].trainable = False
    frozen.fit((X, Y), steps=3, **FIT)
    frozen.save(tmp_path / "saved")
    again = make()
    again.restore(tmp_path / "saved")
    again.model(X)
    again.fit((X, Y), steps=6, **FIT)
    assert not again.model.layers[0].trainable
    np.testing.assert_array_equal(weights(again)[0], weights(frozen)[0])


def test_a_checkpoint_of_another_model_is_left_alone(saved, tmp_path):
    _, path = saved

    def make(**options):
        return looper.Trainer(model=models.dense(norm=False), optimizer="sgd", loss=models.cross_entropy, **options)

    trainer = make(workdir=tmp_path / "own")
    before = weights(trainer)
    with pytest.raises(looper.InputError, match="is of another model"):
        trainer.restore(path)
    assert trainer.step == 0 and all(map(np.array_equal, weights(trainer), before))
    trainer.fit((X, Y), steps=2, **FIT)
    assert trainer.step == 2


def test_a_callback_that_could_not_begin_can_be_used(tmp_path):
    stopping = callbacks.EarlyStopping("eval/loss", patience=9)
    with pytest.raises(looper.InputError, match="nothing is evaluated"):
        Own().fit((X, Y), steps=3, callbacks=[stopping], **FIT)
    for _ in range(2):
        Own().fit((X, Y), epochs=2, eval_data=(X, Y), callbacks=[stopping], **FIT)
    assert stopping.state()["waited"] <= 1


def test_flags_that_are_set_before_an_epoch_count_at_the_next_boundary():
    class Toggle(callbacks.Callback):
        def on_epoch_begin(self, epoch):
            self.run.model.get_layer("base").trainable = epoch % 2 == 1

    class Logged(looper.Trainer):
        def compute_loss(self, batch, training):
            logs = {f"size{i}": tf.reduce_sum(v.value**2) for i, v in enumerate(self.model.trainable_variables)}
            return super().compute_loss(batch, training), logs

    def model():
        return keras.Sequential([keras.Input((6,)), L.Dense(8, name="base"), L.Dense(3)])

    trainer = Logged(model=model, optimizer=lambda: keras.optimizers.SGD(0.1), loss=models.cross_entropy)
    guard = callbacks.NanGuard("rollback")
    trainer.fit((X, Y), epochs=4, callbacks=[Toggle(), guard], log_every=looper.Every(steps=2), **FIT)
    assert trainer.step == 12 and inside.kinds(trainer).count("train") >= 2


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("title", "x", "Mine.title is no method"),
        ("needs", "input_wait", "Mine.needs is str: expected a tuple"),
        ("needs", ("wait",), "Mine.needs='wait': did you mean 'input_wait'"),
        ("logs", "loss", "Mine.logs is str: expected a tuple"),
    ],
)
def test_a_name_that_looper_reads_is_told(attribute, value, message):
    class Mine(callbacks.Callback):
        def __init__(self):
            setattr(self, attribute, value)

    with pytest.raises(looper.InputError, match=message):
        Own().fit((X, Y), steps=1, callbacks=[Mine()], **FIT)


def test_a_run_that_overfits_is_another_run(tmp_path):
    data = tf.data.Dataset.from_tensor_slices(models.data(examples=50)).batch(8)
    options = {"model": models.dense, "optimizer": "sgd", "loss": models.cross_entropy, "workdir": tmp_path}
    looper.Trainer(**options).fit(data, epochs=2, overfit=2, eval_steps=1, progress=False)
    with pytest.raises(looper.InputError, match=r"another configuration: options.overfit was 2, is now not there"):
        looper.Trainer(**options).fit(data, epochs=3, progress=False)


@pytest.mark.parametrize("kind", ["arrays", "dataset", "endless"])
def test_overfit_trains_on_the_first_batches_alone_and_evaluates_on_them(kind):
    """As a hand-written loop over these two batches; the run is as long as without it."""
    x, y = models.data(examples=50)
    data = (x, y) if kind == "arrays" else tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    data = data.repeat() if kind == "endless" else data
    size = {"batch_size": 8} if kind == "arrays" else {}
    length = {"steps_per_epoch": 7} if kind == "endless" else {}
    mine = looper.Trainer(
        model=models.dense, optimizer=lambda: keras.optimizers.SGD(0.1), loss=models.cross_entropy, execution="graph"
    )
    history = mine.fit(data, epochs=3, overfit=2, eval_data=(x[40:], y[40:]), progress=False, **size, **length)
    assert mine.step == 3 * 7
    assert history["eval/examples"] == [16] * 3
    other = looper.Trainer(
        model=models.dense, optimizer=lambda: keras.optimizers.SGD(0.1), loss=models.cross_entropy, execution="graph"
    )
    for step in range(21):
        first = (step if kind == "endless" else step % 7) % 2 * 8  # a pass begins with the first batch
        other.train_on_batch((x[first : first + 8], y[first : first + 8]))
    for a, b in zip(mine.model.weights, other.model.weights, strict=True):
        assert models.norm_difference(np.asarray(a), np.asarray(b)) < 1e-6  # float32
    assert history["eval/loss"][-1] == pytest.approx(other.evaluate((x[:16], y[:16]))["loss"], rel=1e-5)
