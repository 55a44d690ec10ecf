"""The Trainer: what recipes subclass."""

import contextlib
import functools
import inspect
import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf

from looper.audit.examine import examine, replica_batch_of
from looper.audit.record import random_state_put_back
from looper.audit.replicas import ReplicaReport, compare, kept_alike
from looper.audit.report import Report
from looper.base.arguments import explain
from looper.base.batches import check_parts, count_examples, lengths
from looper.base.errors import InputError, check_known, check_positive, nearest
from looper.base.ledger import Ledger
from looper.base.options import FitOptions, TrainerOptions
from looper.base.schedule import Every
from looper.callbacks import Callback, as_list, checked, with_defaults
from looper.data.choose import as_inputs, hint_at_named
from looper.data.feed import Feed
from looper.recipe import build, losses, methods, outputs
from looper.recipe.describe import describe
from looper.run.evaluation import join, predict_each
from looper.run.fit import Fit
from looper.run.history import History
from looper.run.hooks import Hooks
from looper.run.numbers import read_numbers
from looper.run.position import Position
from looper.run.session import Session
from looper.run.train_on_batch import SingleBatches
from looper.run.watch import Watch
from looper.saved import checkpoint
from looper.saved.lock import Lock
from looper.saved.resume import read, take
from looper.saved.saver import Saver
from looper.step import replicas
from looper.step.division import Division
from looper.step.programs import explaining_checks

OWN_OPTIONS = (*TrainerOptions.__dataclass_fields__, *build.NAMES, "config")
OPTIONS_OF_FIT = (*FitOptions.__dataclass_fields__, "train_data", "eval_data", "callbacks")


def _check_own_options(trainer: "Trainer", unknown: list[str]) -> None:
    check_known(type(trainer).__name__, unknown, OWN_OPTIONS, {"fit": OPTIONS_OF_FIT})


def _check_options_of_fit(trainer: "Trainer", unknown: list[str]) -> None:
    check_known("fit", unknown, OPTIONS_OF_FIT, {type(trainer).__name__: OWN_OPTIONS})


