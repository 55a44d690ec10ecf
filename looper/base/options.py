"""The options of the Trainer and of `fit`, with their checks. Free of TensorFlow, for a quick command line."""

import dataclasses
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from looper.base.errors import InputError, check_choice, check_positive
from looper.base.schedule import Every

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")
PRECISIONS = ("float32", "float64", "mixed_bfloat16", "mixed_float16")
XLA_MODES = ("xla_step", "xla_loop")
EXECUTIONS = ("auto", "graph", *XLA_MODES, "eager")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How a recipe is run. Fields and defaults are those of `looper.Trainer`."""

    workdir: Path | None = None
    """Directory of the run: checkpoints, TensorBoard events, metrics.jsonl, config.json; none writes nothing."""
    strategy: str = "auto"
    """What trains: 'one_device', 'mirrored' (several local devices), 'multi_worker', 'tpu' or 'auto'. 'multi_worker' is
    all workers of the cluster that TF_CONFIG or SLURM tells of; 'auto' is that in a cluster, and 'mirrored' if there
    are several GPUs."""
    devices: int | None = None
    """Number of devices of each worker (default: all GPUs). For 'mirrored' on a machine without GPUs, the CPU is split
    into that many (default: 2)."""
    precision: Literal["float32", "float64", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Number format of the model, for this trainer only."""
    execution: Literal["auto", "graph", "xla_step", "xla_loop", "eager"] = "auto"
    """How steps are run; 'auto' measures. 'graph': many steps in one compiled call. 'xla_step': each step as an XLA
    program. 'xla_loop': many steps as one XLA program over stacked batches. 'eager': step by step in Python, for
    debugging. 'auto' measures them when a run begins, if it is long enough for that to pay, and keeps to the fastest.
    XLA leaves out checks at run time, such as of an Embedding's indices: try new data with 'graph' first."""
    steps_per_execution: int | Literal["auto"] = "auto"
    """Most steps in one compiled call. 'auto' aims at a quarter of a second; boundaries always cut a call."""
    accumulate: int = 1
    """Micro-batches whose gradients are added up before one update."""
    clip_norm: float | None = None
    """Largest global norm of the gradients. Larger ones are scaled down."""
    clip_value: float | None = None
    """Largest absolute value of any gradient element."""
    ema: float | None = None
    """Decay of moving averages of the weights, such as 0.999. Evaluation, prediction and export use the averages."""
    max_skipped: int = 50
    """Most steps in a row that a fit with precision='mixed_float16' may skip, for gradients that are not finite. One
    more is an error. Some are usual at the beginning, until the loss scale fits."""
    seed: int = 0
    """Seed of the initial weights, of shuffling and of dropout."""
    deterministic: bool = False
    """Make TensorFlow's operations deterministic. Needed on a GPU for bit-identical runs; slower. execution='auto' is
    'graph' then, as a measurement may choose otherwise the next time."""
    strict: bool = False
    """Refuse to train if the audit of the compiled steps finds an error. Otherwise it is printed."""

    def check(self) -> "TrainerOptions":
        """Returns itself. Raises `InputError` if an option is wrong."""
        if isinstance(self.strategy, str):
            check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("execution", self.execution, EXECUTIONS)
        check_positive("devices", self.devices)
        check_positive("accumulate", self.accumulate)
        if self.max_skipped is None:
            raise InputError("max_skipped=None: expected a positive whole number.")
        check_positive("max_skipped", self.max_skipped)
        if self.steps_per_execution != "auto":
            check_positive("steps_per_execution", self.steps_per_execution)
        check_positive("clip_norm", self.clip_norm, float)
        check_positive("clip_value", self.clip_value, float)
        if self.clip_norm and self.clip_value:
            raise InputError(
                f"clip_norm={self.clip_norm} and clip_value={self.clip_value}: give one of them, not both."
            )
        check_positive("ema", self.ema, float)
        if self.ema is not None and self.ema >= 1:
            raise InputError(f"ema={self.ema!r}: expected a decay between 0 and 1, such as 0.999.")
        for name in ("deterministic", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={getattr(self, name)!r}: expected True or False.")
        if self.strict and self.execution == "eager":
            raise InputError(
                "strict=True audits compiled steps, and execution='eager' has none: call trainer.audit() instead."
            )
        if not isinstance(self.seed, numbers.Integral) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed!r}: expected a whole number from 0 to 2**32 - 1.")
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How long to train and what to do on the way. Fields and defaults are those of `Trainer.fit`."""

    epochs: int | None = None
    """Train until this many epochs are done, counted from the very first."""
    steps: int | None = None
    """Train until this many steps are done, counted from the very first. Give epochs or steps."""
    steps_per_epoch: int | None = None
    """Length of an epoch in batches, for data that repeats without end."""
    batch_size: int | None = None
    """Examples per global batch, for arrays and indexable data (default 32)."""
    shuffle: bool = True
    """Shuffle arrays and indexable data, anew each epoch and by the seed."""
    validation_split: float | None = None
    """Hold out this last fraction of the examples of arrays for evaluation, in place of eval_data."""
    eval_every: Every | None = None
    """When to evaluate, besides at the end; none means after each epoch."""
    eval_steps: int | None = None
    """Batches per evaluation (default: all)."""
    save_every: Every | None = Every(minutes=5)
    """When to save a checkpoint, besides at the end and when stopped."""
    log_every: Every = Every(steps=100)
    """When to log; steps are counted from the beginning of the epoch, which ends with a log too."""
    class_weight: dict[int, float] | None = None
    """Weight of each class in the training loss. Classes that are not named count 1."""
    resume: Literal["auto", "weights"] | bool = "auto"
    """How to begin where the workdir holds a run: 'auto' continues it. 'weights': start anew from its weights. False:
    start anew."""
    max_time: float | None = None
    """Stop, with everything saved, after this many seconds."""
    progress: bool = True
    """Show the progress bar, or plain lines where there is no terminal."""
    overfit: int | None = None
    """Train on the first N batches alone, and evaluate on them. They come again and again, for as many steps as without
    it (an epoch of data of unknown length has N): a model and a loss that are right come to know them by heart."""
    prefetch: int | None = None
    """0 asks for a batch only when the step before it is done, for data that depends on training. None: read ahead."""

    def check(self) -> "FitOptions":
        """Returns itself, NumPy's numbers of `class_weight` as Python's. Raises `InputError` if an option is wrong."""
        if (self.epochs is None) == (self.steps is None):
            given = f"epochs={self.epochs} and steps={self.steps}"
            raise InputError(f"{given}: give one of them, the total to train until.")
        for name in ("epochs", "steps", "steps_per_epoch", "batch_size", "eval_steps", "overfit"):
            check_positive(name, getattr(self, name))
        check_positive("max_time", self.max_time, float)
        check_positive("validation_split", self.validation_split, float)
        if self.validation_split is not None and self.validation_split >= 1:
            raise InputError(f"validation_split={self.validation_split}: expected a fraction between 0 and 1.")
        for name in ("eval_every", "save_every", "log_every"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Every):
                meant = f"Every(steps={value})" if isinstance(value, int) else "Every(epochs=1) or Every(minutes=5)"
                raise InputError(f"{name}={value!r}: expected a looper.Every, such as {meant}.")
        if self.class_weight is not None:
            if not isinstance(self.class_weight, Mapping):
                raise InputError(f"class_weight={self.class_weight!r}: expected a dict such as {{0: 1.0, 1: 5.0}}.")
            for label, weight in self.class_weight.items():
                if not isinstance(label, numbers.Integral) or not isinstance(weight, numbers.Real) or weight < 0:
                    raise InputError(
                        f"class_weight has {label!r}: {weight!r}; expected a class number and a weight of at least 0."
                    )
        if self.prefetch is not None and (isinstance(self.prefetch, bool) or self.prefetch != 0):
            raise InputError(
                f"prefetch={self.prefetch!r}: expected 0, to ask for a batch when the step before it is done, or None."
            )
        for name in ("shuffle", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={getattr(self, name)!r}: expected True or False.")
        if not isinstance(self.resume, bool) and self.resume not in ("auto", "weights"):
            raise InputError(f"resume={self.resume!r}: expected 'auto', 'weights', True or False.")
        if self.log_every is None:
            raise InputError("log_every=None: expected a looper.Every, such as Every(steps=100).")
        if self.class_weight is None:
            return self
        plain = {int(label): float(weight) for label, weight in self.class_weight.items()}
        return dataclasses.replace(self, class_weight=plain)
