"""The options of `looper bench`, with their checks. Free of TensorFlow, for a quick command line."""

import dataclasses
from pathlib import Path

from looper.base.errors import InputError, check_choice, check_positive

RAW = "raw"
MODES = ("graph", "xla_step", "xla_loop", "eager")
KERAS = ("keras", "keras_many")
SIDES = (RAW, *MODES, *KERAS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of a measurement: of what, and for how long."""

    sides: tuple[str, ...] = SIDES
    """Sides to measure: 'raw' is a loop by hand in a tf.function; 'graph', 'xla_step', 'xla_loop' and 'eager' are
    looper's modes; 'keras' and 'keras_many' are Keras' fit with one and with the best number of steps per execution.
    The mode of --execution is always among them."""
    seconds: float = 60.0
    """Seconds of bursts, for all sides together. That each side starts and compiles comes before."""
    out: Path | None = None
    """Directory to write bench.json and the chart bench.png to."""
    max_overhead: float | None = None
    """Exit with 1 if looper's time per step, in the mode of --execution, is more than so many times that of the raw
    loop: if the whole 95% interval of the ratio lies above it. 1.02 allows two percent."""

    def check(self) -> "BenchOptions":
        """Returns itself. Raises `InputError` if an option is wrong."""
        if not self.sides:
            raise InputError(f"sides is empty: expected some of {', '.join(SIDES)}.")
        for side in self.sides:
            check_choice("sides", side, SIDES)
        check_positive("seconds", self.seconds, float)
        check_positive("max_overhead", self.max_overhead, float)
        if self.max_overhead is not None and RAW not in self.sides:
            raise InputError(f"max_overhead={self.max_overhead} compares with the raw loop: put 'raw' into --sides.")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError(f"out={str(self.out)!r} is a file: expected a directory.")
        return self
