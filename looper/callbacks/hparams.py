"""The run in TensorBoard's table of hyperparameters."""

from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import session_end_pb
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb

from looper.base.differences import flat
from looper.run.callback import Callback, Logs, Run


class HParams(Callback):
    """Writes the run's settings and names its metrics, so that TensorBoard's HPARAMS tab compares runs.

    The metrics' values are the last ones that were logged; they are written at the end, as `final/loss` and so on.

    Args:
        values: the settings: numbers, strings and bools by name. Default: the recipe's own `config` if it has one,
            otherwise everything in `config.json`.
        metrics: the logs to show; default: `loss` and everything that is evaluated.

    Raises:
        InputError: when `fit` begins, without a workdir.

    Example:
        >>> HParams({"width": 64, "activation": "relu"}).values["width"]
        64
    """

    def __init__(self, values: Mapping[str, Any] | None = None, metrics: list[str] | None = None) -> None:
        self.values, self.metrics = values, metrics

    def on_fit_begin(self, run: Run) -> None:
        run.check_workdir("HParams")
        values = flat(self.values if self.values is not None else run.config.get("config") or run.config)
        values = {name: _shown(value) for name, value in values.items() if value is not None}
        evaluated = sorted(n for n in run.log_names if n.startswith("eval/") and not n.endswith("/examples"))
        self._names = self.metrics or ["loss", *evaluated]
        self._last: dict[str, float] = {}
        metrics = [Metric(f"final/{name}", display_name=name) for name in self._names]
        # into the run's directory itself: the plugin looks for a session's metrics there or below, not beside it
        run.events.add(".", run.first_step, hparams_config_pb([HParam(name) for name in values], metrics))
        run.events.add(".", run.first_step, hparams_pb(values, trial_id=str(run.workdir)))

    def on_step(self, step: int, logs: Logs) -> None:
        self._last |= logs

    on_eval_end = on_log = on_step

    def on_fit_end(self) -> None:
        self._end(api_pb2.STATUS_SUCCESS)

    def on_exception(self, error: BaseException) -> None:
        self._end(api_pb2.STATUS_FAILURE)

    def _end(self, status: int) -> None:
        values = [
            Summary.Value(tag=f"final/{name}", simple_value=self._last[name])
            for name in self._names
            if name in self._last
        ]
        if values:
            self.run.events.add(".", int(self._last["step"]), Summary(value=values))
        summary = session_end_pb(status)  # of TensorFlow's class, where the writer wants TensorBoard's
        self.run.events.add(".", self.run.first_step, Summary.FromString(summary.SerializeToString()))


def _shown(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
