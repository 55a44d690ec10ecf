"""`looper run RECIPE`: trains a recipe, here or with several processes of this machine."""

import sys
from pathlib import Path

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
    trainer, fit_options = made
    trainer.fit(**vars(fit_options))
    if trainer.workdir is not None and trainer.is_chief:
        here = trainer.workdir.is_relative_to(Path.cwd())
        workdir = trainer.workdir.relative_to(Path.cwd()) if here else trainer.workdir
        print(f"looper: {trainer.step} steps done. Watch them: looper board {workdir}", file=sys.stderr)
    return 0
