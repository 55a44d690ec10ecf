"""What each choice about a pretrained base does: recipes/transfer.py, from frozen to from scratch, three seeds each.

    python -m benchmarks.transfer
    looper board runs/transfer

A seed is that of the base's pretraining, of the split (50 images of the digits 5 to 9 to train on, 846 to evaluate on),
of the initial weights and of the order. All choices of one seed begin from the same base. All are trained for 60 epochs
with the recipe's defaults, and evaluated at the end: no epoch is picked.
"""

import argparse
import typing
from pathlib import Path

import numpy as np

import looper
from benchmarks.saving import save
from recipes.transfer import Transfer

RESULTS = Path(__file__).parent / "results" / "transfer.json"
CHOICES = typing.get_args(typing.get_type_hints(Transfer.Config)["choice"])


def train(choice: str, seed: int, workdir: Path, epochs: int) -> dict[str, float]:
    """One run: what it ends with, and how far the base has moved from where it began."""
    trainer = Transfer(
        config=Transfer.Config(choice=choice, split_seed=seed), seed=seed, workdir=workdir / choice / f"seed_{seed}"
    )
    before = parts(trainer)
    options = {name: value for name, value in Transfer.defaults.items() if name != "workdir"} | {"epochs": epochs}
    hparams = looper.callbacks.HParams({"choice": choice, "seed": seed}, metrics=["eval/accuracy", "eval/loss"])
    history = trainer.fit(callbacks=[hparams], progress=False, resume=False, **options)
    return {
        "accuracy": history["eval/accuracy"][-1],
        "loss": history["eval/loss"][-1],
        "accuracy on the training images": trainer.evaluate(trainer.train_data())["accuracy"],
    } | {f"{name} moved by": moved(before[name], values) for name, values in parts(trainer).items()}


def parts(trainer: Transfer) -> dict[str, np.ndarray]:
    """The base's weights and batch statistics, flat."""
    groups: dict[str, list[np.ndarray]] = {"weights": [], "statistics": []}
    for weight in trainer.model.layers[0].weights:
        groups["statistics" if "moving" in weight.name else "weights"].append(weight.numpy().ravel())
    return {name: np.concatenate(values) for name, values in groups.items()}


def moved(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Mean, and the smallest and largest, of each column."""
    columns = list(next(iter(runs.values()))[0])
    rows = [["choice", *columns]]
    for choice, results in runs.items():
        values = [[result[column] for result in results] for column in columns]
        rows.append([choice, *(f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in values)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each choice")
    parser.add_argument("--epochs", type=int, default=Transfer.defaults["epochs"], help="epochs of each run")
    parser.add_argument("--workdir", type=Path, default=Path("runs/transfer"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {choice: [] for choice in CHOICES}
    for seed in range(arguments.seeds):
        for choice in CHOICES:
            runs[choice].append(train(choice, seed, arguments.workdir, arguments.epochs))
            print(f"seed {seed}  {choice:<18} accuracy {runs[choice][-1]['accuracy']:.4f}", flush=True)
    print(table(runs))
    save(arguments.out, {"runs": runs, "epochs": arguments.epochs}, "benchmarks.transfer")


if __name__ == "__main__":
    main()
