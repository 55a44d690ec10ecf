"""What several workers do together: run as `python -m tests.support.scenarios FOLDER [NAME...]` on each of them.

Writes `FOLDER/result_K.json`: what each scenario returned on worker K, by name. An error is its text.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper
from looper.base.errors import PeerLostError
from looper.saved import workdir
from looper.step.programs import StackedExecution
from tests.support import golden, graphs, inside, models

EVERY_STEP = looper.Every(steps=1)


def make_trainer(workdir=None, dropout=0.0, norm=False, **options):
    return looper.Trainer(
        model=lambda: models.dense(dropout, norm),
        optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        workdir=workdir,
        **options,
    )


def fit(trainer, **options):
    return trainer.fit(
        models.data(), **{"batch_size": 8, "steps": 20, "progress": False, "log_every": EVERY_STEP} | options
    )


def weights(trainer):
    return [w.numpy().tolist() for w in trainer.model.trainable_variables]


def logs(history, *names):
    names = names or ("loss", "accuracy", "gradient_norm")
    return {name: history[name] for name in names}


def refused(function):
    try:
        function()
    except looper.InputError as error:
        return str(error)
    return None


class Remember(looper.callbacks.Callback):
    """Which steps it was called at."""

    def __init__(self, every=None):
        self.every, self.steps = every, []

    def on_step(self, step, logs):
        self.steps.append(step)


def training_evaluation_prediction(folder, rank):
    trainer = make_trainer()
    history = fit(trainer, eval_data=models.data(examples=21), eval_every=looper.Every(steps=10))
    return {
        "weights": weights(trainer),
        "logs": logs(history) | logs(history, "eval/loss", "eval/accuracy", "eval/examples"),
        "evaluation": trainer.evaluate(models.data(examples=21), batch_size=5),
        "prediction": trainer.predict(models.data(examples=21)[0], batch_size=5).tolist(),
    }


def metrics_of_any_kind(folder, rank):
    """One with variables of two dtypes, one of which it empties to something else than 0, beside Keras' own."""

    class FromFive(keras.Metric):
        def __init__(self):
            super().__init__(name="from_five")
            self.start = self.add_variable((), "zeros", name="start")
            self.count = self.add_variable((), "zeros", dtype="int64", name="count")

        def reset_state(self):
            super().reset_state()
            self.start.assign(5.0)

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.count.assign_add(tf.shape(y_true, "int64")[0])

        def result(self):
            return self.start + tf.cast(self.count, "float32")

    trainer = looper.Trainer(
        model=lambda: models.dense(norm=False),
        optimizer=lambda: keras.optimizers.SGD(0.1),
        loss=models.cross_entropy,
        metrics=lambda: [FromFive(), keras.metrics.SparseCategoricalAccuracy("accuracy")],
        execution="graph",
    )
    history = fit(trainer, steps=6, log_every=looper.Every(steps=2))
    [steps] = inside.executions(trainer)
    operations = inside.operations(trainer, steps)
    return {"logs": logs(history, "from_five", "accuracy"), "collectives": operations["CollectiveReduceV2"]}


def stopping_and_continuing(folder, rank):
    options = {"dropout": 0.5, "norm": True}
    undisturbed = make_trainer(folder / "undisturbed", **options)
    fit(undisturbed, save_every=None)
    first = make_trainer(folder / "stopped", **options)
    fit(first, steps=11)
    second, seen = make_trainer(folder / "stopped", **options), Remember()
    fit(second, save_every=None, callbacks=[seen])
    statistics = [v.numpy().tolist() for v in second.model.non_trainable_variables]
    return {
        "same": weights(second) == weights(undisturbed),
        "same_statistics": statistics == [v.numpy().tolist() for v in undisturbed.model.non_trainable_variables],
        "statistics": statistics[:1],
        "began": seen.steps[0],
        "files": sorted(path.name for path in (folder / "stopped" / "checkpoints" / "step_00000011").iterdir()),
    }


