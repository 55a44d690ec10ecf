"""A stranger's first ten minutes: what is typed, and what the screen shows, word for word.

    python -m benchmarks.first_minutes

The commands are typed in a folder with the recipes. One run is interrupted by Ctrl-C after its first epoch.
"""

import argparse
import fcntl
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

COLUMNS = 100
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

COMMANDS = (
    "looper --help",
    "looper run recipes/digit.py",
    "looper run recipes/digits.py --smoke",
    "looper run recipes/digits.py --epoch 4 --workdir runs/first",
    "looper run recipes/digits.py --epochs 4 --workdir runs/first",
    "looper run recipes/digits.py --epochs 4 --workdir runs/first",
    "looper run recipes/digits.py --epochs 6 --workdir runs/first",
    "looper run recipes/digits.py --epochs 6 --workdir runs/first --dropout 0.5",
    "looper run recipes/digits.py --epochs 6 --workdir runs/second --dropout 0.5",
    "^C looper run recipes/digits.py --epochs 300 --workdir runs/long",
    "looper run recipes/digits.py --epochs 300 --workdir runs/long --max-time 3",
    "looper runs runs",
    "looper runs runs/first runs/second",
    "looper audit recipes/digits.py",
    "looper run recipes/digits.py --overfit 1 --epochs 3 --workdir runs/one_batch",
    "looper run recipes/digits.py --profile 100:104 --epochs 3 --workdir runs/traced",
    "python recipes/digits.py --epochs 2 --workdir runs/script",
    "looper --version",
)


def typed(command: str, folder: Path, environment: dict[str, str]) -> tuple[str, int, float]:
    """What a terminal shows, line by line, the exit code and the seconds it took.

    A bar is drawn over itself: the last state of a line is what stays.
    """
    interrupted, words = command.startswith("^C "), shlex.split(command.removeprefix("^C "))
    program = [sys.executable, "-m", "looper.cli"] if words[0] == "looper" else [sys.executable]
    controlling, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    began = time.monotonic()
    process = subprocess.Popen(
        [*program, *words[1:]], cwd=folder, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    shown, sent = b"", False
    while True:
        try:
            part = os.read(controlling, 1 << 16)
        except OSError:  # Linux says so when the process has ended
            break
        shown += part
        if interrupted and not sent and b"evaluation after step" in shown:
            process.send_signal(signal.SIGINT)
            sent = True
    code = process.wait()
    os.close(controlling)
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    kept = [[part for part in line.split("\r") if part.strip()][-1:] for line in lines]
    return "\n".join("".join(part).rstrip() for part in kept).strip("\n"), code, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "first_minutes.md", help="the file to write")
    arguments = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"COLUMNS": str(COLUMNS), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    pages = ["# A stranger's first ten minutes", "", "`python -m benchmarks.first_minutes` typed this.", ""]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
        for command in COMMANDS:
            shown, code, seconds = typed(command, folder, environment)
            end = f"exit code {code}, {seconds:.0f} s" if code else f"{seconds:.0f} s"
            if command.startswith("^C "):
                end += ", Ctrl-C after the first epoch"
            pages += [
                "```text",
                f"$ {command.removeprefix('^C ')}",
                shown.replace(str(folder), "."),
                "```",
                "",
                end,
                "",
            ]
    arguments.out.write_text("\n".join(pages))


if __name__ == "__main__":
    main()
