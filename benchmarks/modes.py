"""looper's modes and the loops by hand in the same mode, for benchmarks that compare the two."""

import argparse

from benchmarks.problems import PROBLEMS

BY_HAND = {"graph": "hand_loop", "xla_step": "hand_xla_step", "xla_loop": "hand_xla_loop"}
CONVOLUTIONS = {"cnn", "resnet50"}
"""They are left out of `xla_loop`, where nobody trains them on a CPU: it takes ten times as long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--models` and `--modes`."""
    for option, known in (("--models", PROBLEMS), ("--modes", BY_HAND)):
        parser.add_argument(option, default=",".join(known), help=f"some of {','.join(known)}")


def chosen(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The pairs of a model and a mode to compare. Ends the program with a message if there are none.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_arguments(parser)
        >>> chosen(parser, parser.parse_args(["--models", "cnn32,gpt8", "--modes", "graph,xla_loop"]))
        [('cnn32', 'graph'), ('gpt8', 'graph'), ('gpt8', 'xla_loop')]
    """
    models, modes = arguments.models.split(","), arguments.modes.split(",")
    for option, given, known in (("--models", models, PROBLEMS), ("--modes", modes, BY_HAND)):
        if not set(given) <= set(known):
            parser.error(f"{option} {','.join(given)}: expected some of {', '.join(known)}")
    pairs = [(model, mode) for model in models for mode in modes]
    found = [(m, mode) for m, mode in pairs if mode != "xla_loop" or PROBLEMS[m].network not in CONVOLUTIONS]
    if not found:
        parser.error(f"--models {','.join(models)} --modes {','.join(modes)}: convolutions have no xla_loop here")
    return found