def an_older_loopers_run(folder, rank):
    """Raises if it does not go on as it did then."""
    trainer = golden.CASES["workers"].trainer()
    trainer.restore(golden.checkpoint("workers"))
    golden.check("workers", golden.CASES["workers"].run(trainer))
    return {"step": trainer.step}


def the_chief_writes(folder, rank):
    trainer = make_trainer(folder / "chief")
    fit(trainer, callbacks=[looper.callbacks.CSVLogger()], eval_data=models.data())
    trainer.save_model(folder / f"model_of_{rank}.keras")
    rows = (folder / "chief" / "metrics.jsonl").read_text().splitlines() if rank == 0 else []
    return {"rows": len(rows), "model": (folder / f"model_of_{rank}.keras").exists()}


def decisions_by_a_clock(folder, rank):
    """Worker 1 has a clock that goes three times as fast, and started somewhere else."""
    true = time.monotonic
    if rank:
        time.monotonic = lambda: 1e6 + 3 * true()
    try:
        ticking, timed = Remember(looper.Every(seconds=0.05)), make_trainer(folder / "clock")
        fit(timed, steps=10**6, max_time=1.0, callbacks=[ticking], log_every=looper.Every(seconds=0.3))
    finally:
        time.monotonic = true
    return {"ticks": ticking.steps, "ended": timed.step, "rows": [row["step"] for row in timed.history.rows]}


def early_stopping(folder, rank):
    trainer = make_trainer()
    stop = looper.callbacks.EarlyStopping("eval/loss", patience=1, min_delta=10.0)
    fit(trainer, steps=200, eval_data=models.data(), eval_every=looper.Every(steps=5), callbacks=[stop])
    return {"ended": trainer.step}


def a_decision_of_one_worker(folder, rank):
    """A callback of worker 1 wants to stop at step 4, one of the chief at step 8."""

    class Own(looper.callbacks.Callback):
        def on_step(self, step, logs):
            if step == (8 if rank == 0 else 4):
                self.run.stop("enough")

    trainer = make_trainer()
    fit(trainer, callbacks=[Own()])
    return {"ended": trainer.step}


def logs_of_callbacks(folder, rank):
    """The chief's, though each worker has another value, or none; they stop both workers."""

    class Ranked(looper.callbacks.Callback):
        logs = ("rank",)

        def on_step(self, step, logs):
            self.run.log("rank", 10 * step + rank)

    class ChiefOnly(looper.callbacks.Callback):
        logs, chief_only = ("alone",), True

        def on_step(self, step, logs):
            self.run.log("alone", 1.0)

    class Undeclared(looper.callbacks.Callback):
        def on_step(self, step, logs):
            self.run.log("undeclared", 1.0)

    trainer = make_trainer()
    stop = looper.callbacks.EarlyStopping("alone", patience=2)
    history = fit(trainer, steps=200, callbacks=[Ranked(), ChiefOnly(), stop])
    refusal = refused(lambda: fit(make_trainer(), callbacks=[Undeclared()]))
    return {"rank": history["rank"], "alone": history["alone"], "ended": trainer.step, "undeclared": refusal}


def a_signal_to_one_worker(folder, rank):
    class Terminate(looper.callbacks.Callback):
        def on_execution(self, step):
            if step >= 7 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer, code = make_trainer(folder / "signal"), None
    try:
        fit(trainer, steps=10**6, callbacks=[Terminate()])
    except SystemExit as error:
        code = error.code
    saved = sorted(path.name for path in (folder / "signal" / "checkpoints").iterdir())
    return {"code": code, "step": trainer.step, "saved": saved}


def other_options(folder, rank):
    averaged = refused(lambda: make_trainer(ema=0.9 if rank else None))  # before one waits for what the other makes
    return {"error": refused(lambda: make_trainer(clip_norm=1.0 + rank)), "averaged": averaged}


