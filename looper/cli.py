"""The command line: `looper run|audit|bench RECIPE`, `looper doctor`, `looper board WORKDIR`. Parses and calls."""

import argparse
import contextlib
import dataclasses
import importlib.util
import inspect
import io
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from looper.bench.options import BenchOptions
from looper.distribute.cluster import in_cluster
from looper.distribute.failure import LOST_PEER
from looper.distribute.launched import report_workdir, tie_to_launcher
from looper.distribute.options import LaunchOptions, take_options
from looper.errors import InputError, NonFiniteLossError, PeerLostError, StepError, nearest
from looper.options import STRATEGIES, FitOptions, TrainerOptions
from looper.schedule import Every

if TYPE_CHECKING:
    from looper.trainer import Trainer

HELP = """usage: looper COMMAND ...

  looper run RECIPE [options]     train a recipe: path.py, or path.py:Class
  looper run RECIPE --workers N   train with N processes of this machine
  looper run RECIPE --help        its options, the recipe's own among them
  looper audit RECIPE [--json]    what `training` each layer receives, and what is wrong; takes run's options
  looper bench RECIPE [options]   what a step costs, in each mode, by hand and in Keras' fit; takes run's options
  looper doctor [--workers N]     what works here, and how to repair what does not: devices, workers, workdir, resuming
  looper board WORKDIR            watch runs in TensorBoard

A recipe is a Python file with a subclass of looper.Trainer that has train_data().
"""

