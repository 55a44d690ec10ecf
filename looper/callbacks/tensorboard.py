"""Write what is logged to TensorBoard."""

import time
from pathlib import Path

import keras
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary

from looper.base import memory
from looper.base.errors import InputError
from looper.callbacks.configuration import table
from looper.run.callback import Callback, Logs, Run
from looper.run.events import Events, layer_graph, layout, text


class TensorBoard(Callback):
    """Training and evaluation; the configuration, model, audit and mode as text; the model's graph.

    The workdir is one run of TensorBoard, with `loss` of training and `eval/loss` of evaluation; its tab "custom
    scalars" draws each such pair together. Points are means over log windows; of several within 1/50 s the last is
    written. A run that looper before 0.2 began goes on in its directories `train` and `eval`.

    Beside them stands where the time between two points went: `time/input`, `time/device` and so on, shares from 0 to 1
    of the categories of `looper.base.ledger`; and `memory/process`, in MiB, with `memory/GPU:0` and so on, where there
    are GPUs. They are here only: rows of logs stay the same when a run is repeated, but for its speed, and
    `looper.callbacks.Throughput` adds the wait for input to them.

    Args:
        directory: where to write; default: the workdir.

    Raises:
        InputError: when `fit` begins, if there is neither a directory nor a workdir.

    Example:
        >>> TensorBoard("runs/elsewhere").directory
        PosixPath('runs/elsewhere')
    """

    chief_only = True

    SECONDS_BETWEEN_POINTS = 1 / 50

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = None if directory is None else Path(directory)

    def on_fit_begin(self, run: Run) -> None:
        if self.directory is None and run.events is None:
            raise InputError("the TensorBoard callback needs a directory: give the Trainer workdir= or it directory=.")
        self._events = run.events if self.directory is None else Events(self.directory, run.first_step)
        self._last_point = 0.0
        self._seconds: dict[str, float] = {}  # by the ledger, at the last point
        self._pending: tuple[int, Logs] | None = None
        self._logged, self._laid_out = set(run.log_names), False
        self._lay_out()
        self._gpus = tf.config.list_logical_devices("GPU")
        self._events.add("train", run.first_step, text("configuration", table(run.config)))
        if isinstance(run.model, keras.Model) and run.model.built:
            if (graph := layer_graph(run.model)) is not None:
                self._events.add_graph(graph)
            lines: list[str] = []
            run.model.summary(print_fn=lambda line, **_: lines.append(line), line_length=100)
            summary = "\n".join("    " + line for line in "\n".join(lines).splitlines())
            self._events.add("train", run.first_step, text("model", summary))
        if run.audit is not None:
            self._events.add("train", run.first_step, text("audit", run.audit.markdown()))
        if run.choice is not None:
            self._events.add("train", run.first_step, text("execution", run.choice.markdown()))

    def _note(self, logs: Logs) -> None:
        """Takes note of what is logged, for as long as that is not laid out."""
        if not self._laid_out:
            self._logged |= set(logs)

    def _lay_out(self) -> None:
        """Draws what is logged in training and in evaluation together, when both are known."""
        both = sorted(name for name in self._logged if f"eval/{name}" in self._logged)
        if both and not self._laid_out and not self._events.apart:
            self._events.add(".", self.run.first_step, layout(both))
            self._laid_out = True

    def on_step(self, step: int, logs: Logs) -> None:
        self._pending = (step, logs)
        self._note(logs)
        now = time.monotonic()
        if now - self._last_point >= self.SECONDS_BETWEEN_POINTS:
            self._last_point = now
            self._write_pending()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._write_pending()

    def on_eval_end(self, step: int, logs: Logs) -> None:
        self._write_pending()
        self._note(logs)
        self._lay_out()
        self._scalars("eval", step, {name.removeprefix("eval/"): value for name, value in logs.items()})

    def on_log(self, step: int, logs: Logs) -> None:
        evaluated = {name.removeprefix("eval/"): value for name, value in logs.items() if name.startswith("eval/")}
        self._scalars("train", step, {name: logs[name] for name in logs if not name.startswith("eval/")})
        if evaluated:
            self._scalars("eval", step, evaluated)

    def on_save(self, step: int, path: Path) -> None:
        self._write_pending()
        self._events.flush()

    def on_fit_end(self) -> None:
        self._write_pending()
        self._close()

    def on_exception(self, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.directory is not None:  # else others may have more to write
            self._events.close()

    def _write_pending(self) -> None:
        if self._pending is not None:
            step, logs = self._pending
            times = {f"time/{name}": share for name, share in self.run.ledger.shares(self._seconds).items()}
            self._scalars("train", step, {**logs, **times, **self._memory()})
            self._seconds, self._pending = self.run.ledger.seconds, None

    def _memory(self) -> dict[str, float]:
        """MiB, by what has them."""
        resident = memory.resident()
        found = {} if resident is None else {"memory/process": resident / 2**20}
        for gpu in self._gpus:
            name = f"GPU:{gpu.name.rpartition(':')[2]}"
            found[f"memory/{name}"] = tf.config.experimental.get_memory_info(name)["current"] / 2**20
        return found

    def _scalars(self, kind: str, step: int, logs: Logs) -> None:
        shown = {name: value for name, value in logs.items() if name not in ("step", "epoch", "window", "examples")}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in shown.items()]
        self._events.add(kind, step, Summary(value=values))
