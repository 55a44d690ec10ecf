"""The Trainer: what recipes subclass."""

import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf

from looper import checkpoint, gradients, groups, losses, optimizers, outputs, parts, phase, precision, steps
from looper.batches import count_examples
from looper.callbacks import Callback, EmaEvaluation, MetricsFile, NanGuard, Run, Throughput, as_list, with_defaults
from looper.data import Feed, Feeds, Source, check_length, has_batches, identity, make_source, split
from looper.describe import as_json, describe, describe_parts
from looper.distribute import resolve
from looper.ema import WeightAverage
from looper.errors import InputError, check_known, check_positive
from looper.evaluation import Evaluator, join, predict_each
from looper.events import Events
from looper.executions import Executions
from looper.history import History
from looper.loop import RATES, Loop, Plan, Progress
from looper.metrics import Reader, Window, set_aside
from looper.options import FitOptions, TrainerOptions
from looper.resume import Restored, load, load_latest, load_weights, take_over, write
from looper.schedule import Every, Ticker
from looper.state import (
    State,
    averaged_statistics,
    named_objects,
    offset_seeds,
    trainable_flags,
    trainable_variables,
)
from looper.workdir import Workdir


class Trainer:
    """Trains, evaluates and saves a model. Subclass it, or give it the parts.

    What to override, from the least to the most control: `build`; `compute_loss`; `train_step`, `eval_step`,
    `predict_step`; `train_data`, `eval_data` and `callbacks`. looper passes a Python `training=True` to `compute_loss`
    inside the GradientTape, and `training=False` in evaluation and prediction.

    The methods a recipe overrides are traced once by `tf.function`, without AutoGraph: a Python `if` or `for` over
    tensors must be `tf.cond`, `tf.where` or `tf.while_loop`. `execution="eager"` runs them as plain Python.

    Args:
        model, optimizer, loss, loss_weights, metrics, weighted_metrics: the parts, for use without a subclass, as
            Keras' `compile` takes them: objects, names, functions, and for a model of several outputs dicts or lists
            of them. Each may be a function of no arguments that makes it, which is needed under a strategy of several
            replicas and for a `precision` other than float32: models must be made inside their scope.
        config: the recipe's own settings, a dataclass; `self.config` in `build`. Default: `Config()`, if the class
            has one.
        workdir, strategy, devices, precision, execution, steps_per_execution, accumulate, clip_norm, clip_value,
            ema, seed, deterministic: see `looper.options.TrainerOptions`. `strategy` may also be a
            `tf.distribute.Strategy`. `seed` is set for Python, NumPy and TensorFlow (`keras.utils.set_random_seed`)
            before `build`.

    Attributes:
        model, optimizer, loss, loss_weights, metrics, weighted_metrics: set by `build`. Other attributes that hold
            Keras layers, optimizers, metrics or variables are trained and saved too.
        step, epoch: how many are done.
        history: what `fit` logged, a `looper.history.History`.

    Raises:
        InputError: if an option or a part is wrong.

    Example:
        >>> trainer = Trainer(model=keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
        ...                   optimizer=keras.optimizers.SGD(0.1), loss="mse")
        >>> import numpy as np
        >>> x, y = np.ones((8, 2), "float32"), np.zeros((8, 1), "float32")
        >>> history = trainer.fit((x, y), epochs=20, batch_size=4, progress=False)
        >>> trainer.step, history["loss"][-1] < 1e-3
        (40, True)
    """

    Config: type | None = None
    """The recipe's own settings: a dataclass, each field with a default. `looper run` makes options of them."""

    defaults: Mapping[str, Any] = {}
    """Options of the Trainer and of `fit` that `looper run` uses where the command line gives none."""

    def __init__(
        self,
        *,
        model: Any = None,
        optimizer: Any = None,
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = (),
        weighted_metrics: Any = (),
        config: Any = None,
        workdir: str | os.PathLike | None = None,
        strategy: str | tf.distribute.Strategy = "auto",
        devices: int | None = None,
        precision: Literal["float32", "float64", "mixed_bfloat16", "mixed_float16"] = "float32",
        execution: Literal["auto", "graph", "eager"] = "auto",
        steps_per_execution: int | Literal["auto"] = "auto",
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        seed: int = 0,
        deterministic: bool = False,
        **unknown: Any,
    ) -> None:
        given = locals()
        check_known(type(self).__name__, unknown, [*TrainerOptions.__dataclass_fields__, *parts.NAMES, "config"])
        self._options = TrainerOptions(**{name: given[name] for name in TrainerOptions.__dataclass_fields__}).check()
        if accumulate > 1 and self._own_train_step is not None:
            raise InputError(
                f"accumulate={accumulate} is for compute_loss: {type(self).__name__} has its own train_step, which has "
                "to accumulate by itself."
            )
        self.workdir = None if workdir is None else Path(workdir)
        self.config = config if config is not None or self.Config is None else self.Config()
        self.history = History()
        self._parts = {name: given[name] for name in parts.NAMES}
        self._progress = Progress()
        self._restored: Restored | None = None
        self._ahead: Restored | None = None  # restored, and no step was run since: a later fit may have written it
        self._feed: Feed | None = None
        self._placed: Feed | None = None  # the one that was put to a checkpoint's position
        self._feeds = Feeds()
        self._window = Window()
        self._captured: tuple[tf.Variable, ...] = ()
        self._callbacks: Sequence[Callback] = ()
        self._timed = False
        self._own_data: Any = None
        if deterministic:
            tf.config.experimental.enable_op_determinism()
        self.strategy = resolve(strategy, devices)  # before anything that starts TensorFlow
        self._waited = tf.Variable(0.0, dtype=tf.float64)  # seconds that steps waited for data, if that is measured
        keras.utils.set_random_seed(seed)
        self._loss_scale: precision.LossScale | None = None
        self._seeds_set: set[int] = set()
        self._trained: list[Any] | None = None
        self._phase: Mapping[str, Any] = {}  # of a checkpoint that was restored before the model was built
        self._class_weight: dict[int, float] | None = None
        with self._scope():
            self._average = None if ema is None else WeightAverage(ema)
            self.model = self.optimizer = self.loss = self.loss_weights = None
            self.metrics: Any = []
            self.weighted_metrics: Any = []
            self.build()
            self._check_parts()
            # now, because training may change it: a callback that sets the learning rate
            self._described = describe_parts(self._attributes())
            self._pipeline = gradients.Pipeline(
                self.strategy,
                clip_norm=clip_norm,
                clip_value=clip_value,
                accumulate=accumulate,
                loss_scale=self._loss_scale,
                average=self._average,
                dtype=self._row_dtype,
            )
        self._executions = Executions(self._pipeline, precision, compiled=execution != "eager")
        offset_seeds(self._attributes(), self.strategy, self._seeds_set)

    # What a recipe overrides.

    def build(self) -> None:
        """Sets `self.model`, `self.optimizer`, `self.loss` and `self.metrics` (and `loss_weights`, `weighted_metrics`).

        Called once, inside the strategy's scope and the dtype policy. The default takes the constructor's parts.
        """
        parts.check_model_made_here(self._parts["model"], self.strategy, self._options.precision)
        for name, part in self._parts.items():
            setattr(self, name, parts.make(name, part))

    def compute_loss(self, batch: Any, training: bool) -> Any:
        """One forward pass over a batch.

        The default unpacks `x, y` or `x, y, sample_weight`, calls `self.model(x, training=training)`, applies
        `self.loss` (by output, times `self.loss_weights`), adds `self.model.losses` and updates `self.metrics` and
        `self.weighted_metrics`, all as Keras' `compile` means them. Without a loss, `x` alone will do: the model's own
        losses (`add_loss`) are what is trained.

        Args:
            batch: one element of the data (under several replicas or accumulation, a slice of one).
            training: a Python bool.

        Returns:
            `loss`, or `(loss, logs)` with a dict of logs. The loss and each log is a tensor of any shape (the mean over
            all its elements), a scalar (the mean over this batch's examples), or a pair `(values, weights)`.
            The default returns a `looper.losses.Loss`, which can be added to and multiplied.

        Raises:
            InputError: if the batch has another structure, or does not fit the model or the loss.
        """
        if self.loss is None:
            x, y, sample_weight = (*batch, None, None)[:3] if isinstance(batch, tuple) else (batch, None, None)
        elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
            x, y, sample_weight = (*batch, None)[:3]
        else:
            shapes = tf.nest.map_structure(lambda t: tuple(t.shape), batch)
            raise InputError(
                f"the data yields {type(batch).__name__} of shapes {shapes}: expected (x, y) or (x, y, sample_weight). "
                "For other batches override compute_loss."
            )
        predicted = parts.call_model(self.model, x, training)
        by_name = outputs.named(predicted, getattr(self.model, "output_names", None))
        examples = count_examples(batch)
        total = losses.Loss((), examples)
        if self.loss is not None:
            total = outputs.total_loss(self.loss, self.loss_weights, y, by_name, sample_weight, examples)
        for extra in self.model.losses:
            total = total + extra
        if not total.terms:
            raise InputError("there is no loss: set self.loss in build, give loss=, or override compute_loss.")
        if y is not None:
            self._output_metrics.update(y, by_name, sample_weight)
        elif self._output_metrics.metrics:
            raise InputError("there are metrics, and the data has no targets y to compare with: leave metrics out.")
        return total

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        """One step on this replica's part of a global batch: forward, backward, update.

        An own `train_step` calls `self.minimize` as often as it likes and returns a dict of logs, each as in
        `compute_loss`. It is called in replica context, once per replica.
        """
        with tf.GradientTape(persistent=True) as tape:
            loss, logs = steps.split_loss(self.compute_loss(batch, training=True))
        self.minimize(loss, tape)
        return {"loss": loss, **logs}

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        """Evaluates this replica's part of a global batch. Returns a dict of logs, each as in `compute_loss`."""
        loss, logs = steps.split_loss(self.compute_loss(batch, training=False))
        return {"loss": loss, **logs}

    def predict_step(self, batch: Any) -> Any:
        """Outputs for this replica's part of a batch; of a tuple `(x, y, ...)` the default takes `x`."""
        return parts.call_model(self.model, batch[0] if isinstance(batch, tuple) else batch, training=False)

    def train_data(self) -> Any:
        """The recipe's own training data, as `fit` takes it. None if there is none."""
        return None

    def eval_data(self) -> Any:
        """The recipe's own evaluation data, as `fit` takes it. None if there is none."""
        return None

    def callbacks(self) -> Sequence[Callback]:
        """The recipe's own callbacks, made for each `fit`, before the ones that it is given. None by default."""
        return []

    # What a recipe calls.

    def minimize(
        self, loss: Any, tape: tf.GradientTape, optimizer: Any = None, variables: Sequence[Any] | None = None
    ) -> None:
        """Updates variables from a loss, with the whole gradient pipeline. For an own `train_step`.

        Args:
            loss: as `compute_loss` returns it.
            tape: the tape that recorded it.
            optimizer: default `self.optimizer`. Under several replicas it must be built before training.
            variables: default: all trainable variables of the trainer.

        Raises:
            InputError: outside `train_step`, or if a variable has no gradient.
        """
        optimizer = self.optimizer if optimizer is None else optimizer
        variables = self._trainable_variables() if variables is None else list(variables)
        if not optimizers.inner(optimizer).built:
            if self.strategy.num_replicas_in_sync > 1:
                raise InputError(
                    f"the optimizer {optimizer.name!r} is not built: call optimizer.build(variables) in build()."
                )
            with tf.init_scope():
                optimizers.inner(optimizer).build(variables)
        names = [name for name, thing in named_objects(self._attributes()) if thing is optimizer]
        self._pipeline.minimize(loss, tape, optimizer, variables, label=names[0] if names else optimizer.name)

    def fit(
        self,
        train_data: Any = None,
        *more: Any,
        epochs: int | None = None,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        eval_data: Any = None,
        validation_split: float | None = None,
        eval_every: Every | None = None,
        eval_steps: int | None = None,
        save_every: Every | None = Every(minutes=5),
        log_every: Every = Every(steps=100),
        class_weight: dict[int, float] | None = None,
        callbacks: Sequence[Callback] = (),
        resume: Literal["auto", "weights"] | bool = "auto",
        max_time: float | None = None,
        progress: bool = True,
        **unknown: Any,
    ) -> History:
        """Trains until `epochs` epochs or `steps` steps are done, counted from the very first.

        With a workdir, the same call in a new process continues from the last checkpoint, and with a larger number it
        trains on. Ctrl-C and SIGTERM stop at the end of the current execution and save everything; SIGTERM then exits
        with code 75, for a scheduler to start the job again.

        Args:
            train_data: a `tf.data.Dataset` of batches; arrays as `(x, y)` or `(x, y, sample_weight)`, `x` possibly a
                dict; a `keras.utils.PyDataset`; a sequence of examples; a generator or a function that makes one: see
                `looper.data.make_source`. Default: the recipe's `train_data()`.
            eval_data: the same for evaluation. Default: the recipe's `eval_data()`; without any there is none.
            callbacks: besides the recipe's `callbacks()` and the ones that are on by default: the progress bar, and
                with a workdir TensorBoard, metrics.jsonl and checkpoints. One of the same kind replaces the default.
                Callbacks of Keras are run by a `looper.callbacks.KerasCallback`.
            epochs, steps, steps_per_epoch, batch_size, shuffle, validation_split, eval_every, eval_steps, save_every,
                log_every, class_weight, resume, max_time, progress: see `looper.options.FitOptions`.

        Returns:
            `self.history`: `history["loss"]`, `history["eval/loss"]`, `history.rows`.

        Raises:
            InputError: if an option or the data is wrong; before training where that can be known.
            NonFiniteLossError: at the next boundary after the loss became NaN or infinite.
            KeyboardInterrupt: after Ctrl-C, when everything is saved.
            SystemExit: after SIGTERM, when everything is saved; its code is 75.
        """
        given = locals()
        if more:
            raise InputError("fit() takes the data as one argument: fit((x, y), epochs=...), not fit(x, y).")
        check_known("fit", unknown, [*FitOptions.__dataclass_fields__, "train_data", "eval_data", "callbacks"])
        options = FitOptions(**{name: given[name] for name in FitOptions.__dataclass_fields__}).check()
        callbacks = with_defaults(
            [*self.callbacks(), *as_list(callbacks)], progress=options.progress, workdir=self.workdir is not None
        )
        self._callbacks = callbacks
        self._class_weight = options.class_weight
        if self._class_weight:
            self._check_no_own("class_weight", "compute_loss", "train_step")
        self._refresh()
        self._pipeline.skip_nonfinite = any(isinstance(c, NanGuard) and c.action == "skip" for c in callbacks)
        self._timed = any(isinstance(callback, Throughput) for callback in callbacks)
        if train_data is None:
            self._own_data = self.train_data() if self._own_data is None else self._own_data
            train_data = self._own_data  # kept, so that another fit goes on where this one ends
        feed = self._make_feed(train_data, options)
        self._build_variables(feed.source.element_spec)
        evaluator = self._make_own_evaluator(train_data, eval_data, options)
        both = any(isinstance(callback, EmaEvaluation) for callback in callbacks)
        evaluate = self._evaluating_both(evaluator) if both else None if evaluator is None else evaluator.run
        self._check_trainable()
        config = self._describe(feed, options)
        workdir = self._open_workdir(config, options.resume)
        if workdir is not None and self.step == 0:
            self._resume(workdir, options)  # first: it says what was trained
        execute = self._compile(feed, evaluator)
        logged = set() if evaluator is None else evaluator.trace() | set(self._reader.results()) | {"examples"}
        logged |= {f"raw_{name}" for name in logged} if both else set()
        logged = {f"eval/{name}" for name in logged} | {*execute.names, *self._reader.names, *RATES}
        state = self._state()
        self._continue(workdir, state, feed, options)
        check_length(feed, options, self.step, self.strategy.num_replicas_in_sync)
        run = self._make_run(options, feed, state, config, frozenset(logged) if execute.names else frozenset())

        def compile_anew() -> Any:
            nonlocal state
            self._build_optimizer(announced=True)
            execute = self._compile(feed, evaluator)
            state = self._state()
            for name, access in self._access(state).items():
                setattr(run, name, access)
            return execute

        def save() -> Path:
            path = workdir.checkpoints / checkpoint.name_of(self.step)
            return write(path, state, self._progress, feed, self._window, callbacks)

        plan = Plan(
            epochs=options.epochs,
            steps=options.steps,
            steps_per_epoch=options.steps_per_epoch,
            steps_per_execution=self._options.steps_per_execution,
            log=Ticker(options.log_every),
            evaluation=Ticker(options.eval_every or Every(epochs=1)),
            saving=Ticker(options.save_every),
            max_time=options.max_time,
            evaluate=evaluate,
            save=None if workdir is None else save,
            compile=compile_anew,
        )
        loop = Loop(plan, self._progress, execute, self._reader, feed, self._window, self.history, callbacks, run)
        self._run(loop, callbacks, run, workdir)
        return self.history

    def evaluate(
        self, data: Any = None, *more: Any, batch_size: int | None = None, steps: int | None = None
    ) -> dict[str, float]:
        """Evaluates: every example once, the same numbers on any number of replicas.

        Args:
            data: as for `fit`; default: the recipe's `eval_data()`.
            batch_size: examples per batch, for arrays (default 32).
            steps: the most batches to take (default: all).

        Returns:
            The exact mean of the loss and of each log, the metrics, and `examples`, the number of examples seen.

        Raises:
            InputError: if there is no data, it is empty, or it ends before `steps`.
        """
        if more:
            raise InputError("evaluate() takes the data as one argument: evaluate((x, y)), not evaluate(x, y).")
        data = self.eval_data() if data is None else data
        if data is None:
            raise InputError("there is no data to evaluate: give evaluate() some, or override eval_data.")
        self._refresh()
        return self._make_evaluator(data, batch_size, steps).run()

    def predict(self, data: Any, *, batch_size: int | None = None, steps: int | None = None) -> Any:
        """The model's outputs, one row per example, in order.

        Args:
            data: as for `fit`. The default `predict_step` takes `x` of `(x, y, ...)`.
            batch_size: examples per batch, for arrays (default 32).
            steps: the most batches to take (default: all).

        Returns:
            NumPy arrays in the structure of `predict_step`'s outputs; the first axis is as long as the data.

        Raises:
            InputError: if the data is empty, endless without `steps`, or does not fit the model.
        """
        return join(self.predict_batches(data, batch_size=batch_size, steps=steps))

    def predict_batches(
        self, data: Any, *, batch_size: int | None = None, steps: int | None = None
    ) -> Generator[Any, None, None]:
        """The model's outputs batch by batch, for more of them than memory holds. Arguments and errors as `predict`.

        The data is checked at once, a batch is computed when it is asked for. Until the last batch was taken, or the
        generator is closed, the layers' statistics are the replicas' mean, and with `ema` the weights are their
        averages: do not train in between.

        Yields:
            NumPy arrays in the structure of `predict_step`'s outputs.

        Example:
            >>> import numpy as np
            >>> trainer = Trainer(model=keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
            >>> [outputs.shape for outputs in trainer.predict_batches(np.ones((5, 2), "float32"), batch_size=2)]
            [(2, 3), (2, 3), (1, 3)]
        """
        check_positive("steps", steps)
        with self._policy():
            feed = self._feeds.get(data, batch_size=batch_size, name="data")
        if feed.source.endless and steps is None:
            raise InputError(
                "the data never ends: predict() needs steps=, or data that ends, such as dataset.take(10)."
            )
        self._refresh()
        self._build_variables(feed.source.element_spec, metrics=False)
        return self._predicted(self._executions.prediction(self._recipe(), feed.source), feed, steps)

    def _predicted(self, predict: Callable[[Any], Any], feed: Feed, limit: int | None) -> Generator[Any, None, None]:
        with self._inference():
            yield from predict_each(predict, feed, limit)

    def save(self, path: str | os.PathLike | None = None) -> Path:
        """Writes the whole state as a checkpoint: variables, seeds, optimizer, data position, metric windows.

        Args:
            path: the directory to make; default: `WORKDIR/checkpoints/step_N`.

        Returns:
            The directory.

        Raises:
            InputError: if there is neither a path nor a workdir.
        """
        if path is None and self.workdir is None:
            raise InputError("save() needs a path, or a Trainer with workdir=.")
        path = self.workdir / "checkpoints" / checkpoint.name_of(self.step) if path is None else Path(path)
        if self._restored is not None:  # its position and windows wait for fit
            return self._restored.write(path, self._state())
        return write(path, self._state(), self._progress, self._feed, self._window, self._callbacks)

    def restore(self, path: str | os.PathLike) -> None:
        """Reads what `save` (or a run's `checkpoints/step_N`) wrote. `fit` goes on from there.

        Raises:
            InputError: if there is no checkpoint, it is damaged, or of another model.
        """
        path = Path(path)
        if not (path / "host.json").exists():
            raise InputError(
                f"{path} is not a checkpoint: expected a directory such as runs/digits/checkpoints/step_00000100."
            )
        try:
            self._take(load(path, self._state_in, partly=self._unbuilt or self._output_metrics is None))
        except checkpoint.DamagedCheckpointError as error:
            raise InputError(f"the checkpoint is damaged: {error}") from None

    def save_model(self, path: str | os.PathLike) -> None:
        """Writes the model alone, to be loaded without looper.

        Args:
            path: ending in `.keras` for `keras.models.load_model`; ending in `.weights.h5` for `load_weights` of a
                model that the code makes; any other is the directory of a SavedModel for `tf.saved_model.load`, with
                the function `serve` and the signatures `serve` and `serving_default`, whose arguments are called as the
                model's `keras.Input`s.

        Raises:
            InputError: if the trainer has no Keras model called `model`.
        """
        if not isinstance(self.model, keras.Model):
            raise InputError(
                f"save_model() writes self.model, which is {type(self.model).__name__}: expected a keras.Model."
            )
        weights_only = str(path).endswith(".weights.h5")
        if not weights_only and Path(path).suffix in (".h5", ".hdf5", ".tf", ".pb", ".onnx", ".weights"):
            raise InputError(
                f"save_model({str(path)!r}): give a path that ends in .keras, or a directory (SavedModel), or one that "
                "ends in .weights.h5."
            )
        with self._policy(), self._inference():
            if weights_only:
                self.model.save_weights(path, overwrite=True)
            elif Path(path).suffix == ".keras":
                self.model.save(path)
            else:
                self.model.export(path, verbose=False)

    @property
    def step(self) -> int:
        """Steps done, from the very first; skipped ones count."""
        return self._progress.step

    @property
    def epoch(self) -> int:
        """Epochs done, from the very first."""
        return self._progress.epoch

    # How the parts are put together.

    def _run(self, loop: Loop, callbacks: Sequence[Callback], run: Run, workdir: Workdir | None) -> None:
        begun: list[Callback] = []
        status = "failed"
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        if workdir is not None:
            workdir.write_run("running", self.step, versions)
        try:
            for callback in callbacks:
                callback.run = run
                callback.on_fit_begin(run)
                begun.append(callback)
            if self._restored is not None:
                self._restored.give_states(callbacks)
                self._ahead, self._restored = self._restored, None
            began = self.step
            loop.run()
            self._ahead = self._ahead if self.step == began else None
            status = "interrupted" if run.interrupted else "finished"
            if not run.interrupted:
                with self._scope():
                    for optimizer in parts.all_optimizers(self._attributes()):
                        optimizers.finalize(optimizer)
            for callback in callbacks:
                callback.on_fit_end()
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else status
            for callback in begun:
                callback.on_exception(error)
            raise
        finally:
            if workdir is not None:
                run.events.close()
                workdir.write_run(status, self.step, versions)

    def _make_run(
        self, options: FitOptions, feed: Feed, state: State, config: Mapping[str, Any], log_names: frozenset[str]
    ) -> Run:
        steps_per_epoch = options.steps_per_epoch or feed.source.length

        def begin_at_epoch(epoch: int) -> None:
            if steps_per_epoch is None:
                raise InputError(f"cannot begin at epoch {epoch} of data of unknown length: give fit steps_per_epoch=.")
            self._progress.step, self._progress.epoch, self._progress.epoch_step = epoch * steps_per_epoch, epoch, 0
            run.first_step = self.step
            self._window.reset()
            if steps_per_epoch == feed.source.length:  # otherwise the data goes on from where it is
                feed.restore({"number": epoch, "batch": 0}, None)

        run = Run(
            model=self.model,
            optimizer=self.optimizer,
            loss=self.loss,
            metrics={self._output_metrics.name(metric): metric for metric in self._output_metrics.metrics},
            workdir=self.workdir,
            events=None if self.workdir is None else Events(self.workdir, self.step),
            config=config,
            first_step=self.step,
            last_step=options.steps or (steps_per_epoch and options.epochs * steps_per_epoch),
            epochs=options.epochs,
            steps_per_epoch=steps_per_epoch,
            log_names=log_names,
            **self._access(state),
            predict=self.predict,
            compute_loss=self._loss_alone,
            begin_at_epoch=begin_at_epoch,
            input_wait=(lambda: float(self._waited.numpy())) if self._timed else None,
            averaged=self._average is not None,
            skips_nonfinite=self._pipeline.skip_nonfinite,
        )
        return run

    def _access(self, state: State) -> dict[str, Callable[..., Any]]:
        """How callbacks read and write the variables that there are now: attributes of `Run`."""
        layers = State({**self._layers(), **self._own_attributes()}, self.strategy, (), self._averages())

        def set_weights(values: Mapping[str, Any]) -> None:
            # a layer that was frozen then has no average among them: it was the weight itself
            averages = {f"average/{name}": value for name, value in values.items()}
            layers.restore({name: averages[name] for name in layers.variables if name in averages} | dict(values))

        def restore(snapshot: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
            state.restore(snapshot[0])
            self._window.restore(snapshot[1])

        return {
            "weights": layers.snapshot,
            "set_weights": set_weights,
            "snapshot": lambda: (state.snapshot(), self._window.state()),
            "restore": restore,
        }

    def _loss_alone(self, batch: Any) -> Any:
        with self._evaluating(), self._policy():
            return steps.split_loss(self.compute_loss(batch, training=False))[0]

    def _continue(self, workdir: Workdir | None, state: State, feed: Feed, options: FitOptions) -> None:
        """Puts everything where the workdir's last checkpoint, or the one given to `restore`, was."""
        target = options.steps or options.epochs
        if self._restored is None or target > (self._progress.ended_before or target):
            self._progress.ended = None  # an early stop holds for the same command started again, not for a longer one
        restored = self._restored or (self._ahead if feed is not self._placed else None)
        if restored is not None:
            restored.load_rest(state)
            self._window.restore(restored.window)
            feed.restore(restored.feed, restored.load_iterator)
            self._placed = feed
        if workdir is not None:
            workdir.set_aside_after(self.step)
            feed.warn_if_not_saved()

    def _resume(self, workdir: Workdir, options: FitOptions) -> None:
        if options.resume in ("auto", True):
            restored = load_latest(workdir.checkpoints, self._state_in, lambda progress: progress.reached(options))
            if restored is not None:
                self._take(restored)
                self.history.load(workdir.path / MetricsFile.FILE, self.step)
        elif options.resume == "weights" and self._weights_from is not None:
            load_weights(self._weights_from, State(self._layers(), self.strategy))
            if self._average is not None:
                self._average.reset()

    def _state_in(self, saved: Mapping[str, Any]) -> State:
        """The state to read a checkpoint to, when what is trained is what was trained in its phase."""
        if self._unbuilt:  # all is read when it is built
            self._phase = saved
            return State({}, self.strategy)
        phase.put_back_layers(saved, named_objects(self._attributes()))
        self._build_optimizer(announced=bool(saved))
        phase.put_back_optimizers(saved, named_objects(self._attributes()))
        return self._state()

    def _take(self, restored: Restored) -> None:
        self._progress = restored.progress
        self._restored = restored

    def _open_workdir(self, config: Mapping[str, Any], resume: str | bool) -> Workdir | None:
        self._weights_from: Path | None = None
        if self.workdir is None:
            return None
        workdir = Workdir(self.workdir)
        if self.step == 0 or self._restored is not None:
            self._weights_from = take_over(workdir, config, resume)
        workdir.write_config(config)
        return workdir

    def _make_feed(self, data: Any, options: FitOptions) -> Feed:
        """A feed over the data; the one of the last `fit` if the data is the same, so that it goes on there."""
        if data is None:
            raise InputError("there is no data to train on: give fit() some, or override train_data.")
        fraction = options.validation_split
        key = [*identity(data), options.batch_size, options.shuffle, fraction]
        if self._feed is None or self._feed.key != key:
            with self._policy():
                source = make_source(
                    data if fraction is None else split(data, fraction)[0],
                    batch_size=options.batch_size,
                    shuffle=options.shuffle,
                    seed=self._options.seed,
                    name="training data",
                    training=True,
                )
            started = self._feed is not None and self._restored is None and self._ahead is None
            self._feed = Feed(source, key=key, holding=data)
            if started:
                self._feed.number = self.epoch if source.repeats else 0
                self._progress.epoch_step = 0
        return self._feed

    def _make_own_evaluator(self, train_data: Any, eval_data: Any, options: FitOptions) -> Evaluator | None:
        """The evaluator of a fit: of the data it is given, of what it holds out, of the recipe's own, or None."""
        held_out = options.validation_split
        eval_data = self.eval_data() if eval_data is None else eval_data
        if held_out is not None and eval_data is not None:
            raise InputError(f"validation_split={held_out} and eval_data: give one of them.")
        data = train_data if held_out is not None else eval_data
        if data is None:
            return None
        size = None if has_batches(data) else options.batch_size
        evaluator = self._make_evaluator(data, size, options.eval_steps, held_out)
        evaluator.check_repeatable()
        return evaluator

    def _evaluating_both(self, evaluator: Evaluator | None) -> Callable[[], dict[str, float]]:
        if self._average is None or evaluator is None:
            raise InputError("EmaEvaluation compares averaged weights: give the Trainer ema= and fit eval_data=.")

        def evaluate() -> dict[str, float]:
            raw = evaluator.run(averaged=False)
            return evaluator.run() | {f"raw_{name}": raw[name] for name in raw if name != "examples"}

        return evaluate

    def _make_evaluator(
        self, data: Any, batch_size: int | None, limit: int | None, held_out: float | None = None
    ) -> Evaluator:
        with self._policy():
            feed = self._feeds.get(data, batch_size=batch_size, name="evaluation data", held_out=held_out)
        self._build_variables(feed.source.element_spec)
        execute = self._execution("eval", feed.source)
        return Evaluator(execute, feed, limit, self._evaluating, self._reader.results)

    @contextlib.contextmanager
    def _evaluating(self, averaged: bool = True) -> Iterator[None]:
        with (
            set_aside(parts.all_metrics(self._attributes()), self.strategy),
            self._inference(averaged),
        ):
            yield

    @contextlib.contextmanager
    def _inference(self, averaged: bool = True) -> Iterator[None]:
        """Inside it the weights are those to evaluate and export: averaged over replicas and, with `ema`, over time."""
        own = contextlib.nullcontext() if self._average is None else self._average.swapped_in(self.strategy)
        average = own if averaged else contextlib.nullcontext()
        with averaged_statistics(self._attributes(), self.strategy), average:
            yield

    def _compile(self, feed: Feed, evaluator: Evaluator | None) -> steps.Execution:
        """The training steps for what is trained now, traced; the evaluator gets steps that fit, too."""
        execute = self._execution("train", feed.source)
        self._captured = tuple(v for v in execute.trace(feed.source.element_spec) if v is not self._waited)
        if evaluator is not None:
            evaluator.execute = self._execution("eval", evaluator.source)
        return execute

    def _execution(self, kind: Literal["train", "eval"], source: Source) -> steps.Execution:
        flags = trainable_flags(self._attributes())
        if kind == "eval":
            return self._executions.evaluation(self._recipe(), source, flags)
        weights = tuple(sorted((self._class_weight or {}).items()))
        return self._executions.training(
            self._recipe(), source, self._reader, self._waited if self._timed else None, (flags, weights)
        )

    def _recipe(self) -> steps.Recipe:
        class_weight = self._class_weight

        def compute_loss(batch: Any, training: bool) -> Any:
            weighted = parts.class_weighted(batch, class_weight) if class_weight and training else batch
            return self.compute_loss(weighted, training)

        return steps.Recipe(
            compute_loss=compute_loss,
            train_step=self._own_train_step,
            eval_step=self.eval_step,
            predict_step=self.predict_step,
            optimizer=self.optimizer,
            variables=tuple(self._trainable_variables()),
        )

    @property
    def _own_train_step(self) -> Callable[[Any], Any] | None:
        return None if type(self).train_step is Trainer.train_step else self.train_step

    @property
    def _row_dtype(self) -> tf.DType:
        return tf.float64 if self._options.precision == "float64" else tf.float32

    def _scope(self) -> Any:
        """The strategy's scope and the dtype policy: where models and optimizers are made."""
        stack = contextlib.ExitStack()
        stack.enter_context(self.strategy.scope())
        stack.enter_context(self._policy())
        return stack

    def _policy(self) -> Any:
        return precision.scope(self._options.precision)

    def _attributes(self) -> dict[str, Any]:
        """The recipe's attributes, and looper's own loss scale and averages."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")} | self._own_attributes()

    def _own_attributes(self) -> dict[str, Any]:
        own = {} if self._loss_scale is None else {"loss_scale": self._loss_scale.variables}
        return own if self._average is None else own | {"ema_updates": self._average.updates}

    def _layers(self) -> dict[str, keras.Layer]:
        return {name: thing for name, thing in named_objects(self._attributes()) if isinstance(thing, keras.Layer)}

    def _state(self) -> State:
        return State(self._attributes(), self.strategy, self._captured, self._averages())

    def _averages(self) -> dict[int, tf.Variable]:
        return {} if self._average is None else self._average.averages

    def _trainable_variables(self) -> list[Any]:
        return trainable_variables(self._attributes())

    def _build_variables(self, element_spec: Any, metrics: bool = True) -> None:
        """Makes the variables of a model that was not built yet, the optimizer's and, with targets, the metrics'."""
        with self._scope():
            parts.build_model(self.model, element_spec)
            phase.put_back_layers(self._phase, named_objects(self._attributes()))
            if metrics and self._output_metrics is None:
                self._resolve_metrics(element_spec)
        self._build_optimizer()
        phase.put_back_optimizers(self._phase, named_objects(self._attributes()))
        self._phase = {}
        for restored in filter(None, (self._restored, self._ahead)):
            phase.put_back_optimizers(restored.phase, named_objects(self._attributes()), factors=False)
            restored.load_rest(self._state())
        offset_seeds(self._attributes(), self.strategy, self._seeds_set)

    @property
    def _unbuilt(self) -> bool:
        return isinstance(self.model, keras.Model) and not self.model.built

    def _build_optimizer(self, announced: bool = False) -> None:
        """Makes the optimizer's variables; again if other variables are trainable now, its state kept where it can.

        It warns of that, unless the change was `announced`.
        """
        variables = self._trainable_variables()
        if self._average is not None:
            with self._scope():
                self._average.build([gradients.as_tf(v) for v in variables])
        if not (isinstance(self.optimizer, keras.optimizers.Optimizer) and variables):
            return
        before = self._trained
        self._trained = variables
        with self._scope():
            if not optimizers.inner(self.optimizer).built:
                optimizers.inner(self.optimizer).build(variables)
                groups.begin(self.optimizer, [])
            elif before is not None and list(map(id, before)) != list(map(id, variables)):
                kept, new = optimizers.rebuild(self.optimizer, variables)
                stayed = {id(variable) for variable in before}
                groups.begin(self.optimizer, [v for v in variables if id(v) not in stayed])
                if not announced:
                    warnings.warn(
                        f"{len(variables)} variables are trainable now, {len(before)} were before: the step is "
                        f"compiled anew; of the optimizer's variables {kept} keep their values and {new} are new.",
                        stacklevel=4,
                    )

    def _check_parts(self) -> None:
        """Looks at what `build` set, and puts it into the form that the steps use."""
        self.loss = losses.resolve(self.loss)
        self.optimizer = parts.make("optimizer", self.optimizer)
        found = parts.all_optimizers(self._attributes())
        for optimizer in found if self.optimizer is None else [self.optimizer, *found]:
            optimizers.check_optimizer(
                optimizer,
                replicas=self.strategy.num_replicas_in_sync,
                clip_norm=self._options.clip_norm,
                clip_value=self._options.clip_value,
            )
        if self._loss_scale is None:
            self._loss_scale = parts.make_loss_scale([self.optimizer, *found], self._options.precision)
        self._output_metrics: outputs.OutputMetrics | None = None
        if not outputs.needs_shapes([self.metrics, self.weighted_metrics]):
            self._resolve_metrics()
        self._seen_parts = self._parts_now()

    def _resolve_metrics(self, element_spec: Any = None) -> None:
        """Makes metric objects of names and functions; "accuracy" needs the shapes of a batch."""
        y, predicted = None, None
        if element_spec is not None:
            y = element_spec[1] if isinstance(element_spec, tuple | list) and len(element_spec) > 1 else None
            specs = parts.output_specs(self.model, element_spec)
            predicted = None if specs is None else outputs.named(specs, getattr(self.model, "output_names", None))
        self.metrics = outputs.resolve_metrics(self.metrics, y, predicted)
        self.weighted_metrics = outputs.resolve_metrics(self.weighted_metrics, y, predicted)
        self._output_metrics = outputs.OutputMetrics(self.metrics, self.weighted_metrics)
        self._reader = Reader(
            parts.all_metrics(self._attributes()),
            lambda: parts.settings(self.optimizer, self._loss_scale),
            self._output_metrics.name,
        )
        self._seen_parts = self._parts_now()

    def _parts_now(self) -> list[Any]:
        given = [self.loss, self.loss_weights, self.metrics, self.weighted_metrics]
        return [self.model, self.optimizer, *keras.tree.flatten(given)]

    def _refresh(self) -> None:
        """Drops what was compiled if the model, optimizer, loss or metrics were set to other ones."""
        now = self._parts_now()
        if len(now) != len(self._seen_parts) or any(a is not b for a, b in zip(now, self._seen_parts, strict=True)):
            self._executions.clear()
            self._window.reset()
            with self._scope():
                self._check_parts()
            self._described = describe_parts(self._attributes())

    def _check_no_own(self, option: str, *methods: str) -> None:
        for method in methods:
            if getattr(type(self), method) is not getattr(Trainer, method):
                name = type(self).__name__
                raise InputError(f"{option} is for looper's own {method}, and {name} overrides it: weigh there.")

    def _check_trainable(self) -> None:
        """Looks for what the default step needs, before anything is traced."""
        if self._own_train_step is not None:
            return
        if self.optimizer is None:
            raise InputError("there is no optimizer: set self.optimizer in build, or give optimizer=.")
        if self.model is None and type(self).compute_loss is Trainer.compute_loss:
            raise InputError("there is no model: set self.model in build, give model=, or override compute_loss.")
        if not self._trainable_variables():
            raise InputError("there is nothing to train: no attribute of the trainer has trainable variables.")

    def _describe(self, feed: Feed, options: FitOptions) -> dict[str, Any]:
        mine = ("precision", "accumulate", "clip_norm", "clip_value", "ema", "seed", "deterministic")
        chosen = {name: getattr(self._options, name) for name in mine}
        chosen["execution"] = "eager" if self._options.execution == "eager" else "graph"
        chosen["replicas"] = self.strategy.num_replicas_in_sync
        chosen["steps_per_epoch"], chosen["class_weight"] = options.steps_per_epoch, options.class_weight
        return as_json(
            {
                "recipe": type(self).__name__,
                "config": describe(self.config),
                **self._described,
                "options": chosen,
                "data": feed.source.describe(),
            }
        )
