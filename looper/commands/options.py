"""Options on the command line: their types, defaults and help, and one line for what is wrong with them."""

import argparse
import contextlib
import dataclasses
import inspect
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from looper.base.errors import InputError, nearest
from looper.base.options import FitOptions, TrainerOptions
from looper.base.schedule import Every
from looper.commands.bench.options import BenchOptions
from looper.launch.options import LaunchOptions

if TYPE_CHECKING:
    from looper.trainer import Trainer

WHAT = {
    "run": "Train a recipe",
    "audit": "Audit the training flag of a recipe; --json prints everything",
    "bench": "Measure what a step of a recipe costs",
}


def parse(
    recipe: "type[Trainer] | None", argv: list[str], program: str
) -> tuple[Any, TrainerOptions, FitOptions, BenchOptions | None]:
    """Options for the recipe's `Config`, the Trainer, `fit` and `bench`, over the recipe's `defaults` and a preset."""
    import tyro

    preset, argv = _take_preset(recipe, argv, program)
    own_fields = getattr(getattr(recipe, "Config", None), "__dataclass_fields__", {})
    own = {key: preset.pop(key) for key in list(preset) if key in own_fields}
    defaults = {**recipe.defaults, **preset} if recipe else {}
    for length, other in (("epochs", "steps"), ("steps", "epochs")):
        if length in preset and other not in preset:
            defaults.pop(other, None)
    if defaults.get("workdir") is not None:
        defaults["workdir"] = Path(defaults["workdir"])
    kinds: list[Any] = [TrainerOptions, FitOptions]
    unknown = [key for key in defaults if not any(key in kind.__dataclass_fields__ for kind in kinds)]
    if unknown:
        names = [key for kind in kinds for key in kind.__dataclass_fields__]
        names += own_fields if unknown[0] in preset else ()
        where = "presets" if unknown[0] in preset else "defaults"
        raise InputError(f"{recipe.__name__}.{where}: no option {unknown[0]!r}; {nearest(unknown[0], names)}.")
    chosen = [kind(**{k: v for k, v in defaults.items() if k in kind.__dataclass_fields__}) for kind in kinds]
    fields: list[Any] = [
        ("trainer", TrainerOptions, dataclasses.field(default=chosen[0])),
        ("fit", FitOptions, dataclasses.field(default=chosen[1])),
    ]
    command = program.split()[1]
    if command == "bench":
        fields.insert(0, ("bench", BenchOptions, dataclasses.field(default=BenchOptions())))
    if command == "run":
        fields.append(("launch", LaunchOptions, dataclasses.field(default=LaunchOptions())))
    if recipe is not None and recipe.Config is not None:
        taken = {"preset", *(f.name for _, kind, _ in fields for f in dataclasses.fields(kind))}
        for field in dataclasses.fields(recipe.Config):
            if field.name in taken:
                raise InputError(
                    f"{recipe.__name__}.Config has the field {field.name!r}, which looper {command} has an option for: "
                    "give it another name."
                )
        fields.insert(0, ("recipe", recipe.Config, dataclasses.field(default_factory=lambda: recipe.Config(**own))))
    options = dataclasses.make_dataclass("Options", fields)
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_every_rule)
    description = (inspect.getdoc(recipe) if recipe else None) or WHAT[command]
    if recipe is None:
        description += f". `{program} --help` adds its own options."
    elif recipe.presets:
        description += f" --preset NAME: {', '.join(recipe.presets)}."
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                options,
                prog=program,
                description=description,
                args=argv,
                config=config,
                registry=registry,
                return_unknown_args=True,  # tyro answers them with a box of twelve lines
            )
    except SystemExit:
        if not said.getvalue():  # --help
            raise
        raise InputError(f"{_of_box(said.getvalue()).rstrip('.')}; see {program} --help.") from None
    if unknown:
        flags = ["--preset"] if recipe is not None and recipe.presets else []
        flags += [f"--{f.name.replace('_', '-')}" for _, kind, _ in fields for f in dataclasses.fields(kind)]
        raise InputError(f"{program} has no option {unknown[0]!r}: {nearest(unknown[0], flags)}.")
    fit = parsed.fit
    if fit.steps is not None and chosen[1].epochs == fit.epochs and not _given(argv, "--epochs"):
        fit = dataclasses.replace(fit, epochs=None)  # --steps in place of the recipe's epochs
    if fit.epochs is not None and chosen[1].steps == fit.steps and not _given(argv, "--steps"):
        fit = dataclasses.replace(fit, steps=None)
    return getattr(parsed, "recipe", None), parsed.trainer, fit, getattr(parsed, "bench", None)


def _take_preset(recipe: "type[Trainer] | None", argv: list[str], program: str) -> tuple[dict[str, Any], list[str]]:
    """The options of the preset that is asked for, and the other words."""
    parser = Parser(program.removeprefix("looper "), add_help=False)
    parser.add_argument("--preset", choices=list(recipe.presets) if recipe else None)
    known, rest = parser.parse_known_args(argv)
    return ({} if known.preset is None or recipe is None else dict(recipe.presets[known.preset])), rest


def _of_box(text: str) -> str:
    """Reads a box of tyro's as one line: the first paragraph below the title. It draws with lines or in ASCII.

    Example:
        >>> _of_box("╭─ Value error ─╮\\n│ Error parsing │\\n│ --seed: 'a'.  │\\n│ ───────────── │\\n│ Argument help │")
        "Error parsing --seed: 'a'."
    """
    lines = [line.strip("│ ") for line in text.splitlines()[1:]]

    def is_between(line: str) -> bool:
        return not line.strip("─-")

    below = itertools.dropwhile(is_between, lines)
    return " ".join(itertools.takewhile(lambda line: not is_between(line), below))


def with_values(options: Sequence[str], config: type | None) -> list[str]:
    """Lets `--strict` stand for `--strict True`: options of the Trainer, of `fit` and of a recipe's `Config`."""
    kinds = (TrainerOptions, FitOptions, *([config] if config is not None else []))
    switches = {f.name for kind in kinds for f in dataclasses.fields(kind) if f.type in (bool, "bool")}
    found: list[str] = []
    for option, following in itertools.pairwise([*options, "--"]):
        is_switch = option.startswith("--") and option[2:].replace("-", "_") in switches
        found += [option, "True"] if is_switch and following.startswith("--") else [option]
    return found


def _given(argv: Sequence[str], flag: str) -> bool:
    return any(arg == flag or arg.startswith(f"{flag}=") for arg in argv)


def _every_rule(info: Any) -> Any:
    """Lets options of type `Every` be written as "100 steps" or "10 minutes", and as "none" where None is allowed."""
    import tyro

    if info.type not in (Every, Every | None):
        return None
    optional = info.type != Every
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="'N UNIT'|none" if optional else "'N UNIT'",
        instance_from_str=lambda words: None if optional and words[0] == "none" else Every.parse(words[0]),
        is_instance=lambda value: isinstance(value, Every) or (optional and value is None),
        str_from_instance=lambda every: ["none" if every is None else str(every)],
    )


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
        raise InputError(f"{self.prog}: {message}.")
