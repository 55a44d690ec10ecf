"""The run in TensorBoard's table of hyperparameters."""

from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import session_end_pb
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb

from looper.base.differences import flat
from looper.base.shown_path import shown_path
from looper.run.callback import Callback, Run

MOST = 20
"""Settings in the table."""


class HParams(Callback):
    """Writes the run's settings and names its metrics, so that TensorBoard's HPARAMS tab compares runs.

    With a workdir it is on by default. The metrics' values are the last ones that TensorBoard has.

    Args:
        values: the settings: numbers, strings and bools by name. Default: the fields of the recipe's own `config`, the
            batch size, precision, seed and number of replicas; at most 20.
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
        values = flat(_settings(run.config) if self.values is None else self.values)
        values = {name: _shown(value) for name, value in values.items() if value is not None}
        evaluated = sorted(n for n in run.log_names if n.startswith("eval/") and not n.endswith("/examples"))
        metrics = [self._metric(name) for name in self.metrics or ["loss", *evaluated]]
        # into the run's directory itself: the plugin looks for a session's metrics there or below, not beside it
        run.events.add(".", run.first_step, hparams_config_pb([HParam(name) for name in values], metrics))
        run.events.add(".", run.first_step, hparams_pb(values, trial_id=shown_path(run.workdir)))

    def _metric(self, name: str) -> Metric:
        if self.run.events.apart:
            of_evaluation = name.startswith("eval/")
            return Metric(name.removeprefix("eval/"), group="eval" if of_evaluation else "train", display_name=name)
        return Metric(name)

    def on_fit_end(self) -> None:
        self._end(api_pb2.STATUS_SUCCESS)

    def on_exception(self, error: BaseException) -> None:
        self._end(api_pb2.STATUS_FAILURE)

    def _end(self, status: int) -> None:
        summary = session_end_pb(status)  # of TensorFlow's class, where the writer wants TensorBoard's
        self.run.events.add(".", self.run.first_step, Summary.FromString(summary.SerializeToString()))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs are compared by, of `config.json`."""
    own = config.get("config")
    own = flat(own if isinstance(own, Mapping) else {})
    options, data = config.get("options", {}), config.get("data", {})
    more = {"batch_size": data.get("batch_size")} if isinstance(data, Mapping) else {}
    more |= {name: options.get(name) for name in ("precision", "seed", "replicas")}
    own = dict(list(own.items())[: MOST - len(more)])
    return own | {name: value for name, value in more.items() if name not in own}


def _shown(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
