"""The options of `looper doctor`, and its verdicts on what it tried."""

import dataclasses
from pathlib import Path
from typing import Literal

from looper.base.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Where to try what.

    Attributes:
        workdir: the job's directory; None for a temporary one.
        strategy, devices: as of a Trainer.
        report: a directory to write what was found to, in place of printing it: `rank_K.json`.
    """

    workdir: Path | None = None
    strategy: str = "auto"
    devices: int | None = None
    report: Path | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """The verdict of one check.

    Attributes:
        name: of what was tried.
        verdict: "ok"; "FAIL"; "warn" for what works badly; "skip" for what was not tried.
        seen: what was found, in words.
        fix: what to do about it.

    Example:
        >>> print(Check("devices", "FAIL", "the driver has a GPU, TensorFlow none", "pip install 'looper-tf[cuda]'"))
        FAIL  devices      the driver has a GPU, TensorFlow none  -> pip install 'looper-tf[cuda]'
    """

    name: str
    verdict: Literal["ok", "warn", "skip", "FAIL"]
    seen: str
    fix: str = ""

    @classmethod
    def of(cls, name: str, error: InputError) -> "Check":
        """A failed check, of an error that says what is wrong and, after its last colon, what to do.

        Example:
            >>> print(Check.of("workers", InputError("worker 0: its port is in use: give it another.")))
            FAIL  workers      worker 0: its port is in use  -> give it another.
        """
        seen, found, fix = str(error).partition(" Expected ")
        if found:
            return cls(name, "FAIL", seen.rstrip("."), f"expected {fix}")
        seen, _, fix = str(error).rpartition(": ")
        return cls(name, "FAIL", seen, fix) if seen else cls(name, "FAIL", fix)

    def __str__(self) -> str:
        return f"{self.verdict:<4}  {self.name:<11}  {self.seen}" + (f"  -> {self.fix}" if self.fix else "")
