"""`looper run RECIPE`: trains a recipe, here or with several processes of this machine."""

import json
import sys
from pathlib import Path
from typing import Any

from looper.commands.options import as_json
from looper.commands.recipe import check_recipe, make
from looper.launch.options import take_options


def run(argv: list[str]) -> int:
    """Runs the command with the words after it. Returns the exit code."""
    if not {"-h", "--help"} & set(argv):
        launch_options, argv = take_options(argv)
        if launch_options.workers is not None:
            from looper.launch.launcher import launch

            check_recipe("run", argv)
            return launch(argv[0], argv[1:], launch_options)
    made = make("run", argv)
    if made is None:
        return 0
    trainer, trainer_options, fit_options = made
    from looper.callbacks import LambdaCallback

    def note(run: Any) -> None:
        if run.workdir is not None and run.is_chief:
            content = as_json(trainer.config, trainer_options, fit_options)
            (run.workdir / "options.json").write_text(json.dumps(content, indent=1) + "\n")

    trainer.fit(**vars(fit_options), callbacks=[LambdaCallback(on_fit_begin=note)])
    if trainer.workdir is not None and trainer.is_chief:
        here = trainer.workdir.is_relative_to(Path.cwd())
        workdir = trainer.workdir.relative_to(Path.cwd()) if here else trainer.workdir
        print(f"looper: {trainer.step} steps done. Watch them: looper board {workdir}", file=sys.stderr)
    return 0
