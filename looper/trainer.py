"""The Trainer: what recipes subclass."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf

from looper import checkpoint, gradients, losses, parts, precision, steps
from looper.callbacks import Callback, MetricsFile, Run, with_defaults
from looper.data import Feed, check_length, make_source
from looper.describe import as_json, describe, describe_parts
from looper.distribute import resolve
from looper.errors import InputError, check_known, check_positive
from looper.evaluation import Evaluator, join, predict_each
from looper.history import History
from looper.loop import RATES, Loop, Plan, Progress
from looper.metrics import Reader, Window, set_aside
from looper.options import FitOptions, TrainerOptions
from looper.resume import Restored, latest_whole, load, load_latest, load_weights, write
from looper.schedule import Every, Ticker
from looper.state import State, averaged_statistics, named_objects, offset_seeds, trainable_variables
from looper.workdir import Workdir


class Trainer:
    """Trains, evaluates and saves a model. Subclass it, or give it the parts.

    What to override, from the least to the most control: `build`; `compute_loss`; `train_step`, `eval_step`,
    `predict_step`; `train_data` and `eval_data`. looper passes a Python `training=True` to `compute_loss` inside the
    GradientTape, and `training=False` in evaluation and prediction.

    The methods a recipe overrides are traced once by `tf.function`, without AutoGraph: a Python `if` or `for` over
    tensors must be `tf.cond`, `tf.where` or `tf.while_loop`. `execution="eager"` runs them as plain Python.

    Args:
        model, optimizer, loss, metrics: the parts, for use without a subclass. Each may be a function of no arguments
            that makes it, which is needed under a strategy of several replicas and for a `precision` other than
            float32: models must be made inside their scope.
        config: the recipe's own settings, a dataclass; `self.config` in `build`. Default: `Config()`, if the class
            has one.
        workdir, strategy, devices, precision, execution, steps_per_execution, accumulate, clip_norm, clip_value,
            seed, deterministic: see `looper.options.TrainerOptions`. `strategy` may also be a
            `tf.distribute.Strategy`. `seed` is set for Python, NumPy and TensorFlow (`keras.utils.set_random_seed`)
            before `build`.

    Attributes:
        model, optimizer, loss, metrics: set by `build`. Other attributes that hold Keras layers, optimizers, metrics
            or variables are trained and saved too.
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
        metrics: Any = (),
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
        self._feed: Feed | None = None
        self._window = Window()
        self._executions: dict[Any, steps.Execution] = {}
        self._captured: tuple[tf.Variable, ...] = ()
        self._callbacks: Sequence[Callback] = ()
        self._own_data: Any = None
        if deterministic:
            tf.config.experimental.enable_op_determinism()
        self.strategy = resolve(strategy, devices)
        keras.utils.set_random_seed(seed)
        self._loss_scale: precision.LossScale | None = None
        self._seeds_set: set[int] = set()
        with self._scope():
            self.model = self.optimizer = self.loss = None
            self.metrics: list[keras.Metric] = []
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
                dtype=self._row_dtype,
            )
        offset_seeds(self._attributes(), self.strategy, self._seeds_set)

    # What a recipe overrides.

    def build(self) -> None:
        """Sets `self.model`, `self.optimizer`, `self.loss` and `self.metrics`.

        Called once, inside the strategy's scope and the dtype policy. The default takes the constructor's parts.
        """
        parts.check_model_made_here(self._parts["model"], self.strategy, self._options.precision)
        for name, part in self._parts.items():
            setattr(self, name, parts.make(name, part))

    def compute_loss(self, batch: Any, training: bool) -> Any:
        """One forward pass over a batch.

        The default unpacks `x, y` or `x, y, sample_weight`, calls `self.model(x, training=training)`, applies
        `self.loss`, adds `self.model.losses` and updates `self.metrics`.

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
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            shapes = tf.nest.map_structure(lambda t: tuple(t.shape), batch)
            raise InputError(
                f"the data yields {type(batch).__name__} of shapes {shapes}: expected (x, y) or (x, y, sample_weight). "
                "For other batches override compute_loss."
            )
        if self.loss is None:
            raise InputError("there is no loss: set self.loss in build, give loss=, or override compute_loss.")
        x, y, sample_weight = (*batch, None)[:3]
        outputs = parts.call_model(self.model, x, training)
        examples = gradients.count_examples(batch)
        total = losses.Loss((losses.keras_term(self.loss, y, outputs, sample_weight, examples),), examples)
        for extra in self.model.losses:
            total = total + extra
        for metric in self.metrics:
            metric.update_state(y, outputs)
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
        if not gradients.inner(optimizer).built:
            if self.strategy.num_replicas_in_sync > 1:
                raise InputError(
                    f"the optimizer {optimizer.name!r} is not built: call optimizer.build(variables) in build()."
                )
            with tf.init_scope():
                gradients.inner(optimizer).build(variables)
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
        eval_every: Every | None = None,
        eval_steps: int | None = None,
        save_every: Every | None = Every(minutes=5),
        log_every: Every = Every(steps=100),
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
            train_data: a `tf.data.Dataset` of batches, or arrays as `(x, y)` or `(x, y, sample_weight)`, `x` possibly a
                dict. Default: the recipe's `train_data()`.
            eval_data: the same for evaluation. Default: the recipe's `eval_data()`; without any there is none.
            callbacks: besides the ones that are on by default: the progress bar, and with a workdir TensorBoard,
                metrics.jsonl and checkpoints. One of the same kind replaces the default.
            epochs, steps, steps_per_epoch, batch_size, shuffle, eval_every, eval_steps, save_every, log_every, resume,
                max_time, progress: see `looper.options.FitOptions`.

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
        callbacks = with_defaults(callbacks, progress=options.progress, workdir=self.workdir is not None)
        self._callbacks = callbacks
        self._refresh()
        if train_data is None:
            self._own_data = self.train_data() if self._own_data is None else self._own_data
            train_data = self._own_data  # kept, so that another fit goes on where this one ends
        feed = self._make_feed(train_data, options)
        eval_data = self.eval_data() if eval_data is None else eval_data
        evaluator = None
        if eval_data is not None:
            eval_batch_size = None if isinstance(eval_data, tf.data.Dataset) else options.batch_size
            evaluator = self._make_evaluator(eval_data, eval_batch_size, options.eval_steps)
        self._build_variables(feed.source.element_spec)
        self._check_trainable()
        config = self._describe(feed, options)
        workdir = self._open_workdir(config, options.resume)
        execute = self._execution("train", feed.source)
        self._captured = execute.trace(feed.source.element_spec)
        logged = set() if evaluator is None else evaluator.trace() | set(self._reader.results()) | {"examples"}
        state = self._state()
        self._continue(workdir, state, feed, options)
        check_length(feed, options, self.step, self.strategy.num_replicas_in_sync)
        logged = {f"eval/{name}" for name in logged} | {*execute.names, *self._reader.names, *RATES}
        run = self._make_run(options, feed, config, frozenset(logged) if execute.names else frozenset())

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
            evaluate=None if evaluator is None else evaluator.run,
            save=None if workdir is None else save,
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
        evaluator = self._make_evaluator(data, batch_size, steps)
        self._build_variables(evaluator.element_spec)
        return evaluator.run()

    def predict(self, data: Any, *, batch_size: int | None = None, steps: int | None = None) -> Any:
        """The model's outputs, one row per example, in order.

        Args:
            data: a `tf.data.Dataset` of batches, or arrays. The default `predict_step` takes `x` of `(x, y, ...)`.
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

        The data is checked at once, a batch is computed when it is asked for. On several replicas the layers'
        statistics are the replicas' mean until the last batch was taken, or the generator is closed: do not train
        in between.

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
            source = make_source(data, batch_size=batch_size, shuffle=False, seed=0)
        if source.endless and steps is None:
            raise InputError(
                "the data never ends: predict() needs steps=, or data that ends, such as dataset.take(10)."
            )
        self._refresh()
        self._build_variables(source.element_spec)
        length = min((n for n in (source.length, steps) if n is not None), default=None)
        return self._predicted(self._prediction(source), source, length)

    def _predicted(self, predict: Callable[[Any], Any], source: Any, length: int | None) -> Generator[Any, None, None]:
        with averaged_statistics(self._attributes(), self.strategy):
            yield from predict_each(predict, source.open(0, 0), length)

    def _prediction(self, source: Any) -> Callable[[Any], Any]:
        """The compiled prediction of a batch, made once per structure of a source's batches."""
        key = ("predict", str(source.element_spec))
        if key not in self._executions:
            compiled = self._options.execution != "eager"
            self._executions[key] = steps.predict_function(
                self._recipe(), self.strategy, self._options.precision, compiled=compiled
            )
        return self._executions[key]

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
        unbuilt = isinstance(self.model, keras.Model) and not self.model.built
        if not unbuilt:
            self._build_optimizer()
        try:
            self._take(load(path, self._state(), partly=unbuilt))
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
        with self._policy(), averaged_statistics(self._attributes(), self.strategy):
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
                self._restored = None
            loop.run()
            status = "interrupted" if run.interrupted else "finished"
            for callback in callbacks:
                callback.on_fit_end()
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else status
            for callback in begun:
                callback.on_exception(error)
            raise
        finally:
            if workdir is not None:
                workdir.write_run(status, self.step, versions)

    def _make_run(self, options: FitOptions, feed: Feed, config: Mapping[str, Any], log_names: frozenset[str]) -> Run:
        steps_per_epoch = options.steps_per_epoch or feed.source.length
        layers = self._state(layers_only=True)
        return Run(
            model=self.model,
            optimizer=self.optimizer,
            workdir=self.workdir,
            config=config,
            first_step=self.step,
            last_step=options.steps or (steps_per_epoch and options.epochs * steps_per_epoch),
            epochs=options.epochs,
            steps_per_epoch=steps_per_epoch,
            log_names=log_names,
            weights=layers.snapshot,
            set_weights=layers.restore,
        )

    def _continue(self, workdir: Workdir | None, state: State, feed: Feed, options: FitOptions) -> None:
        """Puts everything where the workdir's last checkpoint, or the one given to `restore`, was."""
        if workdir is not None and self.step == 0:
            self._resume(workdir, state, options.resume)
        target = options.steps or options.epochs
        if self._restored is None or target > (self._progress.ended_before or target):
            self._progress.ended = None  # an early stop holds for the same command started again, not for a longer one
        if self._restored is not None:
            self._restored.load_rest(state)
            self._window.restore(self._restored.window)
            feed.restore(self._restored.feed, self._restored.load_iterator)
        if workdir is not None:
            workdir.set_aside_after(self.step)
            feed.warn_if_not_saved()

    def _resume(self, workdir: Workdir, state: State, resume: str | bool) -> None:
        if resume in ("auto", True):
            restored = load_latest(workdir.checkpoints, state)
            if restored is not None:
                self._take(restored)
                self.history.load(workdir.path / MetricsFile.FILE, self.step)
        elif resume == "weights" and self._weights_from is not None:
            load_weights(self._weights_from, self._state(layers_only=True))

    def _take(self, restored: Restored) -> None:
        self._progress = restored.progress
        self._restored = restored

    def _open_workdir(self, config: Mapping[str, Any], resume: str | bool) -> Workdir | None:
        self._weights_from: Path | None = None
        if self.workdir is None:
            return None
        workdir = Workdir(self.workdir)
        if self.step == 0 or self._restored is not None:
            if resume in ("auto", True):
                workdir.check_same(config)
            else:
                whole = latest_whole(workdir.checkpoints) if resume == "weights" else None
                if resume == "weights" and whole is None:
                    raise InputError(f"resume='weights': there is no checkpoint in {workdir.checkpoints}.")
                previous = workdir.set_aside()
                self._weights_from = whole and previous / whole.name
        workdir.write_config(config)
        return workdir

    def _make_feed(self, data: Any, options: FitOptions) -> Feed:
        """A feed over the data; the one of the last `fit` if the data is the same, so that it goes on there."""
        if data is None:
            raise InputError("there is no data to train on: give fit() some, or override train_data.")
        leaves = tf.nest.flatten(data) if not isinstance(data, tf.data.Dataset) else [data]
        key = [*map(id, leaves), options.batch_size, options.shuffle]
        if self._feed is None or self._feed.key != key:
            with self._policy():
                source = make_source(
                    data,
                    batch_size=options.batch_size,
                    shuffle=options.shuffle,
                    seed=self._options.seed,
                    name="training data",
                )
            started = self._feed is not None and self._restored is None
            self._feed = Feed(source, key=key, holding=data)
            if started:
                self._feed.number = self.epoch if source.repeats else 0
                self._progress.epoch_step = 0
        return self._feed

    def _make_evaluator(self, data: Any, batch_size: int | None, limit: int | None) -> Evaluator:
        with self._policy():
            source = make_source(data, batch_size=batch_size, shuffle=False, seed=0, name="evaluation data")
        execute = self._execution("eval", source)
        return Evaluator(execute, Feed(source), limit, self._evaluating, self._reader.results)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        with (
            set_aside(parts.all_metrics(self._attributes()), self.strategy),
            averaged_statistics(self._attributes(), self.strategy),
        ):
            yield

    def _execution(self, kind: Literal["train", "eval"], source: Any) -> steps.Execution:
        """The compiled steps over a source, made once per structure of its batches and set of trained variables."""
        counted = source.endless or source.length is not None
        trained = tuple(id(v) for v in self._trainable_variables())
        key = (kind, str(source.element_spec), counted, trained)
        if key not in self._executions:
            names: list[str] = []
            common = {"strategy": self.strategy, "policy": self._options.precision, "names": names}
            if kind == "train":
                step = steps.train_step(self._recipe(), self._pipeline, **common)
            else:
                step = steps.eval_step(self._recipe(), dtype=self._row_dtype, **common)
            compiled = self._options.execution != "eager"
            self._executions[key] = steps.Execution(
                step,
                compiled=compiled,
                counted=counted,
                names=names,
                dtype=self._row_dtype,
                reader=self._reader if kind == "train" else None,
            )
        return self._executions[key]

    def _recipe(self) -> steps.Recipe:
        return steps.Recipe(
            compute_loss=self.compute_loss,
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
        """The recipe's attributes, and looper's own loss scale."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return own if self._loss_scale is None else own | {"loss_scale": self._loss_scale.variables}

    def _state(self, layers_only: bool = False) -> State:
        if not layers_only:
            return State(self._attributes(), self.strategy, self._captured)
        layers = {name: thing for name, thing in named_objects(self._attributes()) if isinstance(thing, keras.Layer)}
        return State(layers, self.strategy)

    def _trainable_variables(self) -> list[Any]:
        return trainable_variables(self._attributes())

    def _build_variables(self, element_spec: Any) -> None:
        """Makes the variables of a model that was not built yet, and the optimizer's."""
        with self._scope():
            parts.build_model(self.model, element_spec)
        self._build_optimizer()
        if self._restored is not None:
            self._restored.load_rest(self._state())
        offset_seeds(self._attributes(), self.strategy, self._seeds_set)

    def _build_optimizer(self) -> None:
        variables = self._trainable_variables()
        if isinstance(self.optimizer, keras.optimizers.Optimizer) and variables:
            optimizer = gradients.inner(self.optimizer)
            if not optimizer.built:
                with self._scope():
                    optimizer.build(variables)

    def _check_parts(self) -> None:
        """Looks at what `build` set, and puts it into the form that the steps use."""
        self.loss = losses.resolve(self.loss)
        self.metrics = parts.check_metrics(self.metrics)
        optimizers = parts.all_optimizers(self._attributes())
        for optimizer in optimizers if self.optimizer is None else [self.optimizer, *optimizers]:
            gradients.check_optimizer(
                optimizer,
                replicas=self.strategy.num_replicas_in_sync,
                clip_norm=self._options.clip_norm,
                clip_value=self._options.clip_value,
            )
        if self._loss_scale is None:
            self._loss_scale = parts.make_loss_scale([self.optimizer, *optimizers], self._options.precision)
        self._seen_parts = [self.model, self.optimizer, self.loss, *self.metrics]
        self._reader = Reader(
            parts.all_metrics(self._attributes()), lambda: parts.settings(self.optimizer, self._loss_scale)
        )

    def _refresh(self) -> None:
        """Drops what was compiled if the model, optimizer, loss or metrics were set to other ones."""
        now = [self.model, self.optimizer, self.loss, *self.metrics]
        if len(now) != len(self._seen_parts) or any(a is not b for a, b in zip(now, self._seen_parts, strict=True)):
            self._executions.clear()
            self._window.reset()
            with self._scope():
                self._check_parts()
            self._described = describe_parts(self._attributes())

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
        mine = ("precision", "accumulate", "clip_norm", "clip_value", "seed", "deterministic")
        chosen = {name: getattr(self._options, name) for name in mine}
        chosen["execution"] = "eager" if self._options.execution == "eager" else "graph"
        chosen["replicas"] = self.strategy.num_replicas_in_sync
        chosen["steps_per_epoch"] = options.steps_per_epoch
        return as_json(
            {
                "recipe": type(self).__name__,
                "config": describe(self.config),
                **self._described,
                "options": chosen,
                "data": feed.source.describe(),
            }
        )