class Trainer:
    """Trains, evaluates and saves a model. Subclass it, or give it the components.

    What to override, from the least to the most control: `build`; `compute_loss`; `train_step`, `eval_step`,
    `predict_step`; `train_data`, `eval_data` and `callbacks`. looper passes a Python `training=True` to `compute_loss`
    inside the GradientTape, and `training=False` in evaluation and prediction.

    With several workers, all run the same program: call `fit`, `evaluate`, `predict`, `save` and the like on every one
    of them, and take all batches of `predict_batches`. The chief, worker 0, writes the files.

    The methods a recipe overrides are traced once by `tf.function`, without AutoGraph: a Python `if` or `for` over
    tensors must be `tf.cond`, `tf.where` or `tf.while_loop`. `execution="eager"` runs them as plain Python.

    Args:
        model, optimizer, loss, loss_weights, metrics, weighted_metrics: the components, for use without a subclass,
            as Keras' `compile` takes them: objects, names, functions, and for a model of several outputs dicts or lists
            of them. Each may be a function of no arguments that makes it, which is needed under a strategy of several
            replicas and for a `precision` other than float32: models must be made inside their scope.
        config: the recipe's own settings, a dataclass; `self.config` in `build`. Default: `Config()`, if the class
            has one.
        workdir, strategy, devices, precision, execution, steps_per_execution, accumulate, clip_norm, clip_value,
            ema, max_skipped, seed, deterministic, strict: see `looper.base.options.TrainerOptions`. `strategy` may also
            be a `tf.distribute.Strategy`. By `seed` go the random numbers of Python, NumPy and TensorFlow that are
            drawn in `build`, `train_data`, `eval_data` and `callbacks`, and while steps are traced. The caller's own go
            on as if there were no trainer, but for TensorFlow's global seed.

    Attributes:
        model, optimizer, loss, loss_weights, metrics, weighted_metrics: set by `build`. Other attributes that hold
            Keras layers, optimizers, metrics or variables are trained and saved too.
        step, epoch: how many are done; int64 scalar tensors inside the steps, also of evaluation and prediction.
        last_step: the step that `fit` trains to.
        is_chief: whether this is the worker that writes files, or the only one.
        history: what `fit` logged, a `looper.run.history.History`.
        ledger: where the wall time of the last `fit` went, a `looper.base.ledger.Ledger`, or None before the first:
            `print(trainer.ledger)`, `trainer.ledger.seconds`, `trainer.ledger.shares()`, `trainer.ledger.bound_by`.

    Raises:
        InputError: if an option or a component is wrong.

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
    """The recipe's own settings: a dataclass, each field with a default. `looper run` makes options of them. A run that
    goes on must have the values it began with, but for fields that do not count when two are compared, as
    `dataclasses.field(default="", compare=False)`."""

    defaults: Mapping[str, Any] = {}
    """Options of the Trainer and of `fit` that `looper run` uses where the command line gives none."""

    presets: Mapping[str, Mapping[str, Any]] = {}
    """Such options, and fields of `Config`, by a name: `looper run RECIPE --preset NAME` uses them over `defaults`."""

    parts: Sequence[str | int] = ()
    """Names of the parts of a batch that have lengths of their own, such as labelled and unlabelled examples: keys of a
    dict or positions of a tuple. Replicas and micro-batches divide each by its own length. `examples` in logs are those
    of the first. Batches that have none of them are divided as a whole."""

    @explain(unknown=_check_own_options)
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
        execution: Literal["auto", "graph", "xla_step", "xla_loop", "eager"] = "auto",
        steps_per_execution: int | Literal["auto"] = "auto",
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        max_skipped: int = 50,
        seed: int = 0,
        deterministic: bool = False,
        strict: bool = False,
    ) -> None:
        given = locals()
        options = TrainerOptions(**{name: given[name] for name in TrainerOptions.__dataclass_fields__}).check()
        check_parts(type(self).parts)
        methods.check(type(self), Trainer)
        self.workdir = None if workdir is None else Path(workdir).absolute()  # wherever the process goes
        self.config = config if config is not None or self.Config is None else self.Config()
        self._given = {name: given[name] for name in build.NAMES}
        self.model: Any = None
        self.optimizer: Any = None
        self.loss: Any = None
        self.loss_weights: Any = None
        self.metrics: Any = []
        self.weighted_metrics: Any = []
        self.ledger: Ledger | None = None
        self._lock = None if self.workdir is None else Lock(self.workdir)
        self._saver = Saver()
        self._position = position = Position()
        self._session = session = Session(options, self._hooks(), vars(self), lambda: position.numbers)
        self.strategy = session.devices.strategy
        session.devices.workers.check_same(self._started_with)
        session.build()
        self._single = SingleBatches(session, position)

    def _hooks(self) -> Hooks:
        kind = type(self)
        names = ("compute_loss", "train_step", "transform_gradients", "after_update", "eval_step")
        return Hooks(
            name=kind.__name__,
            own=frozenset(name for name in names if getattr(kind, name) is not getattr(Trainer, name)),
            build=lambda: self.build(),
            compute_loss=lambda batch, training: self.compute_loss(batch, training),
            train_step=lambda batch: self.train_step(batch),
            transform_gradients=lambda gradients, variables: self.transform_gradients(gradients, variables),
            after_update=lambda: self.after_update(),
            eval_step=lambda batch: self.eval_step(batch),
            predict_step=lambda batch: self.predict_step(batch),
            reading=lambda: read_numbers(self),
            attribute=functools.partial(getattr, self),
        )

    def _started_with(self) -> dict[str, Any]:
        """The options and code that all workers must be started with alike."""
        options = vars(self._session.options) | {"workdir": self.workdir is not None}  # another path, the same storage
        if not isinstance(options["strategy"], str):
            options["strategy"] = type(options["strategy"]).__name__
        kind = type(self)
        try:
            content = zlib.crc32(Path(inspect.getsourcefile(kind) or "").read_bytes())
        except (OSError, TypeError):  # written in an interpreter
            content = None
        return {"recipe": kind.__name__, "recipe_file": content, "options": options, "config": describe(self.config)}

    def __repr__(self) -> str:
        """One line: the recipe, how far it is, its weights, where it runs."""
        models = self._session.components.models()
        built = [f"{name} of {layer.count_params():,} weights" for name, layer in models.items() if layer.built]
        replicas = self.strategy.num_replicas_in_sync
        where = [f"{replicas} replicas"] if replicas > 1 else []
        where += [] if self.workdir is None else [f"in {self.workdir}"]
        return f"<{', '.join([f'{type(self).__name__} at step {self.step}', *built, *where])}>"

    # What a recipe overrides.

    def build(self) -> None:
        """Sets `self.model`, `self.optimizer`, `self.loss` and `self.metrics` (and `loss_weights`, `weighted_metrics`).

        Called once, inside the strategy's scope and the dtype policy. The default takes the constructor's components.
        """
        build.check_model_made_here(self._given["model"], self.strategy, self._session.options.precision)
        for name, component in self._given.items():
            setattr(self, name, build.make(name, component))

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
            all its elements), a scalar (the mean over this batch's examples), a pair `(values, weights)`, or a list of
            these (each a mean of its own, added up). The default returns a `looper.recipe.losses.Loss`, which can be
            added to and multiplied.

        Raises:
            InputError: if the batch has another structure, or does not fit the model or the loss.

        A number that is to change while training, such as a weight that a callback anneals, is a `tf.Variable`: a
        Python number is that which was there when the step was compiled, and a warning says so where it changed.

        Example:
            >>> import looper, numpy as np
            >>> class Annealed(Trainer):
            ...     def build(self):
            ...         super().build()
            ...         self.weight = tf.Variable(1.0, trainable=False)
            ...     def compute_loss(self, batch, training):
            ...         return self.weight * super().compute_loss(batch, training)
            >>> make = lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
            >>> trainer = Annealed(model=make, optimizer=lambda: keras.optimizers.SGD(0.0), loss="mse")
            >>> anneal = looper.callbacks.LambdaCallback(on_epoch_end=lambda *_: trainer.weight.assign(0.25))
            >>> history = trainer.fit((np.ones((8, 1)), np.ones((8, 1))), epochs=2, callbacks=[anneal], progress=False)
            >>> history["loss"]
            [1.0, 0.25]
        """
        if self.loss is None:
            x, y, sample_weight = (*batch, None, None)[:3] if isinstance(batch, tuple) else (batch, None, None)
        elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
            x, y, sample_weight = (*batch, None)[:3]
        else:
            shapes = tf.nest.map_structure(lambda t: tuple(t.shape), batch)
            raise InputError(
                f"the data yields {type(batch).__name__} of shapes {shapes}: expected (x, y) or (x, y, sample_weight). "
                f"For other batches override compute_loss.{'' if training else hint_at_named(batch)}"
            )
        predicted = build.call_model(self.model, x, training)
        by_name = outputs.named(predicted, getattr(self.model, "output_names", None))
        examples = count_examples(batch)
        total = losses.Loss((), examples)
        if self.loss is not None:
            total = outputs.total_loss(self.loss, self.loss_weights, y, by_name, sample_weight, examples)
        for extra in self.model.losses:
            total = total + losses.share(extra, examples)
        if not total.terms:
            raise InputError("there is no loss: set self.loss in build, give loss=, or override compute_loss.")
        if y is not None:
            self._session.components.output_metrics.update(y, by_name, sample_weight)
        elif self._session.components.output_metrics.metrics:
            raise InputError("there are metrics, and the data has no targets y to compare with: leave metrics out.")
        return total

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        """One step on this replica's part of a global batch: forward, backward, update, with accumulation.

        An own `train_step` calls `super().train_step(batch)` and adds to what that returns, or calls `self.minimize`,
        or its halves `self.gradients` and `self.apply_gradients`, as often as it likes. It returns a dict of logs, each
        as in `compute_loss`. It is called in replica context, once per replica.

        Returns:
            The loss and the logs of `compute_loss`, each a scalar: the mean over the global batch.

        Raises:
            InputError: outside a step, or if there is nothing to train.

        Example:
            >>> import numpy as np
            >>> class Doubled(Trainer):
            ...     def train_step(self, batch):
            ...         logs = super().train_step(batch)
            ...         return {**logs, "doubled": 2 * logs["loss"]}
            >>> trainer = Doubled(model=keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]),
            ...                   optimizer="sgd", loss="mse", accumulate=2)
            >>> history = trainer.fit((np.ones((8, 1)), np.ones((8, 1))), epochs=1, batch_size=4, progress=False)
            >>> history["doubled"] == [2 * history["loss"][0]]
            True
        """
        self._session.check_default_step()
        variables = self._session.components.trainable_variables()
        self._session.building.make_ready(self.optimizer, variables)
        return self._session.pipeline.default_step(
            lambda part: replicas.split_loss(self.compute_loss(part, True)), batch, self.optimizer, variables
        )

    def transform_gradients(self, gradients: list[Any], variables: list[Any]) -> Sequence[Any]:
        """Changes the gradients before they are clipped and applied: noise, centralization, freezing by a rule.

        Called while a step is traced, once for all replicas of a worker and for each `minimize`, after the reduction
        and before `clip_norm` and `clip_value`. On several workers it must draw with `self.shared_random`. A step whose
        gradients were not finite before is skipped all the same, where looper skips such steps. `gradient_norm` in the
        logs is the norm of what this returns.

        Args:
            gradients: of the global batch, one for each variable: tensors of the variable's shape and dtype, or
                `tf.IndexedSlices` whose rows occur once.
            variables: what they are the gradients of.

        Returns:
            As many gradients of the same shapes.

        Example:
            >>> import numpy as np
            >>> class Halved(Trainer):
            ...     def transform_gradients(self, gradients, variables):
            ...         return [gradient / 2 for gradient in gradients]
            >>> make = lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
            >>> trainer = Halved(model=make, optimizer=lambda: keras.optimizers.SGD(1.0), loss="mae")
            >>> history = trainer.fit((np.ones((4, 1)), np.zeros((4, 1))), epochs=1, progress=False)
            >>> float(trainer.model.weights[0][0, 0])
            0.5
        """
        return gradients

    def after_update(self) -> None:
        """Runs once a step, after its update, on each replica: the place for target networks, queues, weight clipping.

        It sees the weights as they were updated, in every mode and with `accumulate`. It does not run after a step that
        was skipped. What it needs of the step stands in variables: a tensor that `train_step` keeps in an attribute may
        be another replica's. Nothing by default.

        Example:
            >>> import numpy as np
            >>> class Clipped(Trainer):
            ...     def after_update(self):
            ...         for variable in self.model.trainable_variables:
            ...             variable.assign(tf.clip_by_value(variable, -0.5, 0.5))
            >>> make = lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
            >>> trainer = Clipped(model=make, optimizer="sgd", loss="mse")
            >>> history = trainer.fit((np.ones((4, 1)), np.ones((4, 1))), epochs=1, progress=False)
            >>> float(trainer.model.weights[0][0, 0])
            0.5
        """

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        """Evaluates this replica's part of a global batch. Returns a dict of logs, each as in `compute_loss`."""
        loss, logs = replicas.split_loss(self.compute_loss(batch, False))
        return {"loss": loss, **logs}

    def predict_step(self, batch: Any) -> Any:
        """Outputs for this replica's part of a batch; of a tuple `(x, y, ...)` the default takes `x`."""
        return build.call_model(self.model, batch[0] if isinstance(batch, tuple) else batch, training=False)

    def train_data(self) -> Any:
        """The recipe's own training data, as `fit` takes it. None if there is none.

        Each of several workers reads the same data and takes its part of every batch. One that defines
        `train_data(self, context)` gets a `tf.distribute.InputContext` and returns this worker's share alone: its part
        of each global batch, in as many batches as every other worker (`dataset.shard(context.num_input_pipelines,
        context.input_pipeline_id)`, then `.repeat()` with `steps_per_epoch=`).
        """
        return None

    def eval_data(self) -> Any:
        """The recipe's own evaluation data, as `fit` takes it. None if there is none. May take a context, too.

        Several sets are what `looper.data.named` returns.
        """
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
            optimizer: default `self.optimizer`.
            variables: default: all trainable variables of the trainer.

        Raises:
            InputError: outside `train_step`, or if a variable has no gradient.
        """
        session, optimizer = self._session, self.optimizer if optimizer is None else optimizer
        variables = session.components.trainable_variables() if variables is None else list(variables)
        session.building.make_ready(optimizer, variables)
        session.pipeline.minimize(loss, tape, optimizer, variables, session.components.name_of(optimizer))

    def gradients(self, loss: Any, tape: tf.GradientTape, variables: Sequence[Any] | None = None) -> list[Any]:
        """The gradients of a loss over the global batch, to work on before `apply_gradients`. For an own `train_step`.

        They are weighted, summed over all replicas, divided once and unscaled; rows that an `Embedding` repeats are
        summed. They are the same on all replicas.

        Args:
            loss: as `compute_loss` returns it.
            tape: the tape that recorded it.
            variables: default: all trainable variables of the trainer.

        Returns:
            One gradient for each variable, a tensor of its shape and dtype or a `tf.IndexedSlices`; None where the loss
            does not depend on the variable.

        Raises:
            InputError: outside `train_step`, or inside a `tf.cond`, `tf.while_loop` or `tf.function` of the recipe.

        Example:
            >>> import numpy as np
            >>> class Signs(Trainer):
            ...     def train_step(self, batch):
            ...         variables = self.model.trainable_variables
            ...         with tf.GradientTape() as tape:
            ...             loss = self.compute_loss(batch, training=True)
            ...         gradients = [tf.sign(gradient) for gradient in self.gradients(loss, tape, variables)]
            ...         self.apply_gradients(zip(gradients, variables))
            ...         return {"loss": loss}
            >>> make = lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
            >>> trainer = Signs(model=make, optimizer=lambda: keras.optimizers.SGD(0.25), loss="mse")
            >>> history = trainer.fit((np.ones((4, 1)), np.zeros((4, 1))), epochs=1, progress=False)
            >>> float(trainer.model.weights[0][0, 0])
            0.75
        """
        variables = self._session.components.trainable_variables() if variables is None else list(variables)
        return self._session.pipeline.gradients(loss, tape, variables)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]], optimizer: Any = None) -> None:
        """Applies gradients of the global batch, as `gradients` returns them. For an own `train_step`.

        They are checked, clipped and applied or skipped as those of `minimize`, and not summed over the replicas again:
        all replicas apply what the first one has. The step is skipped, where such steps are, if they or what
        `gradients` found for these variables is not finite. `gradient_norm` in the logs is theirs.

        Args:
            grads_and_vars: pairs of a gradient and a variable; a gradient of None leaves its variable alone.
            optimizer: default `self.optimizer`.

        Raises:
            InputError: outside `train_step`, inside a `tf.cond`, `tf.while_loop` or `tf.function` of the recipe,
                without any gradient, or if one has another shape than its variable.
        """
        session, optimizer = self._session, self.optimizer if optimizer is None else optimizer
        pairs = list(grads_and_vars)
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise InputError(
                "apply_gradients() takes pairs of a gradient and a variable: "
                "apply_gradients(zip(gradients, variables))."
            )
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        session.building.make_ready(optimizer, variables)
        session.pipeline.apply_gradients(gradients, variables, optimizer, session.components.name_of(optimizer))

    def all_gather(self, x: Any) -> tf.Tensor:
        """The rows that all replicas have, in the order of the global batch. For an own step, such as one with a queue.

        Where a batch has fewer examples than replicas, all of them are given it, and its rows stand here once.
        Gradients go through it. On several workers all batches must have one size.

        Args:
            x: a tensor with a row for each of this replica's examples.

        Returns:
            A tensor with a row for each example of the global batch, the same on all replicas.

        Raises:
            InputError: outside a step of training or evaluation; inside a `tf.cond`, `tf.while_loop` or `tf.function`
                of the recipe; on several replicas in micro-batches, or with `execution="xla_step"`.
        """
        return self._session.pipeline.all_gather(tf.convert_to_tensor(x))

    def all_reduce(self, x: Any) -> tf.Tensor:
        """The sum of a tensor over all replicas. For an own step, such as one that counts or averages.

        Args:
            x: a tensor of the same shape on each replica; it counts as 0 on a replica none of whose examples count.

        Returns:
            A tensor of that shape and dtype, the same on all replicas.

        Raises:
            InputError: outside a step of training or evaluation; inside a `tf.cond`, `tf.while_loop` or `tf.function`
                of the recipe; on several replicas in micro-batches, or with `execution="xla_step"`.
        """
        return self._session.pipeline.all_reduce(tf.convert_to_tensor(x))

    @property
    def shared_random(self) -> keras.random.SeedGenerator:
        """A seed generator that draws the same on all replicas and workers: for noise on gradients, and the like.

        Other seed generators, those of dropout layers among them, draw differently on each replica.

        Example:
            def transform_gradients(self, gradients, variables):
                return [g + 0.01 * keras.random.normal(g.shape, seed=self.shared_random) for g in gradients]
        """
        return self._session.components.use_shared_random()

    @explain(
        more="fit() takes the data as one argument: fit((x, y), epochs=...), not fit(x, y).",
        unknown=_check_options_of_fit,
    )
    def fit(
        self,
        train_data: Any = None,
        *,
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
        overfit: int | None = None,
        prefetch: int | None = None,
    ) -> History:
        """Trains until `epochs` epochs or `steps` steps are done, counted from the very first.

        With a workdir, the same call in a new process continues from the last checkpoint, and with a larger number it
        trains on. Ctrl-C, SIGTERM and SIGHUP stop at the end of the current execution and save everything; the last two
        then exit with code 75, for a scheduler to start the job again.

        Args:
            train_data: a `tf.data.Dataset` of batches; arrays as `(x, y)` or `(x, y, sample_weight)`, `x` possibly a
                dict or a list (the outermost list counts as a tuple); a `keras.utils.PyDataset`; a sequence of
                examples; a generator or a function that makes one: see `looper.data.make_source`. Batches are read
                ahead of training; give `prefetch=0` for a generator that looks at what was trained. Default: the
                recipe's `train_data()`.
            eval_data: the same for evaluation, or several sets as `looper.data.named` returns them. Default: the
                recipe's `eval_data()`; without any there is none.
            callbacks: besides the recipe's `callbacks()` and the ones that are on by default: the progress bar, and
                with a workdir TensorBoard and its table of runs, metrics.jsonl and checkpoints. One of the same kind
                replaces the default.
                Callbacks of Keras are run by a `looper.callbacks.KerasCallback`.
            epochs, steps, steps_per_epoch, batch_size, shuffle, validation_split, eval_every, eval_steps, save_every,
                log_every, class_weight, resume, max_time, progress, overfit, prefetch: see
                `looper.base.options.FitOptions`.

        Returns:
            `self.history`: `history["loss"]`, `history["eval/loss"]`, `history.epochs["loss"]`, `history.rows`.

        Raises:
            InputError: if an option or the data is wrong; before training where that can be known.
            NonFiniteLossError: at the next boundary after the loss became NaN or infinite.
            SaveError: if the last checkpoint cannot be written.
            KeyboardInterrupt: after Ctrl-C, when everything is saved.
            SystemExit: after SIGTERM or SIGHUP, when everything is saved; its code is 75.
        """
        given = locals()
        options = FitOptions(**{name: given[name] for name in FitOptions.__dataclass_fields__}).check()
        session, position = self._session, self._position
        session.devices.workers.check_same(lambda: {"fit": describe(options)})
        own: Sequence[Callback] = ()
        if type(self).callbacks is not Trainer.callbacks:
            with session.devices.random.entered():
                own = self.callbacks()
        with_workdir = self.workdir is not None
        callbacks = with_defaults([*own, *as_list(callbacks)], progress=options.progress, workdir=with_workdir)
        if options.class_weight:
            self._check_no_own("class_weight", "compute_loss", "train_step")
        fit = Fit(session, position, options, callbacks, self.config, self._lock, self._saver, self.predict)
        self.ledger = fit.ledger
        position.use(callbacks)
        self._refresh()
        share = False
        if train_data is None:
            train_data, share = session.sources.own_training()
        fit.run(train_data, share, eval_data)
        return self.history

    def _check_no_own(self, option: str, *names: str) -> None:
        for method in names:
            if method in self._session.hooks.own:
                name = type(self).__name__
                raise InputError(f"{option} is for looper's own {method}, and {name} overrides it: weigh there.")

    def _refresh(self) -> None:
        """Drops what was compiled if the model, optimizer, loss or metrics were set to other ones."""
        if self._session.refresh():
            self._position.window.reset()
            self._position.window.forget_held()

    @explain(more="train_on_batch() takes a batch as one argument: train_on_batch((x, y)), not train_on_batch(x, y).")
    def train_on_batch(self, batch: Any) -> dict[str, float]:
        """Makes one training step on a batch, for a loop of your own: data that depends on what was trained.

        The step is that of `fit`, compiled once for the first number of examples and once for all others. It runs in
        the graph; with `execution="xla_step"` it is an XLA program, with "eager" Python. `self.step` counts on, as
        `fit`, `save` and `evaluate` see it; epochs, callbacks and checkpoints are those of `fit` alone. The results are
        read from the device at once, so that each call waits for its step.

        Args:
            batch: one batch as data yields it, such as `(x, y)`, of arrays or tensors. Floats become Keras' floatx. It
                is divided over the replicas; each of several workers gives the same.

        Returns:
            The loss and logs of this step, and the metrics over this batch alone, by the names that `fit` logs.

        Raises:
            InputError: if the batch is no such, or does not fit the recipe.
            NonFiniteLossError: if the loss became NaN or infinite.

        Example:
            >>> import numpy as np
            >>> trainer = Trainer(model=keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
            ...                   optimizer=keras.optimizers.SGD(0.1), loss="mse")
            >>> losses = [trainer.train_on_batch((np.ones((4, 2)), np.zeros((4, 1))))["loss"] for _ in range(20)]
            >>> trainer.step, losses[-1] < 1e-3
            (20, True)
        """
        return self._single.train(batch)

    @explain(more="evaluate() takes the data as one argument: evaluate((x, y)), not evaluate(x, y).")
    def evaluate(
        self,
        data: Any = None,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Any] = (),
    ) -> dict[str, float]:
        """Evaluates: every example once, the same numbers on any number of replicas.

        Args:
            data: as for `fit`, or several sets as `looper.data.named` returns them; default: the recipe's
                `eval_data()`.
            batch_size: examples per batch, for arrays (default 32).
            steps: the most batches to take (default: all).
            callbacks: Keras' own are called as by Keras' `evaluate`, around each batch if they look at batches, and may
                end it by `model.stop_evaluating`; those of looper have `on_eval_begin` and `on_eval_end` called.

        Returns:
            The exact mean of the loss and of each log, the metrics, and `examples`, the number of examples seen.

        Raises:
            InputError: if there is no data, it is empty, or it ends before `steps`.
        """
        session = self._session
        data, share = session.sources.own(self.eval_data) if data is None else (data, False)
        if data is None:
            raise InputError("there is no data to evaluate: give evaluate() some, or override eval_data.")
        self._refresh()
        watch = self._watch(callbacks, "test")
        evaluation = session.sources.evaluation(data, batch_size, steps, self._position, share=share)
        evaluation.each(session.steps.trace_evaluation)
        session.steps.leave_idle_metrics_out(evaluation.evaluators)
        if watch is None:
            return evaluation.run()
        with watch:
            results = evaluation.run(watch)
            watch.see(results)
        return results

    def _watch(self, callbacks: Sequence[Any], kind: Literal["test", "predict"]) -> Watch | None:
        stamp = dict(zip(("step", "epoch"), self._position.numbers, strict=False))
        found = checked(callbacks)
        return Watch(found, kind, self.model, self.optimizer, stamp, self.is_chief) if found else None

    @explain(more="audit() takes a batch as one argument: audit((x, y)), not audit(x, y).")
    def audit(self, batch: Any = None, *, batch_size: int | None = None) -> Report:
        """Reports what each layer received as `training`, what it did with it in both steps, and what is wrong.

        Traces a training and an evaluation step, runs them on a batch, and puts everything back: variables, seeds,
        metrics and the position in the data are as before. A model that was not built yet is built, as `fit` does.

        A recipe with a `train_step` of its own is evaluated on the first batch of its `eval_data()`, if it has that.
        Where its training batches are of no use to `eval_step`, training alone is looked at, and a note says so.

        Args:
            batch: one batch as the data yields it, such as `(x, y)`; default: the first of the recipe's `train_data()`.
            batch_size: of `train_data()`, for arrays (default: the recipe's `defaults`, or 32).

        Returns:
            A report: `print(report)`, `report.findings`, `report.ok`, `report.json()`.

        Raises:
            InputError: if there is no data, or the steps cannot be run on it.

        Example:
            >>> import numpy as np
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
            >>> report = Trainer(model=model, optimizer="sgd", loss="mse").audit((np.ones((8, 2)), np.ones((8, 1))))
            >>> report.ok, [row.training for row in report.rows if row.kind == "Dropout"]
            (True, [((True, 'passed on'),)])
        """
        session, eval_data = self._session, None
        own_step = session.hooks.own_train_step is not None
        self._refresh()
        with session.devices.random.put_back(), random_state_put_back():
            given = batch is not None
            batch, division = session.sources.first_batch(batch, batch_size)
            if own_step:
                with contextlib.suppress(Exception) if given else contextlib.nullcontext():
                    eval_data = session.sources.own(self.eval_data)[0]  # which need not be there, to audit a batch
            of_evaluation = (batch, division)
            if eval_data is not None:
                of_evaluation = session.sources.first_batch(None, batch_size, eval_data)
        self._make_ready_for(batch, division)
        recipe, pipeline = session.building.recipe(), session.pipeline
        sharing = replicas.Sharing(division)
        in_evaluation = replicas.Sharing(of_evaluation[1].without_micro_batches())
        examples = int(count_examples(batch, division.parts))
        with self._examining():
            return examine(
                session.steps.examined(),
                pipeline=pipeline,
                train_step=replicas.train_step(recipe, pipeline, [], sharing),
                eval_step=replicas.eval_step(recipe, pipeline, [], in_evaluation),
                batch=batch,
                eval_batch=of_evaluation[0],
                must_evaluate=not own_step or eval_data is not None,
                replica_batch=replica_batch_of(examples, session.devices.replicas, session.options.accumulate),
                evaluating=session.components.evaluating,
            )

    def _make_ready_for(self, batch: Any, division: Division) -> None:
        """Makes all variables that a training step on a batch needs."""
        element_spec = tf.nest.map_structure(tf.type_spec_from_value, batch)
        self._session.sources.make_variables(element_spec, self._position)
        self._session.building.look(element_spec, division.parts, self._position.saved)
        self._session.sources.give_saved(self._position)
        self._session.check_trainable()

    @contextlib.contextmanager
    def _examining(self) -> Iterator[None]:
        """Around steps that are run to be looked at."""
        session = self._session
        compiled = session.options.execution != "eager"
        # what a trace makes, such as Keras' global seed, is drawn for once, here or in `fit`
        own_random = contextlib.nullcontext() if compiled else random_state_put_back()
        with session.devices.random.entered(), own_random, session.counts.at(session.counts.tensor()):
            yield

    @explain(more="check_replicas() takes a batch as one argument: check_replicas((x, y)).")
    def check_replicas(self, batch: Any = None, *, batch_size: int | None = None) -> ReplicaReport:
        """Whether a step on the strategy's replicas is the step that one replica does: a proof on your own model.

        Runs a training step on a batch spread over the replicas, and on the first replica alone, from the same state,
        with optimizers that subtract the gradients as they are. It compares how each trained variable changed, and what
        the trainer's other variables and frozen weights hold after it. Everything is put back: variables, seeds,
        metrics and the position in the data are as before. Where layers draw random numbers or gather batch statistics
        on each replica, the report names them, and all else is compared with these off. Python code of the recipe that
        is called in the steps runs when they are traced, as before a fit.

        "On the first replica alone" means that all replicas get the whole batch, which counts on the first: each device
        must hold it, and a step that gathers the examples of all replicas with TensorFlow's own calls, and not with
        `all_gather`, cannot be checked. Gradients that are smaller than 1e-6 (float32) of all of them together are not
        told apart from rounding.

        Args:
            batch: one batch as the data yields it, such as `(x, y)`; default: the first of the recipe's `train_data()`.
            batch_size: of `train_data()`, for arrays (default: the recipe's `defaults`, or 32).

        Returns:
            A report: `print(report)`, `report.ok`, `report.verdict`, `report.differences` by path, `report.reasons`.

        Raises:
            InputError: if there is one replica only, fewer examples than replicas, or the step cannot be run.

        Example:
            report = Digits(strategy="mirrored", devices=2).check_replicas((x, y))
            assert report.ok, report
        """
        session, count = self._session, self._session.devices.replicas
        if count == 1:
            raise InputError(
                "check_replicas() compares several replicas with one, and there is one: make the Trainer with "
                "strategy='mirrored', devices=2."
            )
        self._refresh()
        with session.devices.random.put_back(), random_state_put_back():
            batch, division = session.sources.first_batch(batch, batch_size)
        examples = int(count_examples(batch, division.parts))
        if (least := int(min(lengths(batch, division.parts)))) < count:
            raise InputError(f"the batch has {least} example(s): expected at least one for each of {count} replicas.")
        self._make_ready_for(batch, division)
        recipe, components = session.building.recipe(), session.components

        def make_step(spread: bool, names: list[str]) -> Callable[[Any], tf.Tensor]:
            return replicas.train_step(recipe, session.pipeline, names, replicas.Sharing(division, spread=spread))

        with self._examining(), explaining_checks():
            return compare(
                session.steps.examined(),
                make_step=make_step,
                batch=batch,
                examples=examples,
                alike=kept_alike(components.attributes(), components.trainable_variables()),
                strategy=self.strategy,
                optimizers_of=list(components.optimizers().values()),
                precision=session.options.precision,
                synchronize=session.options.accumulate == 1,
            )

    @explain(more="predict() takes the data as one argument; give batch_size= and steps= by name.")
    def predict(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Any] = (),
    ) -> Any:
        """The model's outputs, one row per example, in order.

        Args:
            data: as for `fit`. The default `predict_step` takes `x` of `(x, y, ...)`; a list of arrays is an `x`.
            batch_size: examples per batch, for arrays (default 32).
            steps: the most batches to take (default: all).
            callbacks: Keras' own are called as by Keras' `predict`, and may end it by `model.stop_predicting`; those of
                looper have `on_predict_begin` and `on_predict_end` called.

        Returns:
            NumPy arrays in the structure of `predict_step`'s outputs; the first axis is as long as the data.

        Raises:
            InputError: if the data is empty, endless without `steps`, or does not fit the model.
        """
        watch = self._watch(callbacks, "predict")
        with contextlib.nullcontext() if watch is None else watch:
            return join(self._batches(data, batch_size, steps, watch))

    @explain(more="predict_batches() takes the data as one argument; give batch_size= and steps= by name.")
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
        return self._batches(data, batch_size, steps)

    def _batches(
        self, data: Any, batch_size: int | None, steps: int | None, watch: Watch | None = None
    ) -> Generator[Any, None, None]:
        check_positive("steps", steps)
        sources = self._session.sources
        feed = sources.prediction(as_inputs(data), batch_size)
        if feed.source.endless and steps is None:
            raise InputError(
                "the data never ends: predict() needs steps=, or data that ends, such as dataset.take(10)."
            )
        self._refresh()
        sources.make_variables(feed.source.element_spec, self._position, metrics=False)
        return self._predicted(self._session.steps.prediction(feed.source), feed, steps, watch)

    def _predicted(
        self, predict: Callable[[Any], Any], feed: Feed, limit: int | None, watch: Watch | None
    ) -> Generator[Any, None, None]:
        with self._session.components.evaluation_weights():
            yield from predict_each(predict, feed, limit, watch)

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
        with contextlib.ExitStack() as held:
            if path is None:
                self._session.devices.workers.by_chief(lambda: held.enter_context(self._lock))
            return self._save(path)

    def _save(self, path: str | os.PathLike | None) -> Path:
        path = self.workdir / "checkpoints" / checkpoint.name_of(self.step) if path is None else Path(path)
        session, position = self._session, self._position
        workers, state = session.devices.workers, None
        with contextlib.suppress(OSError):  # which is told below
            path.parent.mkdir(parents=True, exist_ok=True)
        if not session.components.unbuilt:
            session.sources.give_saved(position)
            state = session.components.state(session.steps.captured)
        self._saver.settle()  # one after the other, also where a callback of `fit` calls this
        if position.waiting is not None:  # its position and windows wait for fit
            path = position.waiting.write(path, state, position.progress, workers)
        else:
            state = state or session.components.state()
            iterator = None if position.feed is None else position.feed.saved_iterator
            path = take(path, state, position.items(session.devices.random), iterator, workers).write()
        workers.wait()
        return path

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
        session = self._session
        try:
            saved = read(path, session.devices.workers)
            session.building.enter(saved)
            if not session.components.unbuilt:  # otherwise all are given their values when it is built
                saved.apply(session.components.state(session.steps.captured), session.building.lacks_variables)
            self._position.take(saved)
        except checkpoint.DamagedCheckpointError as error:
            raise InputError(f"the checkpoint is damaged: {error}") from None

    def save_model(self, path: str | os.PathLike, model: str = "model") -> None:
        """Writes the model alone, to be loaded without looper.

        Args:
            path: ending in `.keras` for `keras.models.load_model`; ending in `.weights.h5` for `load_weights` of a
                model that the code makes; any other is the directory of a SavedModel for `tf.saved_model.load`, with
                the function `serve` and the signatures `serve` and `serving_default`, whose arguments are called as the
                model's `keras.Input`s.
            model: the name of the trainer's attribute.

        Raises:
            InputError: if the trainer has no Keras model called `model`.
        """
        models = self._session.components.models()
        if model not in models:
            there = type(getattr(self, model, None)).__name__
            found = f": {nearest(model, models)}" if models else f", which is {there}"
            raise InputError(f"save_model() writes self.{model}{found}; expected a keras.Model.")
        self._session.sources.give_saved(self._position)
        written = models[model]
        weights_only = str(path).endswith(".weights.h5")
        if not weights_only and Path(path).suffix in (".h5", ".hdf5", ".tf", ".pb", ".onnx", ".weights"):
            raise InputError(
                f"save_model({str(path)!r}): give a path that ends in .keras, or a directory (SavedModel), or one that "
                "ends in .weights.h5."
            )
        with self._session.devices.policy(), self._session.components.evaluation_weights():
            if not self.is_chief:
                pass  # it has its part in the statistics
            elif weights_only:
                written.save_weights(path, overwrite=True)
            elif Path(path).suffix == ".keras":
                written.save(path)
            else:
                written.export(path, verbose=False)

    @property
    def step(self) -> int | Any:
        """Steps done, from the very first; skipped ones count. An int64 scalar tensor inside a step."""
        return self._session.counts.step

    @property
    def epoch(self) -> int | Any:
        """Epochs done, from the very first. An int64 scalar tensor inside a step."""
        return self._session.counts.epoch

    @property
    def last_step(self) -> int | Any:
        """The step that `fit` trains to, for what follows the length of a run, such as `looper.CosineDecay`.

        An int64 scalar tensor inside a step. It is that of the last `fit`, and 0 before the first.

        Raises:
            InputError: if nobody can tell how long the data is; inside a step, when the step is run.
        """
        return self._session.counts.last_step

    @property
    def history(self) -> History:
        """What `fit` has logged."""
        return self._position.history

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files and says things: worker 0, or the only one."""
        return self._session.devices.workers.is_chief