WHAT = {
    "run": "Train a recipe",
    "audit": "Audit the training flag of a recipe; --json prints everything",
    "bench": "Measure what a step of a recipe costs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    That is 0; 1 if training failed, an audit found an error, a bench a broken bound or the doctor a fault; 2 if the
    input is wrong; 69 if another worker of the job is gone; 130 on Ctrl-C.

    After SIGTERM the process exits with 75 ("try again later"), for a scheduler to start it again. With --workers the
    code is that of the worker that failed, 128 + the signal if it was killed.
    """
    tie_to_launcher()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    argv = list(sys.argv[1:] if argv is None else argv)
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    commands = {"run": _run, "audit": _audit, "bench": _bench, "doctor": _doctor, "board": _board}
    try:
        if command not in commands:
            if command.partition(":")[0].endswith(".py"):
                raise InputError(f"no command {command!r}: did you mean 'looper run {command}'?")
            raise InputError(f"no command {command!r}: {nearest(command, commands)}.")
        return commands[command](rest)
    except InputError as error:
        return _fail(error, 2)
    except PeerLostError as error:
        return _fail(error, LOST_PEER)
    except (NonFiniteLossError, StepError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt as stopped:
        print(f"looper: {stopped}." if stopped.args else "looper: interrupted.", file=sys.stderr)
        return 130


def run_recipe(recipe: "type[Trainer]", argv: Sequence[str] | None = None) -> int:
    """Trains a recipe with options from the command line: what `looper run` does once it has the class.

    For `if __name__ == "__main__": looper.run_recipe(Digits)`. Ends the process with `main`'s exit codes.

    Args:
        recipe: a subclass of `looper.Trainer` with `train_data`.
        argv: the options; default: the command line's.
    """
    spec = f"{Path(inspect.getfile(recipe))}:{recipe.__name__}"
    sys.exit(main(["run", spec, *(sys.argv[1:] if argv is None else argv)]))


def _run(argv: list[str]) -> int:
    if not {"-h", "--help"} & set(argv):
        launch_options, argv = take_options(argv)
        if launch_options.workers is not None:
            from looper.distribute.launcher import launch

            _check_recipe("run", argv)
            return launch(argv[0], argv[1:], launch_options)
    made = _make("run", argv)
    if made is None:
        return 0
    trainer, fit_options = made
    trainer.fit(**vars(fit_options))
    if trainer.workdir is not None and trainer.is_chief:
        print(f"looper: {trainer.step} steps done. Watch them: looper board {trainer.workdir}", file=sys.stderr)
    return 0


def _audit(argv: list[str]) -> int:
    made = _make("audit", [arg for arg in argv if arg != "--json"])
    if made is None:
        return 0
    trainer, fit_options = made
    report = trainer.audit(batch_size=fit_options.batch_size)
    print(report.json() if "--json" in argv else report)
    return 0 if report.ok else 1


def _bench(argv: list[str]) -> int:
    loaded = load("bench", argv)
    if loaded is None:
        return 0
    from looper.bench.run import bench

    recipe, _, trainer_options, _, options = loaded
    return bench(argv[0], argv[1:], recipe, trainer_options.execution, options)


def _doctor(argv: list[str]) -> int:
    from looper.distribute.doctor import DoctorOptions, examine_all, examine_here

    parser = _Parser("doctor", "Try what a job needs, with a tiny one.")
    parser.add_argument("--workers", metavar="N", help="with N processes of this machine (default: as run starts here)")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="the job's (default: a temporary directory)")
    parser.add_argument("--strategy", default="auto", choices=STRATEGIES, help="as for run")
    parser.add_argument("--devices", type=int, metavar="N", help="as for run")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    workers, _ = take_options([] if given["workers"] is None else ["--workers", given["workers"]])
    del given["workers"]
    options = DoctorOptions(**given)
    return examine_here(options) if workers.workers is None else examine_all(workers.workers, options)


def _make(command: str, argv: list[str]) -> "tuple[Trainer, FitOptions] | None":
    """The trainer of the recipe that comes first, and the options for its `fit`; None if help was all."""
    loaded = load(command, argv)
    if loaded is None:
        return None
    recipe, config, trainer_options, fit_options, _ = loaded
    report_workdir(trainer_options.workdir)
    return recipe(config=config, **vars(trainer_options)), fit_options


def load(command: str, argv: Sequence[str]) -> "tuple[type[Trainer], Any, TrainerOptions, FitOptions, Any] | None":
    """The class of the recipe that comes first, and what the options after it say; None if help was all.

    Args:
        command: "run", "audit" or "bench", which has options of its own.
        argv: what follows it on the command line.

    Returns:
        The recipe, its config, the options of the Trainer and of `fit`, and the `BenchOptions`.

    Raises:
        InputError: if there is no such recipe, or no such option.
    """
    if argv and argv[0].startswith("-") and {"-h", "--help"} & set(argv):
        _parse(None, list(argv), f"looper {command} RECIPE")
        return None
    _check_recipe(command, argv)
    spec, *options = argv
    path, _, name = spec.partition(":")
    _set_devices(options)
    recipe = _find_recipe(_import(Path(path)), name)
    return recipe, *_parse(recipe, _with_values(options, recipe.Config), f"looper {command} {spec}")


def _check_recipe(command: str, argv: Sequence[str]) -> None:
    """Raises `InputError` unless the file of a recipe comes first."""
    if not argv or argv[0].startswith("-"):
        raise InputError(f"{command} needs a recipe first: looper {command} RECIPE [options].")
    path = argv[0].partition(":")[0]
    if not Path(path).is_file():
        raise InputError(f"no recipe {path!r}: there is no such file.")


def _set_devices(options: Sequence[str]) -> None:
    """Makes the strategy before the recipe is imported, which may start TensorFlow: then devices are fixed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--devices", type=int)
    known, _ = parser.parse_known_args(list(options))
    if known.devices is not None or known.strategy not in ("auto", "one_device") or in_cluster(known.strategy):
        from looper.distribute.strategies import resolve

        resolve(known.strategy, known.devices)


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
    if len(found) != 1 and not name:
        listed = ", ".join(found) or "none"
        raise InputError(
            f"{module.__file__} has {len(found)} subclasses of looper.Trainer ({listed}); expected one, or "
            "path.py:Class."
        )
    return found[name] if name else next(iter(found.values()))


def _parse(
    recipe: "type[Trainer] | None", argv: list[str], program: str
) -> tuple[Any, TrainerOptions, FitOptions, BenchOptions | None]:
    """Options for the recipe's `Config`, the Trainer, `fit` and `bench`, over the recipe's `defaults`."""
    import tyro

    defaults = dict(recipe.defaults) if recipe else {}
    if defaults.get("workdir") is not None:
        defaults["workdir"] = Path(defaults["workdir"])
    kinds = [TrainerOptions, FitOptions]
    unknown = [key for key in defaults if not any(key in kind.__dataclass_fields__ for kind in kinds)]
    if unknown:
        names = [key for kind in kinds for key in kind.__dataclass_fields__]
        raise InputError(f"{recipe.__name__}.defaults: no option {unknown[0]!r}; {nearest(unknown[0], names)}.")
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
        taken = {f.name for _, kind, _ in fields for f in dataclasses.fields(kind)}
        for field in dataclasses.fields(recipe.Config):
            if field.name in taken:
                raise InputError(
                    f"{recipe.__name__}.Config has the field {field.name!r}, which looper {command} has an option for: "
                    "give it another name."
                )
        fields.insert(0, ("recipe", recipe.Config, dataclasses.field(default_factory=recipe.Config)))
    options = dataclasses.make_dataclass("Options", fields)
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_every_rule)
    description = (inspect.getdoc(recipe) if recipe else None) or WHAT[command]
    if recipe is None:
        description += f". `{program} --help` adds its own options."
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
        flags = [f"--{f.name.replace('_', '-')}" for _, kind, _ in fields for f in dataclasses.fields(kind)]
        raise InputError(f"{program} has no option {unknown[0]!r}: {nearest(unknown[0], flags)}.")
    fit = parsed.fit
    if fit.steps is not None and chosen[1].epochs == fit.epochs and not _given(argv, "--epochs"):
        fit = dataclasses.replace(fit, epochs=None)  # --steps in place of the recipe's epochs
    if fit.epochs is not None and chosen[1].steps == fit.steps and not _given(argv, "--steps"):
        fit = dataclasses.replace(fit, steps=None)
    return getattr(parsed, "recipe", None), parsed.trainer, fit, getattr(parsed, "bench", None)


