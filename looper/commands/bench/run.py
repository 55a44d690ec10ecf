"""Runs the measurement: starts the sides one by one, lets their bursts alternate, and reports."""

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from looper.base.errors import InputError
from looper.commands.bench import chart
from looper.commands.bench.messages import LeftOutError
from looper.commands.bench.options import RAW, SIDES, BenchOptions
from looper.commands.bench.process import Process
from looper.commands.bench.results import results, verdict
from looper.commands.bench.rounds import alternate, burst_seconds
from looper.commands.bench.table import table
from looper.commands.recipe import load


def bench(argv: list[str]) -> int:
    """Runs the command with the words after it. Returns the exit code."""
    loaded = load("bench", argv)
    if loaded is None:
        return 0
    recipe, _, trainer_options, _, options = loaded
    return measure(argv[0], argv[1:], recipe, trainer_options.execution, options)


def measure(spec: str, words: Sequence[str], recipe: type[Any], execution: str, options: BenchOptions) -> int:
    """Measures a recipe, prints the table, and writes `out`.

    Args:
        spec: the recipe as on the command line.
        words: its options there.
        recipe: its class.
        execution: the mode that is asked for.
        options: what to measure.

    Returns:
        The exit code: 1 if `max_overhead` is broken, else 0.

    Raises:
        InputError: if the recipe has no data, or cannot be trained in the mode that is asked for.
    """
    from looper.trainer import Trainer

    options.check()
    if recipe.train_data is Trainer.train_data:
        raise InputError(f"{recipe.__name__} has no train_data(): bench needs the recipe's own data.")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    mode = "graph" if execution == "auto" else execution
    wanted = [side for side in SIDES if side in options.sides or side == mode]
    with tempfile.TemporaryDirectory(prefix="looper-bench-", ignore_cleanup_errors=True) as workdir:
        found = _measure(spec, words, wanted, mode, options, Path(workdir))
    print(table(found))
    code = 0
    if options.max_overhead is not None:
        holds, line = verdict(found, mode, options)
        found["max_overhead"] = {"bound": options.max_overhead, "mode": mode, "kept": holds}
        print(line)
        code = 0 if holds else 1
    if options.out is not None:
        write(found, options.out)
    return code


def _measure(
    spec: str, words: Sequence[str], wanted: Sequence[str], mode: str, options: BenchOptions, workdir: Path
) -> dict[str, Any]:
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        processes = {
            side: stack.enter_context(contextlib.closing(Process(side, spec, words, workdir))) for side in wanted
        }
        for process in processes.values():
            process.receive()
        started: dict[str, dict[str, Any]] = {}
        length = burst_seconds(options.seconds, len(wanted))
        for name in sorted(wanted, key=lambda name: (name != mode, wanted.index(name))):  # the one asked for first
            _say(f"{name}: starts")
            try:
                said = processes[name].ask()
                started[name] = said | processes[name].ask(burst_seconds=length)
            except (LeftOutError, InputError) as error:
                left_out[name] = str(error)
                _check_needed(left_out, mode, options)

        def burst(name: str) -> tuple[int, float]:
            said = processes[name].ask(burst=True)
            return said["steps"], said["seconds"]

        sides = [name for name in wanted if name in started]
        _say(f"bursts of {', '.join(sides)}, in turn, for {options.seconds:g} s")
        bursts, failed = alternate({name: functools.partial(burst, name) for name in sides}, options.seconds, length)
        left_out |= failed
        _check_needed(left_out, mode, options)
        started = {name: started[name] | processes[name].ask(burst=False) for name in bursts}
    return results(spec, words, started, bursts, left_out)


def _check_needed(left_out: Mapping[str, str], mode: str, options: BenchOptions) -> None:
    """Raises `InputError` if there is nothing to report without what is left out."""
    if mode in left_out:
        raise InputError(f"the recipe cannot be measured with execution={mode!r}: {left_out[mode]}")
    if RAW in left_out and options.max_overhead is not None:
        raise InputError(f"max_overhead={options.max_overhead} has nothing to compare with: {left_out[RAW]}.")


def write(found: Mapping[str, Any], out: Path) -> None:
    """Writes `bench.json`, and the chart `bench.png` if matplotlib is installed, into the directory `out`."""
    (out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    if chart.can_draw():
        chart.draw(found, out / "bench.png")
        _say(f"wrote {out / 'bench.json'} and {out / 'bench.png'}")
    else:
        _say(f"wrote {out / 'bench.json'}; pip install 'looper-tf[bench]' gives charts")


def _say(text: str) -> None:
    print(f"looper: bench: {text}", file=sys.stderr, flush=True)
