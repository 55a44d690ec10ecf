"""Types: looper's own code and what users write pass mypy, and a misspelt option does not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_mypy_accepts_looper_and_what_users_write_and_refuses_misspelt_options(tmp_path):
    """One run for all: a line that must be refused is marked so in `typed_user_code.py`, and a needless mark fails."""
    words = ["looper", str(Path(__file__).with_name("typed_user_code.py")), f"--cache-dir={tmp_path}"]
    command = [sys.executable, "-m", "mypy", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
