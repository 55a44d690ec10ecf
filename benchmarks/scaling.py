"""How long a step takes on several replicas and workers under looper, by hand and in Keras, and what reducing costs.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --replicas 2 --workers 2 --models mlp --peers hand_split --seconds 5 --out try.json

Replicas are logical CPUs under a MirroredStrategy; workers are processes under a MultiWorkerMirroredStrategy, which
meet on this machine by TF_CONFIG. All share the cores of one machine: what more of them cost shows, not what they gain.
One worker is one replica, and is measured once. Batches are as in `benchmarks.hot_step`, but large enough for 16
examples a replica, and even.

- by hand, each worker has one plain iterator over whole batches, and each replica slices its part inside
  `strategy.run`, in a loop of many steps in the graph; or the iterator is `experimental_distribute_dataset`'s.
- The same without the reduction (each replica applies its own gradients) tells the share of collectives.
- looper runs with bar, TensorBoard, metrics.jsonl and checkpoints, once with its steps in the graph, as the loops by
  hand have them, and once in the mode that it chooses (`execution="auto"`). Keras has a bar and TensorBoard.

Each is a process of its own, or a group of them, and trains in turns, a burst of steps each. None uses dropout, whose
masks would differ, so that all but those without a reduction must have the same loss in the first burst. Ratios are of
bursts of the same turn. How a step would scale on GPUs follows in the result as a model: it is not measured.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import scaling_model
from benchmarks.hot_step import TOLERANCE, failing
from benchmarks.peers import ON_REPLICAS, keras_models
from benchmarks.peers.group import Group
from benchmarks.peers.process import Size
from benchmarks.problems import PROBLEMS, on_replicas
from benchmarks.saving import save
from looper.commands.bench.statistics import median

RESULT = Path(__file__).parent / "results" / "scaling.json"
BOUNDS = {"hand_split": 1.03, "hand_distributed": 0.8}
"""What looper is to take at most of each."""

OURS = ("looper", "looper_auto")
ONLY_WITH_SEVERAL = {"hand_unreduced", "hand_distributed"}
LEAST_TURNS = 5
SCALARS = 2
"""That looper reduces with the gradients: the sum and the weight of the loss."""


def size_of(model: str, replicas: int) -> Size:
    """Bursts a fifth as long as those of `benchmarks.hot_step`: there are more contenders, and steps are slower."""
    problem = PROBLEMS[model]
    calls = max(1, problem.steps_per_burst // 5 // problem.steps_per_call)
    return Size(
        model,
        calls * problem.steps_per_call,
        problem.steps_per_call,
        dropout=0.0,
        execution="graph",
        replicas=replicas,
    )


def bytes_reduced(model: str) -> dict[str, int]:
    """What one step reduces: a gradient for each trained variable, and looper's logs with them, all float32."""
    variables = keras_models.model(PROBLEMS[model], 0.0).trainable_variables
    gradients = sum(4 * int(np.prod(variable.shape)) for variable in variables)
    return {"gradients": gradients, "looper": gradients + 4 * SCALARS}


def measure(
    names: Sequence[str], size: Size, workers: int, seconds: float, warm_up: int = 2
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, str]]:
    """Trains in turns.

    Args:
        names: of `ON_REPLICAS`.
        size: of the task.
        workers: processes of each.
        seconds: that the turns take, but there are at least `LEAST_TURNS`.
        warm_up: turns that are not counted, besides the first bursts.

    Returns:
        Seconds of each one's bursts; the loss of each one's first burst; why others failed.
    """
    without: dict[str, str] = {}
    with contextlib.ExitStack() as running:
        groups: dict[str, Group] = {}
        for name in names:
            with failing(name, without):
                groups[name] = running.enter_context(Group(name, size, workers))
        bursts: dict[str, list[float]] = {name: [] for name in groups}
        for _ in turns(seconds, warm_up + LEAST_TURNS):
            for name in groups:
                if name not in without:
                    with failing(name, without):
                        bursts[name].append(groups[name].burst()["seconds"])
        for name in groups:
            if name not in without:
                with failing(name, without):
                    groups[name].close()
        found = {name: np.array(bursts[name][warm_up:]) for name in groups if name not in without}
        return found, {name: groups[name].first["loss"] for name in found}, without


def turns(seconds: float, least: int) -> Iterator[int]:
    """Counts turns for so long, but at least so many."""
    began, turn = time.perf_counter(), 0
    while turn < least or time.perf_counter() - began < seconds:
        yield turn
        turn += 1


