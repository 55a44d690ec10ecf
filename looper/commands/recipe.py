"""The recipe that a command is given: its file imported, its class found, its options parsed."""

import argparse
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from looper.base.errors import InputError, nearest
from looper.base.options import FitOptions, TrainerOptions
from looper.commands.options import Parser, parse, read_options
from looper.commands.start import start_tensorflow
from looper.commands.values import kind_of
from looper.workers.cluster import in_cluster

if TYPE_CHECKING:
    from looper.trainer import Trainer


DEVICES = ("strategy", "devices")
"""Options that are needed before the recipe is imported."""


def load(command: str, argv: Sequence[str]) -> "tuple[type[Trainer], Any, TrainerOptions, FitOptions, Any] | None":
    """The class of the recipe that comes first, and what the options after it say; None if help was all.

    Args:
        command: "run", "audit" or "bench", which has options of its own.
        argv: what follows it on the command line.

    Returns:
        The recipe, its config, the options of the Trainer, of `fit` and of the command itself.

    Raises:
        InputError: if there is no such recipe, or no such option.
    """
    if argv and argv[0].startswith("-") and {"-h", "--help"} & set(argv):
        parse(None, list(argv), f"looper {command} RECIPE")
        return None
    check_recipe(command, argv)
    spec, *options = argv
    path, _, name = spec.partition(":")
    start_tensorflow()
    _set_devices(command, options)
    recipe = _find_recipe(_import(Path(path)), name)
    return recipe, *parse(recipe, options, f"looper {command} {spec}")


def check_recipe(command: str, argv: Sequence[str]) -> None:
    """Raises `InputError` unless the file of a recipe comes first."""
    if not argv or argv[0].startswith("-"):
        raise InputError(f"{command} needs a recipe first: looper {command} RECIPE [options].")
    path = Path(argv[0].partition(":")[0])
    if path.is_dir():
        raise InputError(f"no recipe {str(path)!r}: it is a folder; give a Python file, such as {path / 'NAME.py'}.")
    if not path.is_file():
        files = [str(file) for file in path.parent.glob("*.py")]
        near = difflib.get_close_matches(str(path), files, n=1)
        raise InputError(
            f"no recipe {str(path)!r}: there is no such file{f'; did you mean {near[0]!r}?' if near else '.'}"
        )


def _set_devices(command: str, options: Sequence[str]) -> None:
    """Makes the strategy before the recipe is imported, which may start TensorFlow: then devices are fixed."""
    parser = Parser(command, add_help=False)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--devices", type=_number_or_none)
    parser.add_argument("--config")
    known, _ = parser.parse_known_args(list(options))
    if known.config is not None:  # what is typed comes before what stands in a file
        told = {name: value for name, value in read_options(Path(known.config)).items() if name in DEVICES}
        known, _ = parser.parse_known_args([f"--{name}={value}" for name, value in told.items()] + list(options))
    if known.devices is not None or known.strategy not in ("auto", "one_device") or in_cluster(known.strategy):
        from looper.workers.strategies import resolve

        resolve(known.strategy, known.devices)


def _number_or_none(text: str) -> int | None:
    """As the options read it, in the words of the other commands."""
    try:
        return kind_of(int | None).read(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None


def _import(path: Path) -> ModuleType:
    """Imports a file under its own name, its directory on the path as for a script."""
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _find_recipe(module: ModuleType, name: str) -> "type[Trainer]":
    from looper.trainer import Trainer

    found = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Trainer) and value.__module__ == module.__name__
    }
    if name and name not in found:
        known = nearest(name, found) if found else "there is no subclass of looper.Trainer in it"
        raise InputError(f"no recipe {name!r} in {module.__file__}: {known}.")
    last = {key: one for key, one in found.items() if not any(one in other.__mro__[1:] for other in found.values())}
    if len(last) != 1 and not name:
        listed = ", ".join(last) or "none"
        raise InputError(
            f"{module.__file__} has {len(last)} subclasses of looper.Trainer that no other derives from ({listed}); "
            "expected one, or path.py:Class."
        )
    return found[name] if name else next(iter(last.values()))
