"""Pictures of TensorBoard over two runs of the digits, as a user sees it; the README shows the first.

    python -m benchmarks.pictures
    python -m benchmarks.pictures --browser google-chrome --out elsewhere

It trains both, serves them with `looper board` and has a headless Chromium (Debian: `apt-get install chromium`) make a
picture of each tab. Look at them: nothing compares them with others.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import looper
from recipes.digits import Digits

PICTURES = Path(__file__).parent / "results" / "pictures"
TABS = {
    "custom_scalars": 460,
    "hparams": 520,
    "text": 900,
    "images": 620,
    "histograms": 900,
    "timeseries": 900,
    "graphs": 700,
}
"""Tabs of TensorBoard, and how many pixels high a picture of each is. That of profiles is empty without a GPU."""
WIDTH = 1400
MILLISECONDS = 15_000
"""How long the page may load and draw, by its own clock, which stands while it waits for the server."""


def train(folder: Path) -> None:
    """Two runs with another learning rate each."""
    for rate in (2e-3, 5e-4):
        digits = Digits(config=Digits.Config(learning_rate=rate), workdir=folder / f"rate_{rate:g}")
        often = looper.Every(epochs=1)
        watched = [looper.callbacks.Histograms(every=often), looper.callbacks.ConfusionMatrix(digits.eval_data())]
        digits.fit(epochs=6, log_every=looper.Every(steps=10), callbacks=watched, progress=False)


def take(folder: Path, browser: str, out: Path) -> None:
    """Serves the runs and makes the pictures. Raises SystemExit if one could not be made."""
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "looper.cli", "board", str(folder), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stderr or ():  # it says when it is ready
                if "Press CTRL+C to quit" in line:
                    break
            for tab, height in TABS.items():
                file = out / f"{tab}.png"
                file.unlink(missing_ok=True)
                shot = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={file}"]
                size = [f"--window-size={WIDTH},{height}", f"--virtual-time-budget={MILLISECONDS}"]
                done = subprocess.run(
                    [browser, *shot, *size, f"http://localhost:{port}/#{tab}"],
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=False,
                )
                if not file.exists():
                    raise SystemExit(f"{browser} made no picture of {tab}:\n{done.stderr[-2000:]}")
                print(f"{file}: {file.stat().st_size:,} bytes", flush=True)
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", default="chromium", help="the command of a Chromium")
    parser.add_argument("--out", type=Path, default=PICTURES, help="the folder to write to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "runs")
        take(Path(folder) / "runs", arguments.browser, arguments.out)


if __name__ == "__main__":
    main()