def another_model(folder, rank):
    def make():
        looper.Trainer(
            model=lambda: keras.Sequential([keras.Input((6,)), keras.layers.Dense(3 + rank)]),
            optimizer="sgd",
            loss=models.cross_entropy,
        )

    try:
        make()
    except (looper.InputError, PeerLostError) as error:
        return {"error": str(error)}
    return {"error": None}


def another_fit(folder, rank):
    return {"error": refused(lambda: fit(make_trainer(), steps=20 + rank))}


def another_workdir(folder, rank):
    workdir.SHARED_SECONDS = 1.0  # not the ten seconds that a user's storage has
    return {"error": refused(lambda: fit(make_trainer(folder / f"workdir_of_{rank}")))}


def batches_too_small(folder, rank):
    return {"error": refused(lambda: fit(make_trainer(), batch_size=1))}


def dropout_masks(folder, rank):
    """Each worker's part of what the first dropout draws, as the outputs of a model that is nothing else."""
    masks = []
    for _ in range(2):

        class Masks(looper.Trainer):
            def build(self):
                self.dropout = keras.layers.Dropout(0.5)
                self.seen = tf.Variable(
                    tf.zeros([2, 64]),
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                self.weight = tf.Variable(1.0)
                self.optimizer = keras.optimizers.SGD(0.0)

            def compute_loss(self, batch, training):
                dropped = self.dropout(tf.ones([1, 64]), training=training)
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                if training:
                    self.seen.assign(tf.where(tf.range(2)[:, None] == replica, dropped, tf.zeros([2, 64])))
                return self.weight * tf.reduce_mean(dropped)

        trainer = Masks()
        trainer.fit(np.zeros((2, 1), "float32"), batch_size=2, steps=1, progress=False)
        masks.append(trainer.seen.numpy().tolist())
    return {"masks": masks}


class Shares(looper.Trainer):
    """Each worker loads every second example, in batches of its own: the first one of 5, the other of 4."""

    def build(self):
        self.model = models.dense(norm=False)
        self.optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        self.loss = models.cross_entropy()
        self.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]

    def _share(self, context):
        x, y = models.data(examples=45)
        workers, rank = context.num_input_pipelines, context.input_pipeline_id
        chosen = np.arange(45) % 9 >= 5 if rank else np.arange(45) % 9 < 5 if workers > 1 else np.arange(45) >= 0
        own = tf.data.Dataset.from_tensor_slices((x[chosen], y[chosen]))
        return own.batch(9 if workers == 1 else 5 - rank)

    def train_data(self, context):
        return self._share(context).repeat()

    def eval_data(self, context):
        return self._share(context)


def shares_of_the_data(folder, rank):
    trainer = Shares(workdir=folder / "shares")
    options = {"steps_per_epoch": 5, "progress": False, "log_every": EVERY_STEP}
    history = trainer.fit(steps=7, **options)
    again = Shares(workdir=folder / "shares")
    again.fit(steps=20, **options)
    # how many batches a stack has depends on the clock: workers that sum at the end of each call have none
    alone = "TF_CONFIG" not in os.environ
    assert [isinstance(each, StackedExecution) for each in inside.executions(again, "eval")] == [alone]
    return {
        "weights": weights(again),
        "logs": logs(again.history) | logs(again.history, "eval/loss", "eval/accuracy", "eval/examples"),
        "first": logs(history, "loss"),
        "evaluation": again.evaluate(),
    }


def shares_of_other_lengths(folder, rank):
    class Uneven(Shares):
        def train_data(self, context):
            return self._share(context).take(5 - rank)

    return {"error": refused(lambda: Uneven().fit(epochs=1, progress=False))}


