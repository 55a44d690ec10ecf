"""The command line: `looper run|audit|bench RECIPE`, `looper doctor`, `looper board|runs DIR`."""

import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from looper.base.errors import InputError, NonFiniteLossError, PeerLostError, SaveError, StepError, first_line, nearest
from looper.base.lines import is_raised_there, line_of_error, shorten
from looper.base.versions import check_keras, describe_versions
from looper.commands.audit import audit
from looper.commands.board import board
from looper.commands.doctor.run import doctor
from looper.commands.run import run
from looper.commands.runs import runs
from looper.launch.failure import LOST_PEER
from looper.launch.launched import tie_to_launcher

if TYPE_CHECKING:
    from looper.trainer import Trainer


def bench(argv: list[str]) -> int:
    """Runs `looper bench`. Its code is imported only now: it needs NumPy, and other commands do not."""
    from looper.commands.bench.run import bench

    return bench(argv)


COMMANDS = {"run": run, "audit": audit, "bench": bench, "doctor": doctor, "board": board, "runs": runs}

HELP = """usage: looper COMMAND ...

  looper run RECIPE [options]     train a recipe: path.py, or path.py:Class
  looper run RECIPE --workers N   train with N processes of this machine
  looper run RECIPE --smoke       try it: a step, an evaluation, a checkpoint, and on from there; nothing is kept
  looper run RECIPE --help        its options, the recipe's own among them
  looper audit RECIPE [--json]    what `training` each layer receives, and what is wrong; takes run's options
  looper bench RECIPE [options]   what a step costs, in each mode, by hand and in Keras' fit; takes run's options
  looper doctor [--workers N]     what works here, and how to repair what does not: devices, workers, workdir, resuming
  looper board WORKDIR            watch runs in TensorBoard
  looper runs DIR [OTHER]         a table of the runs in a directory, or what differs between two
  looper --version                the versions of looper, TensorFlow, Keras and Python

A recipe is a Python file with a subclass of looper.Trainer that has train_data().
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    That is 0; 1 if training failed, the recipe raised an error, an audit found an error, a bench a broken bound or the
    doctor a fault; 2 if the input is wrong; 69 if another worker of the job is gone; 130 on Ctrl-C.

    After SIGTERM or SIGHUP the process exits with 75 ("try again later"), for a scheduler to start it again. With
    --workers the code is that of the worker that failed, 128 + the signal if it was killed.
    """
    tie_to_launcher()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    argv = list(sys.argv[1:] if argv is None else argv)
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(describe_versions())
        return 0
    try:
        if command not in COMMANDS:
            if command.partition(":")[0].endswith(".py"):
                raise InputError(f"no command {command!r}: did you mean 'looper run {command}'?")
            kind = "option" if command.startswith("-") else "command"
            raise InputError(f"no {kind} {command!r}: {nearest(command, [*COMMANDS, '--help', '--version'])}.")
        if command not in ("board", "runs"):  # which need none
            check_keras()
        return COMMANDS[command](rest)
    except SaveError as error:  # which may have passed when it is started again
        return _fail(error, 1)
    except InputError as error:
        return _fail(error, 2)
    except PeerLostError as error:
        return _fail(error, LOST_PEER)
    except (NonFiniteLossError, StepError) as error:
        return _fail(error, 1)
    except Exception as error:
        if line_of_error(error, libraries=False) is None:  # it is not the recipe's
            raise
        whole = is_raised_there(error)
        shorten(error)
        traceback.print_tb(error.__traceback__)
        return _fail(error, 1, whole)
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


def _fail(error: Exception, code: int, whole: bool = True) -> int:
    """Says what happened: the whole message, or of another one's than looper's or the recipe's the first line."""
    own = isinstance(error, InputError | NonFiniteLossError | StepError)
    said = str(error) if own else f"{type(error).__name__}: {error if whole else first_line(error)}"
    line = line_of_error(error, libraries=False)
    print(f"looper: error: {'' if line is None or line in said else f'{line}: '}{said}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
