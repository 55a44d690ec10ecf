"""Options on the command line: their types, defaults and help, and one line for what is wrong with them."""

import argparse
import dataclasses
import json
import re
import shutil
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from looper.base.errors import InputError, nearest
from looper.base.options import FitOptions, TrainerOptions
from looper.commands.bench.options import BenchOptions
from looper.commands.run_options import RunOptions
from looper.commands.values import Kind, as_text, docs_of, kind_of
from looper.launch.options import LaunchOptions

if TYPE_CHECKING:
    from looper.trainer import Trainer

WHAT = {
    "run": "Train a recipe.",
    "audit": "Audit the training flag of a recipe; --json prints everything.",
    "bench": "Measure what a step of a recipe costs.",
}

_OF_COMMANDS = {"bench": BenchOptions, "run": RunOptions}

Names = tuple[str, ...]
"""Names of fields, from that of an outer dataclass to that of a value in it."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An option for a field of a dataclass.

    Attributes:
        path: the field's name, after those of the dataclasses that it is in.
        kind: what may be typed.
        default: its value if nothing is; `dataclasses.MISSING` if something must be.
        about: what it is for.
    """

    path: Names
    kind: Kind
    default: Any
    about: str

    @property
    def flag(self) -> str:
        return f"--{'.'.join(self.path)}".replace("_", "-")

    def read(self, text: str, where: str) -> Any:
        """The value that is meant. Raises `InputError`."""
        try:
            return self.kind.read(text)
        except InputError as error:  # of a value that says itself what is wrong with it
            raise InputError(f"{where}: {error}") from None
        except ValueError:
            raise InputError(f"{where}: expected {self.kind.expected}, not {text!r}.") from None


def parse(recipe: "type[Trainer] | None", argv: list[str], program: str) -> tuple[Any, TrainerOptions, FitOptions, Any]:
    """Options for the recipe's `Config`, the Trainer, `fit` and the command: `BenchOptions`, `RunOptions` or None.

    What is typed stands over a file of options (`--config`), that over a preset (`--preset`), over the recipe's
    `defaults`, over looper's.

    Raises:
        InputError: if one of them is wrong.
        SystemExit: after `--help`.
    """
    command = program.split()[1]
    kinds: dict[str, Any] = {"the Trainer": TrainerOptions, "fit": FitOptions}
    if command in _OF_COMMANDS:
        kinds |= {f"looper {command}": _OF_COMMANDS[command]}
    own = getattr(recipe, "Config", None)
    if own is not None:
        _check_names(recipe, own, [*kinds.values(), *([LaunchOptions] if command == "run" else [])], command)
        kinds = {"the recipe": own} | kinds
    listed = {title: list(options_of(kind)) for title, kind in kinds.items()}
    options = {option.path: option for those in listed.values() for option in those}
    layers = [] if recipe is None else [_named(recipe, "defaults", recipe.defaults, options, own)]
    given, asked = _typed(recipe, argv, program, listed, layers)
    if asked["preset"] is not None and recipe is not None:
        layers.append(_named(recipe, "presets", recipe.presets[asked["preset"]], options, own))
    if asked["config"] is not None:
        layers.append(_of_file(Path(asked["config"]), options))
    layers.append({path: options[path].read(text, f"{program}: {options[path].flag}") for path, text in given.items()})
    values: dict[Names, Any] = {}
    for layer in layers:
        for length, other in ((("epochs",), ("steps",)), (("steps",), ("epochs",))):
            if layer.get(length) is not None and other not in layer:
                values.pop(other, None)  # the length that was chosen before is replaced, not joined
        values |= layer
    for option in options.values():
        if option.default is dataclasses.MISSING and option.path not in values:
            about = option.about or "it has no default"
            raise InputError(f"{program} needs {option.flag} {option.kind.shown}: {about}")
    made = {title: _made(kind, values) for title, kind in kinds.items()}
    return made.get("the recipe"), made["the Trainer"], made["fit"], made.get(f"looper {command}")


