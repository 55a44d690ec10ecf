"""What looper says of recipes that are right: the twelve programs, the recipes, and models that are unusual.

    python -m benchmarks.said

Each program and recipe is trained for a few steps, on one device and on two replicas; an unusual model is audited.
Listed are the warnings of the run and the findings of its audit, for a reader to judge: all are right, so that nothing
ought to be said of them that is not true.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

import looper
from benchmarks.saving import save

RESULT = Path(__file__).parent / "results" / "said.json"
RECIPES = Path(__file__).parents[1] / "recipes"
DEVICES: dict[str, dict[str, Any]] = {"one device": {}, "two replicas": {"strategy": "mirrored", "devices": 2}}


def said(train: Callable[[], looper.Trainer]) -> list[str]:
    """What is said while something is trained, and what the audit of its compiled steps has found."""
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always", UserWarning)
        trainer = train()
    told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    report = (
        trainer._session.steps.report
    )  # what the check at the start of `fit` found, which it shows without the notes
    findings = [] if report is None else [str(finding) for finding in report.findings]
    return [*told, *(finding for finding in findings if not any(finding.partition(": ")[2] in each for each in told))]


def of_programs() -> dict[str, dict[str, list[str]]]:
    """Of each program, by devices."""
    from tests.programs import PROGRAMS, shared

    def train(program: Any, options: dict[str, Any]) -> looper.Trainer:
        trainer = program.Recipe(execution="graph", **options)
        shared.fit(program, trainer, steps=6)
        return trainer

    return {
        name: {on: said(lambda p=program, o=options: train(p, o)) for on, options in DEVICES.items()}
        for name, program in PROGRAMS.items()
    }


def of_recipes() -> dict[str, dict[str, list[str]]]:
    """Of each file in recipes/, by devices."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(RECIPES.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        kinds = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, looper.Trainer)]
        [kind] = [k for k in kinds if k.__module__ == path.stem]

        def train(kind: type[looper.Trainer] = kind, **options: Any) -> looper.Trainer:
            trainer = kind(execution="graph", **options)
            trainer.fit(steps=6, batch_size=kind.defaults.get("batch_size"), progress=False)
            return trainer

        found[path.name] = {on: said(lambda t=train, o=options: t(**o)) for on, options in DEVICES.items()}
    return found


def of_unusual_models() -> dict[str, list[str]]:
    """Of each, the findings of `audit`."""
    from tests.audit.test_correct_but_unusual_models import CASES

    found: dict[str, list[str]] = {}
    for case in CASES:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            report = case.make().audit(case.batch)
        found[case.name] = [str(dataclasses.replace(finding, also=())) for finding in report.findings]
    return found


def main() -> None:
    """Writes the table, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    out = parser.parse_args().out
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    programs, recipes, unusual = of_programs(), of_recipes(), of_unusual_models()
    for name, by_devices in (programs | recipes).items():
        for on, told in by_devices.items():
            print(f"{name}, {on}: {' / '.join(told) or 'nothing'}")
    for name, findings in unusual.items():
        print(f"{name}: {' / '.join(findings) or 'nothing'}")
    save(out, {"programs": programs, "recipes": recipes, "unusual models": unusual}, "benchmarks.said")


if __name__ == "__main__":
    main()
