"""The progress bar: tqdm on a terminal and in a notebook, plain lines elsewhere."""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from looper.base.own_logs import OWN_LOGS
from looper.base.say import Quiet
from looper.run.callback import Callback, Logs, Run

NARROW = 80
"""Columns: with fewer there is no room for a bar besides the numbers."""

QUIET = OWN_LOGS - {"examples", "input_wait"}
"""Logs that the bar leaves to TensorBoard, or shows in a form of its own."""


class ProgressBar(Callback):
    """Shows epoch, step, loss and metrics, steps and examples a second, the time left, and at the end where it went.

    Args:
        stream: where to write (default: standard error, in a notebook its output). A terminal that cannot go back in a
            line (`TERM=dumb`) gets plain lines, and a notebook without the package `ipywidgets`.
        plain_seconds: without a terminal, the least seconds between two lines within an epoch.
        clock: seconds since some fixed moment; a test gives its own.

    Example:
        >>> ProgressBar(plain_seconds=30).plain_seconds
        30
    """

    chief_only = True

    def __init__(
        self,
        stream: TextIO | None = None,
        plain_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self.plain_seconds = plain_seconds
        self._clock = clock
        self._bar: tqdm | None = None

    def on_fit_begin(self, run: Run) -> None:
        in_notebook = self.stream is None and is_notebook()
        self._out = Quiet(self.stream or (sys.stdout if in_notebook else sys.stderr))
        self._epoch = self._shown_epoch(run.first_epoch)
        self._began = self._last_line = self._clock()
        self._due: tuple[int, Logs] | None = None  # a line to write at the end of this boundary
        self._done_before = bool(run.first_step and run.last_step is not None and run.first_step >= run.last_step)
        if self._done_before:
            longer = "steps" if run.epochs is None else "epochs"
            done = f"nothing to do: {run.first_step} steps are done"
            self._write(f"{done}; a larger {longer}= trains on, resume=False starts anew")
        elif run.first_step:
            self._write(f"continuing after step {run.first_step}")
        kind = _kind_of_bar(self._out, in_notebook)
        if kind is not None and not self._done_before:
            known = run.last_step is not None
            self._bar = kind(
                total=run.last_step,
                initial=run.first_step,
                unit=" steps",
                file=self._out,
                miniters=1,
                dynamic_ncols=True,
                bar_format=None if in_notebook else _format(_columns(self._out), known),
            )
            self._bar.set_description(self._epoch_text(), refresh=False)

    def on_execution(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def on_step(self, step: int, logs: Logs) -> None:
        text = f"{values(logs)}  {logs.get('examples_per_second', 0):,.0f} examples/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        elif self._clock() - self._last_line >= self.plain_seconds or step == self.run.last_step:
            self._due = (step, logs)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """The means over the epoch, in place of those since the last log."""
        step, self._due = int(logs["step"]), None
        if self._bar is None:
            self._line(step, logs)
        else:
            self._write(f"{self._epoch_text()}  step {step}  {values(logs)}")
        self._epoch = self._shown_epoch(epoch + 1)
        if self._bar is not None:
            self._bar.set_description(self._epoch_text(), refresh=False)

    def on_eval_begin(self, step: int) -> None:
        self._write_due()

    def on_boundary_end(self, step: int) -> None:
        self._write_due()

    def on_eval_end(self, step: int, logs: Logs) -> None:
        examples = {name: value for name, value in logs.items() if name.endswith("/examples")}
        seen = f"({', '.join(f'{count:,.0f}' for count in examples.values())} examples)"
        shown = {name.removeprefix("eval/"): value for name, value in logs.items() if name not in examples}
        self._write(f"  evaluation after step {step}  {values(shown)}  {seen}")

    def on_log(self, step: int, logs: Logs) -> None:
        self._write(f"  logged after step {step}  {values(logs)}")

    def on_fit_end(self) -> None:
        self._close()
        if self.run.stop_reason:
            more = "; the same command continues" if self.run.interrupted and self.run.workdir else ""
            self._write(f"stopped: {self.run.stop_reason}{more}")
        if not self._done_before:
            self._write(str(self.run.ledger))

    def on_exception(self, error: BaseException) -> None:
        self._close()
        if isinstance(error, SystemExit):
            self._write("stopped by a signal" + ("; the same command continues" if self.run.workdir else ""))
        if isinstance(error, SystemExit | KeyboardInterrupt):
            self._write(str(self.run.ledger))

    def _write_due(self) -> None:
        if self._due is not None:
            self._line(*self._due)
            self._due = None

    def _line(self, step: int, logs: Logs) -> None:
        self._last_line = self._clock()
        of = f"/{self.run.last_step}" if self.run.last_step else ""
        speed = f"{logs.get('steps_per_second', 0):,.1f} steps/s  {logs.get('examples_per_second', 0):,.0f} examples/s"
        self._write(f"{self._epoch_text()}  step {step}{of}  {values(logs)}  {speed}{self._time_left(step)}")

    def _time_left(self, step: int) -> str:
        done = step - self.run.first_step
        if not self.run.last_step or not done or step == self.run.last_step:
            return ""
        seconds = (self._clock() - self._began) / done * (self.run.last_step - step)
        return f"  {tqdm.format_interval(seconds)} left"

    def _shown_epoch(self, done: int) -> int:
        """The epoch that is running when so many are done, from 0; at the end it is still the last one."""
        return done if self.run.epochs is None else min(done, self.run.epochs - 1)

    def _epoch_text(self) -> str:
        return f"epoch {self._epoch + 1}/{self.run.epochs}" if self.run.epochs else f"epoch {self._epoch + 1}"

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        else:
            self._out.write(text + "\n")
            self._out.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def is_notebook() -> bool:
    """Whether this is a notebook's kernel, as `tqdm.autonotebook` tells it.

    Example:
        >>> is_notebook()
        False
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def _kind_of_bar(out: Quiet, in_notebook: bool) -> type[tqdm] | None:
    if in_notebook:
        if importlib.util.find_spec("ipywidgets") is None:
            return None
        from tqdm.notebook import tqdm as of_notebook  # it imports IPython's widgets

        return _without_thread(of_notebook)
    drawn = out.isatty() and os.environ.get("TERM") != "dumb" and _columns(out) > 0  # some say that they have none
    return _without_thread(tqdm) if drawn else None


def _without_thread(kind: type[tqdm]) -> type[tqdm]:
    """The kind of bar without the thread that makes it draw what it has saved up: it draws at each execution."""
    return type(kind.__name__, (kind,), {"monitor_interval": 0})


def _columns(out: Quiet) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns
    except (OSError, ValueError):  # no terminal of the system's, such as an editor's
        return NARROW


def _format(columns: int, known: bool) -> str:
    """tqdm's line, which it cuts at the right: what people look at first comes first."""
    if not known:
        return "{desc}{n_fmt} steps [{elapsed}]{postfix}, {rate_fmt}"
    drawn = "{percentage:3.0f}%|{bar:10}|" if columns >= NARROW else "{percentage:3.0f}%"
    return f"{{desc}}{drawn} {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}]{{postfix}}, {{rate_fmt}}"


def values(logs: Logs) -> str:
    """Loss and metrics as text.

    Example:
        >>> values({"step": 10, "epoch": 0, "loss": 0.123456, "accuracy": 0.5, "learning_rate": 0.1})
        'loss 0.1235  accuracy 0.5'
    """
    return "  ".join(f"{name} {value:.4g}" for name, value in logs.items() if name.split("/")[0] not in QUIET)
