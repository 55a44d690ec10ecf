"""Looks into a trainer for what a test must see and no public name shows. No other test module reads its privates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import looper
from looper.data.feed import Feed
from looper.recipe.metrics import FIXED
from looper.run.steps import Wanted
from looper.step.programs import Execution


def variables(trainer: looper.Trainer) -> Mapping[str, tf.Variable]:
    """All variables that a checkpoint holds, by name."""
    return trainer._session.components.state(trainer._session.steps.captured).variables


def values(trainer: looper.Trainer) -> dict[str, np.ndarray]:
    """The values of all variables that a checkpoint holds, by name."""
    return {name: variable.numpy() for name, variable in variables(trainer).items()}


def trained(trainer: looper.Trainer) -> Mapping[str, Any]:
    """What a checkpoint says of what is trained."""
    return trainer._session.components.state().phase


def feed(trainer: looper.Trainer) -> Feed:
    """The batches of the last `fit`."""
    return trainer._position.feed


def evaluation_feeds(trainer: looper.Trainer) -> list[Feed]:
    """The feeds that are kept for evaluation and prediction."""
    return list(trainer._session.sources._feeds._feeds.values())


def settle(trainer: looper.Trainer) -> None:
    """Waits until no checkpoint is being written."""
    trainer._saver.settle()


def random_state(trainer: looper.Trainer) -> Mapping[str, Any]:
    """Where the trainer's own random numbers are."""
    return trainer._session.devices.random.state()


def mode(trainer: looper.Trainer) -> str | None:
    """How steps are compiled."""
    return trainer._position.progress.mode


def mode_for(trainer: looper.Trainer) -> int | None:
    """The last step of a run too short to compare modes; None if they were compared."""
    return trainer._position.progress.mode_for


def report(trainer: looper.Trainer) -> Any:
    """The audit at the start of the last `fit`; None without one."""
    return trainer._session.steps.report


def executions(trainer: looper.Trainer, kind: str | None = None) -> list[Execution]:
    """The compiled steps: all, or those for "train", "eval" or "predict"."""
    return [execution for key, execution in trainer._session.executions.compiled.items() if kind in (None, key.kind)]


def executions_in(trainer: looper.Trainer, mode: str) -> list[Execution]:
    """The compiled training steps of one mode."""
    return [execution for key, execution in trainer._session.executions.compiled.items() if key.mode == mode]


def kinds(trainer: looper.Trainer) -> list[str]:
    """What the compiled steps are for: "train", "eval" or "predict", one for each."""
    return [key.kind for key in trainer._session.executions.compiled]


def modes_compiled(trainer: looper.Trainer) -> list[str]:
    """The modes of the compiled training steps."""
    return [key.mode for key in trainer._session.executions.compiled if key.kind == "train"]


def execution_of(trainer: looper.Trainer, *arguments: Any) -> Execution:
    """Compiles steps for a source: kind, source and, for training, mode and size of a stack."""
    kind, *more = arguments
    steps = trainer._session.steps
    return steps.evaluation(*more) if kind == "eval" else steps.training(Wanted(), *more)


def build_variables(trainer: looper.Trainer, element_spec: Any) -> None:
    """Makes the variables that need a batch's shapes."""
    trainer._session.building.make_variables(element_spec)


def operations(trainer: looper.Trainer, execution: Execution) -> Mapping[str, int]:
    """How many operations of each kind a compiled step has, for the batches of the last `fit`."""
    return execution.operations(trainer._position.feed.source.element_spec)


def column(execution: Execution, rows: np.ndarray, name: str) -> np.ndarray:
    """The means of one log, step by step, of what a compiled step returned."""
    place = FIXED + 2 * execution.names.index(name)
    return rows[:, place] / rows[:, place + 1]


def graph(execution: Execution, element_spec: Any) -> Any:
    """The `GraphDef` of a compiled step for batches of such a spec."""
    return execution._function.get_concrete_function(*execution._signature(element_spec)).graph.as_graph_def()


def program(execution: Execution) -> Any:
    """The `tf.function` of a compiled step."""
    return execution._function
