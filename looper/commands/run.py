"""`looper run RECIPE`: trains a recipe, here or with several processes of this machine."""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from looper.base.errors import InputError
from looper.base.options import FitOptions, TrainerOptions
from looper.base.shown_path import shown_path
from looper.commands.options import as_json
from looper.commands.recipe import check_recipe, load
from looper.launch.launched import report_workdir
from looper.launch.options import take_options

if TYPE_CHECKING:
    from looper.trainer import Trainer


def run(argv: list[str]) -> int:
    """Runs the command with the words after it. Returns the exit code."""
    if not {"-h", "--help"} & set(argv):
        launch_options, argv = take_options(argv)
        if launch_options.workers is not None:
            from looper.launch.launcher import launch

            check_recipe("run", argv)
            if "--smoke" in argv:
                raise InputError("--smoke tries a recipe in this process: leave --workers out.")
            return launch(argv[0], argv[1:], launch_options)
    loaded = load("run", argv)
    if loaded is None:
        return 0
    recipe, config, trainer_options, fit_options, own = loaded
    if own.window() is not None and (own.smoke or trainer_options.workdir is None):
        what = "--smoke keeps nothing: leave it out" if own.smoke else "it is written to the workdir: give --workdir"
        raise InputError(f"--profile {own.profile}: {what}.")
    if own.smoke:
        report_workdir(None)
        return smoke(recipe, config, trainer_options, fit_options)
    report_workdir(trainer_options.workdir)
    trainer = train(recipe, config, trainer_options, fit_options, own.window())
    if trainer.workdir is not None and trainer.is_chief:
        workdir = shown_path(trainer.workdir)
        print(f"looper: {trainer.step} steps done. Watch them: looper board {workdir}", file=sys.stderr)
    return 0


def train(
    recipe: "type[Trainer]",
    config: Any,
    trainer_options: TrainerOptions,
    fit_options: FitOptions,
    profiled: tuple[int, int] | None = None,
) -> "Trainer":
    """Trains a recipe, and notes in its workdir with which options. `profiled` are the steps of `--profile`."""
    from looper.callbacks import LambdaCallback, Profile

    def note(run: Any) -> None:
        if run.workdir is not None and run.is_chief:
            content = as_json(config, trainer_options, fit_options)
            (run.workdir / "options.json").write_text(json.dumps(content, indent=1) + "\n")

    trainer = recipe(config=config, **vars(trainer_options))
    more = [] if profiled is None else [Profile(profiled)]
    trainer.fit(**vars(fit_options), callbacks=[LambdaCallback(on_fit_begin=note), *more])
    return trainer


def smoke(recipe: "type[Trainer]", config: Any, trainer_options: TrainerOptions, fit_options: FitOptions) -> int:
    """Tries a recipe in a temporary workdir: two steps, each in a trainer of its own. Returns the exit code."""
    from looper.trainer import Trainer

    began = time.monotonic()
    short = dataclasses.replace(fit_options, epochs=None, max_time=None, resume="auto", progress=False)
    if recipe.eval_data is not Trainer.eval_data or short.validation_split is not None:
        short = dataclasses.replace(short, eval_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        options = dataclasses.replace(trainer_options, workdir=Path(folder))
        for steps in (1, 2):
            history = train(recipe, config, options, dataclasses.replace(short, steps=steps)).history
    done = ["trained", *(["evaluated"] if any(name.startswith("eval/") for name in history) else [])]
    seconds = time.monotonic() - began
    print(
        f"looper: smoke: {', '.join(done)}, saved and continued, in {seconds:.1f} s; nothing was kept", file=sys.stderr
    )
    return 0
