"""Write every logged row to `metrics.jsonl`."""

from pathlib import Path

from looper.run.callback import Callback, Logs, Run
from looper.run.history import METRICS_FILE, OF_EPOCH, as_line, rows_and_others, rows_until
from looper.saved.lines_file import LinesFile


class MetricsFile(Callback):
    """Appends each log and each evaluation to `WORKDIR/metrics.jsonl`, one JSON object a line.

    When an epoch ends there is a row with the means over it, `epoch/loss` and so on.

    Rows of an earlier process that lie after the step it is continued from are dropped: those steps are run again.

    Example:
        >>> MetricsFile.FILE
        'metrics.jsonl'
    """

    chief_only = True

    FILE = METRICS_FILE

    def on_fit_begin(self, run: Run) -> None:
        self._file = file = LinesFile(run.workdir / self.FILE)
        rows, others = rows_and_others(file.path)
        file.set_aside(others)
        file.replace(map(as_line, rows_until(rows, run.first_step, run.first_epoch)))

    def on_step(self, step: int, logs: Logs) -> None:
        self._file.append(as_line(logs))

    on_eval_end = on_log = on_step

    def on_save(self, step: int, path: Path) -> None:
        self._file.sync()  # before the checkpoint that goes on from these rows

    def on_fit_end(self) -> None:
        self._file.close()  # `on_log` opens it again

    def on_exception(self, error: BaseException) -> None:
        self._file.close()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        means = {f"{OF_EPOCH}{name}": value for name, value in self.run.epoch_logs.items()}
        self.on_step(int(logs["step"]), {"step": logs["step"], "epoch": epoch} | means)