def callbacks_of_keras(folder, rank):
    """A file of each worker shows who writes; stopping early is for all."""
    path, trainer = folder / f"keras_{rank}.csv", make_trainer()
    stop = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=10.0)
    fit(
        trainer,
        steps=70,
        eval_data=models.data(),
        log_every=looper.Every(epochs=1),
        callbacks=[keras.callbacks.CSVLogger(path), stop],
    )
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    refusal = refused(lambda: fit(make_trainer(), callbacks=[backup]))
    return {"wrote": path.exists(), "ended": trainer.step, "error": refusal}


def what_differs_unnoticed(folder, rank):
    """What a rank may do otherwise, as scripts do, is told before the workers wait for each other."""
    x, y = models.data()
    tf.random.set_seed(None)  # as in a script that makes its data before the Trainer, which sets it
    unseeded = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(50).batch(8)
    unseeded_options = {"steps": 5, "progress": False}
    own = [Remember()] if rank == 0 else []
    return {
        "workdir": refused(lambda: make_trainer(folder / "one" if rank == 0 else None)),
        "evaluation": refused(lambda: fit(make_trainer(), eval_data=models.data() if rank == 0 else None)),
        "callbacks": refused(lambda: fit(make_trainer(), callbacks=own)),
        "dataset": refused(lambda: make_trainer().fit(unseeded, **unseeded_options)),
    }


def weights_of_another_run(folder, rank):
    """`resume="weights"` takes the weights, and leaves each replica its own seeds."""
    fit(make_trainer(folder / "weights", dropout=0.5), steps=7)
    fresh = make_trainer(folder / "weights", dropout=0.5)
    seeds = [v.numpy().tolist() for v in fresh.model.non_trainable_variables if "seed" in v.name]
    fit(fresh, steps=1, resume="weights")
    after = [v.numpy().tolist() for v in fresh.model.non_trainable_variables if "seed" in v.name]
    return {"seeds": seeds, "after": after}


def modes_of_execution(folder, rank):
    """Forward and backward as an XLA program on each worker; "auto" measures, and all take what the chief found."""
    found = {}
    for execution in ("graph", "xla_step", "auto"):
        trainer = make_trainer(folder / execution, execution=execution)
        # long enough for "auto" to measure: see looper.step.autotune.LEAST_STEPS
        history = fit(trainer, steps=20 if execution != "auto" else 1200, log_every=looper.Every(steps=10))
        found[execution] = {"weights": weights(trainer), "loss": history["loss"], "mode": inside.mode(trainer)}
    found["loop"] = refused(lambda: make_trainer(execution="xla_loop"))
    return found


def gradients_with_noise(folder, rank):
    class Noise(looper.Trainer):
        def transform_gradients(self, gradients, variables):
            return [g + keras.random.normal(g.shape, seed=self.shared_random) for g in gradients]

    trainer = Noise(model=models.dense, optimizer="sgd", loss=models.cross_entropy)
    trainer.fit(models.data(), steps=3, batch_size=8, progress=False)
    return {"weights": [w.numpy().tolist() for w in trainer.model.trainable_variables]}


SCENARIOS = [
    gradients_with_noise,
    modes_of_execution,
    callbacks_of_keras,
    what_differs_unnoticed,
    weights_of_another_run,
    shares_of_the_data,
    shares_of_other_lengths,
    training_evaluation_prediction,
    metrics_of_any_kind,
    stopping_and_continuing,
    an_older_loopers_run,
    the_chief_writes,
    decisions_by_a_clock,
    early_stopping,
    a_decision_of_one_worker,
    logs_of_callbacks,
    other_options,
    another_fit,
    another_workdir,
    batches_too_small,
    dropout_masks,
    a_signal_to_one_worker,
    another_model,
]


def main():
    graphs.leave_small_ones()
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    rank = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
    results, began = {}, time.monotonic()
    for scenario in SCENARIOS:
        if not names or scenario.__name__ in names:
            try:
                results[scenario.__name__] = scenario(folder, rank)
            except Exception:
                results[scenario.__name__] = traceback.format_exc()
            (folder / f"result_{rank}.json").write_text(json.dumps(results))
            print(f"done: {scenario.__name__} after {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