def _of_box(text: str) -> str:
    """What a box of tyro's says, in one line: the first paragraph below the title. It draws with lines or in ASCII.

    Example:
        >>> _of_box("╭─ Value error ─╮\\n│ Error parsing │\\n│ --seed: 'a'.  │\\n│ ───────────── │\\n│ Argument help │")
        "Error parsing --seed: 'a'."
    """
    lines = [line.strip("│ ") for line in text.splitlines()[1:]]

    def is_between(line: str) -> bool:
        return not line.strip("─-")

    below = itertools.dropwhile(is_between, lines)
    return " ".join(itertools.takewhile(lambda line: not is_between(line), below))


def _with_values(options: Sequence[str], config: type | None) -> list[str]:
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


class _Parser(argparse.ArgumentParser):
    """Of a command without a recipe. What is wrong is told in one line, as by all commands.

    Args:
        command: its name.
        description: what it does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"looper {command}", allow_abbrev=False, description=description)

    def parse_args(self, argv: list[str]) -> argparse.Namespace:
        """As `ArgumentParser.parse_args`. Raises `InputError`."""
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


def _board(argv: list[str]) -> int:
    parser = _Parser("board", "Watch runs in TensorBoard.")
    parser.add_argument("workdir", type=Path, help="a run's directory, or one with several runs in it")
    parser.add_argument("--port", type=int, default=6006, help="the port to serve on (default 6006)")
    parser.add_argument("--host", default="localhost", help="the address to serve on (default localhost)")
    known = parser.parse_args(argv)
    if not any(known.workdir.glob("**/events.out.tfevents.*")):
        raise InputError(
            f"there are no TensorBoard events in {known.workdir}: train with workdir={str(known.workdir)!r}."
        )
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(known.workdir)]
    os.execv(sys.executable, [*command, "--port", str(known.port), "--host", known.host])


def _fail(error: Exception, code: int) -> int:
    print(f"looper: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