def options_of(kind: Any, instance: Any = None, path: Names = ()) -> Iterator[Option]:
    """The options for the fields of a dataclass, and of those in it; for values that cannot be typed there are none."""
    docs, hints = docs_of(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, default = hints[field.name], _default(field, instance)
        if not field.init:
            continue
        if (value := kind_of(hint)) is not None:
            yield Option((*path, field.name), value, default, docs.get(field.name, ""))
        elif dataclasses.is_dataclass(hint):
            yield from options_of(hint, None if default is dataclasses.MISSING else default, (*path, field.name))


def as_json(*filled: Any) -> dict[str, Any]:
    """What options are set to, as `--config` reads it: of dataclasses, and None for one that there is not.

    Left out is what a file cannot say, as a text `none` where None may be, too; and how a run began.
    """
    found = {}
    for option in (option for one in filled if one is not None for option in options_of(type(one), one)):
        try:
            same = option.kind.read(as_text(option.default)) == option.default
        except ValueError:
            same = False
        if same and option.path != ("resume",):  # which is not to set the run aside once more
            plain = isinstance(option.default, bool | int | float | str | None) and not isinstance(option.default, Enum)
            found[".".join(option.path)] = option.default if plain else as_text(option.default)
    return found


def _default(field: dataclasses.Field, instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _made(kind: Any, values: Mapping[Names, Any], instance: Any = None, path: Names = ()) -> Any:
    """A dataclass with these values in place of its defaults, or of those of an instance."""
    changed = {}
    for field in dataclasses.fields(kind):
        here, hint = (*path, field.name), typing.get_type_hints(kind)[field.name]
        within = any(len(other) > len(here) and other[: len(here)] == here for other in values)
        default = values.get(here, _default(field, instance))
        missing = field.init and default is dataclasses.MISSING
        if within or (missing and dataclasses.is_dataclass(hint)):
            changed[field.name] = _made(hint, values, None if missing else default, here)
        elif here in values:
            changed[field.name] = default
        elif missing:
            raise InputError(f"{kind.__qualname__}.{field.name} needs a default: a value of its type cannot be typed.")
    return kind(**changed) if instance is None else dataclasses.replace(instance, **changed)


def _check_names(recipe: Any, own: Any, kinds: Sequence[Any], command: str) -> None:
    taken = {"preset", "config", "help", *(field.name for kind in kinds for field in dataclasses.fields(kind))}
    for field in dataclasses.fields(own):
        if field.name in taken:
            raise InputError(
                f"{recipe.__name__}.Config has the field {field.name!r}, which looper {command} has an option for: "
                "give it another name."
            )


def _named(
    recipe: Any, where: str, named: Mapping[str, Any], options: Mapping[Names, Option], own: Any
) -> dict[Names, Any]:
    """What a recipe's `defaults` or a preset sets: the former nothing of its `Config`, which has defaults."""
    of_own = {field.name for field in dataclasses.fields(own)} if own else set()
    names = {".".join(path) for path in options}
    names = names | of_own if where == "presets" else {name for name in names if name.partition(".")[0] not in of_own}
    for name in named:
        if name not in names:
            raise InputError(f"{recipe.__name__}.{where}: no option {name!r}; {nearest(name, names)}.")
    values = dict(named)
    if values.get("workdir") is not None:
        values["workdir"] = Path(values["workdir"])
    return {tuple(name.split(".")): value for name, value in values.items()}


def _of_file(file: Path, options: Mapping[Names, Option]) -> dict[Names, Any]:
    """What a file sets, in JSON or YAML: names of options with their values."""
    content = read_options(file)
    known = {".".join(path): option for path, option in options.items()}
    found = {}
    for name, value in _flat(content, known):
        if name not in known:
            raise InputError(f"--config {file}: no option {name!r}; {nearest(name, known)}.")
        found[known[name].path] = known[name].read(as_text(value), f"--config {file}: {name}")
    return found


def read_options(file: Path) -> Mapping[str, Any]:
    """The content of a file of options. Raises `InputError` if it cannot be read, or is no such."""
    try:
        text = file.read_text("utf-8")
        if file.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(
            f"--config {file}: it cannot be read ({error.strerror}): give a file in JSON or YAML."
        ) from None
    except ValueError as error:
        raise InputError(f"--config {file}: {error}.") from None
    except Exception as error:  # YAML's own
        raise InputError(f"--config {file} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, Mapping):
        raise InputError(f"--config {file}: expected names of options with their values.")
    return content


def _flat(content: Mapping[str, Any], known: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = before + str(key).replace("-", "_")
        if isinstance(value, Mapping) and name not in known:
            yield from _flat(value, known, f"{name}.")
        else:
            yield name, value


def _typed(
    recipe: "type[Trainer] | None",
    argv: Sequence[str],
    program: str,
    listed: Mapping[str, Sequence[Option]],
    layers: Sequence[Mapping[Names, Any]],
) -> tuple[dict[Names, str], dict[str, str | None]]:
    """What was typed for options, as text, and for `--preset` and `--config`."""
    command = program.split()[1]
    about = WHAT[command] + ("" if recipe else f" `{program} --help` adds the recipe's own options.")
    parser = Parser(program.removeprefix("looper "), about)
    parser.usage = f"{program} [options]"
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=_columns())
    parser.epilog = "The docstrings of looper.Trainer and Trainer.fit say more about each."
    defaults = {path: value for layer in layers for path, value in layer.items()}
    groups = {**listed, **({"several processes": list(options_of(LaunchOptions))} if command == "run" else {})}
    several = set()
    for title, those in groups.items():
        group = parser.add_argument_group(f"options of {title}")
        for option in those:
            if option.kind.several:
                several.add(option.path)
            form: dict[str, Any] = {"nargs": "+"} if option.kind.several else {}
            if not option.kind.several and set(option.kind.shown.split("|")) >= {"true", "false"}:
                form = {"nargs": "?", "const": "true"}
            group.add_argument(
                option.flag,
                dest=".".join(option.path),
                default=argparse.SUPPRESS,
                metavar=option.kind.shown,
                help=_help(option, defaults.get(option.path, option.default)).replace("%", "%%"),
                **form,
            )
    group = parser.add_argument_group("options from elsewhere")
    presets = list(recipe.presets) if recipe else []
    named = f": {', '.join(presets)}" if presets else "; it has none"
    group.add_argument("--preset", choices=presets, metavar="NAME", help=f"a set of options of the recipe{named}")
    group.add_argument("--config", metavar="FILE", help="options in JSON or YAML, as WORKDIR/options.json has them")
    known = vars(parser.parse_args(_joined([_with_dashes(word) for word in argv])))
    asked = {name: known.pop(name) for name in ("preset", "config")}
    given = {tuple(name.split(".")): said for name, said in known.items()}
    return {path: ",".join(said) if path in several else said for path, said in given.items()}, asked


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, 110)


def _help(option: Option, default: Any) -> str:
    """The first sentence about an option, and its default."""
    first = re.match(r".*?\.(?= |$)", option.about)
    said = (first[0] if first else option.about).rstrip(".")
    shown = "" if default is dataclasses.MISSING or default is None else f"({as_text(default) or 'empty'})"
    return " ".join(filter(None, [said, shown]))


def _joined(words: Sequence[str]) -> list[str]:
    """Has numbers below zero follow their option after a "=": argparse takes -1 for a number, and -1e-3 for an option.

    Example:
        >>> _joined(["--shift", "-1e-3", "--strict"])
        ['--shift=-1e-3', '--strict']
    """
    found: list[str] = []
    for word in words:
        number = re.match(r"-(\d|\.\d|inf)", word)
        if number and found and found[-1].startswith("--") and "=" not in found[-1]:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def _with_dashes(word: str) -> str:
    """A name of an option with dashes, as it is written here; people type underscores, too."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


class Parser(argparse.ArgumentParser):
    """Reads options of a command, and tells what is wrong with them in one line.

    Args:
        command: its name.
        description: what it does.
        add_help: whether it has `--help`.
    """

    def __init__(self, command: str, description: str = "", add_help: bool = True) -> None:
        super().__init__(prog=f"looper {command}", allow_abbrev=False, description=description, add_help=add_help)

    def parse_args(self, argv: list[str]) -> argparse.Namespace:  # type: ignore[override]  # all that is called here
        """Reads the words. Raises `InputError` where `ArgumentParser` would end the process."""
        known, unknown = self.parse_known_args(argv)
        if unknown and not unknown[0].startswith("-"):
            raise InputError(f"{self.prog}: {unknown[0]!r} is one word too many.")
        if unknown:
            shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
            flags = [flag for action in shown for flag in action.option_strings if flag.startswith("--")]
            raise InputError(f"{self.prog} has no option {unknown[0]!r}: {nearest(unknown[0], flags)}.")
        return known

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message.removeprefix('argument ')}.")