def check(losses: dict[str, float]) -> dict[str, float]:
    """The relative difference of each first burst's loss from looper's.

    Raises:
        SystemExit: if one exceeds `TOLERANCE`: it does not train the same.

    Example:
        >>> check({"looper": 2.0, "hand_split": 2.0, "hand_unreduced": 3.0})
        {'hand_split': 0.0}
    """
    ours = losses["looper"]
    differences = {
        name: abs(loss - ours) / ours for name, loss in losses.items() if name not in ("looper", "hand_unreduced")
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE["float32"]:
            raise SystemExit(f"{name} trains something else: its first loss is {losses[name]}, and looper's {ours}")
    return differences


def compare(model: str, replicas: int, workers: int, names: Sequence[str], seconds: float) -> dict[str, Any]:
    """One model on one number of replicas, as it is written."""
    names = [name for name in names if replicas > 1 or name not in ONLY_WITH_SEVERAL]
    size = size_of(model, replicas)
    found, losses, without = measure(["looper", *names], size, workers, seconds)
    if "looper" not in found:
        raise SystemExit(f"looper: {without['looper']}")
    differences = check(losses)
    times = {name: values * 1e6 / size.steps_per_burst for name, values in found.items()}
    result: dict[str, Any] = {
        "replicas": replicas,
        "workers": workers,
        "batch": on_replicas(PROBLEMS[model], replicas).batch,
        "microseconds per step": {ON_REPLICAS[name].title: median(values) for name, values in times.items()},
    } | {f"ratios {ON_REPLICAS[own].title} / other, turn by turn": ratios(times, own) for own in OURS if own in times}
    if {"hand_split", "hand_unreduced"} <= times.keys():
        result["share of collectives"] = median(1 - times["hand_unreduced"] / times["hand_split"])
    return result | {
        "bytes reduced per step": bytes_reduced(model) if replicas > 1 else dict.fromkeys(("gradients", "looper"), 0),
        "does not work": {ON_REPLICAS[name].title: reason for name, reason in without.items()},
        "relative difference of the first loss from looper's": {
            ON_REPLICAS[name].title: difference for name, difference in differences.items()
        },
        "turns": len(found["looper"]),
        "steps per burst": size.steps_per_burst,
        "steps per call of in-graph loops": size.steps_per_call,
    }


def ratios(times: dict[str, np.ndarray], own: str) -> dict[str, dict[str, Any]]:
    """What one of `OURS` takes of the time of each other, turn by turn, and whether that is within its bound."""
    found = {}
    for name, peer in ON_REPLICAS.items():
        if name in times and name not in ("hand_unreduced", *OURS):
            found[peer.title] = ratio = median(times[own] / times[name])
            if name in BOUNDS:
                ratio["within bound"] = ratio["median"] <= BOUNDS[name]
    return found


def measured_points(results: dict[str, dict[str, Any]]) -> list[scaling_model.Measured]:
    """What the model is fitted to: the medians of the loops by hand, with and without the reduction."""
    points = []
    for key, one in results.items():
        for name in ("hand_split", "hand_unreduced"):
            time_of = one["microseconds per step"].get(ON_REPLICAS[name].title)
            if time_of is not None:
                points.append(
                    scaling_model.Measured(
                        key.split(",")[0],
                        "mirrored" if one["workers"] == 1 else "multi_worker",
                        one["replicas"],
                        one["batch"],
                        one["bytes reduced per step"]["gradients"] if name == "hand_split" else 0,
                        time_of["median"] / 1e6,
                    )
                )
    return points


def modelled(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The model in the result: fitted here, and what it says of GPUs by assumptions that stand beside."""
    points = measured_points(results)
    constants = scaling_model.fit(points)
    errors = {}
    for point in points:
        what = "reduced" if point.size else "not reduced"
        error = scaling_model.predicted(point, constants) / point.seconds - 1
        errors[f"{point.model}, {point.kind}, {point.replicas} replicas, {what}"] = error
    return {
        "formula": scaling_model.FORMULA,
        "fitted on the loops by hand, here": constants,
        "relative errors of the fit": errors,
        "NOT MEASURED: GPUs, assumed": {**scaling_model.ASSUMED, "workloads": scaling_model.WORKLOADS},
        "NOT MEASURED: GPUs, weak scaling by the formula": scaling_model.predictions(),
    }


def configurations(replicas: Sequence[int], workers: Sequence[int]) -> list[tuple[str, int, int]]:
    """Each with its name, replicas in all and workers. One worker is one replica.

    Example:
        >>> configurations([1, 2], [1, 2])
        [('1 replica', 1, 1), ('2 replicas', 2, 1), ('2 workers', 2, 2)]
    """
    pairs = sorted({(count, 1) for count in replicas} | {(count, count) for count in workers}, key=lambda p: p[::-1])
    return [
        (f"{own} workers" if own > 1 else f"{count} replica{'s' if count > 1 else ''}", count, own)
        for count, own in pairs
    ]


def counts(text: str) -> list[int]:
    """Numbers between commas, each at least 1."""
    found = [int(part) for part in text.split(",") if part]
    if any(count < 1 for count in found):
        raise ValueError(text)
    return found


def main() -> None:
    others = [name for name in ON_REPLICAS if name != "looper"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=counts, default="1,2,3,4", help="numbers of them on one worker")
    parser.add_argument("--workers", type=counts, default="1,2", help="numbers of them, each with one replica")
    parser.add_argument("--models", default="mlp,cnn256", help=f"some of {','.join(PROBLEMS)}")
    parser.add_argument("--peers", default=",".join(others), help=f"some of {','.join(others)}")
    parser.add_argument("--seconds", type=float, default=20, help="of training in turns, for each row of the result")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file to write")
    arguments = parser.parse_args()
    models, names = arguments.models.split(","), arguments.peers.split(",")
    for given, known in ((models, PROBLEMS), (names, others)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"there is no {', '.join(unknown)}; expected some of {', '.join(known)}")
    results = {}
    for model in models:
        for title, replicas, workers in configurations(arguments.replicas, arguments.workers):
            results[f"{model}, {title}"] = compare(model, replicas, workers, names, arguments.seconds)
            print(f"{model}, {title}: {results[f'{model}, {title}']['microseconds per step']}", file=sys.stderr)
    whole = {
        "cores": os.cpu_count(),
        "bounds of looper / other": {ON_REPLICAS[name].title: b for name, b in BOUNDS.items()},
        "measured": results,
        "model": modelled(results),
    }
    print(save(arguments.out, whole, "benchmarks.scaling"))


if __name__ == "__main__":
    main()
