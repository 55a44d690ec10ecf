"""`looper board WORKDIR`: TensorBoard over one or more runs."""

import os
import sys
from pathlib import Path

from looper.base.errors import InputError
from looper.commands.options import Parser


def board(argv: list[str]) -> int:
    """Turns this process into TensorBoard."""
    parser = Parser("board", "Watch runs in TensorBoard.")
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
