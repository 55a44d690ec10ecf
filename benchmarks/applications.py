"""Every architecture of `keras.applications` under looper, against one step written by hand.

    python -m benchmarks.applications            all of them, about two hours on two cores
    python -m benchmarks.applications --missing  those that the results do not have yet

Each is built without pretrained weights, at the smallest image that its code takes, and trained for one step: by
looper, compiled, and by hand, in eager mode, from the same weights and dropout seeds. In float64, because batch
normalization over four examples of 1x1 pixels magnifies rounding: in float32 two orders of a sum differ visibly.
The results are written after each architecture; each runs in a process of its own, so that its memory is freed.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "applications.json"
ARCHITECTURES = sorted(
    name for name, value in vars(keras.applications).items() if name[0].isupper() and callable(value)
)
LARGER_THAN_32 = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
CLASSES, EXAMPLES, LEARNING_RATE = 5, 4, 1 / 64
LIMIT = 1e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What one architecture gave.

    Attributes:
        name: of the architecture.
        parameters: how many numbers the model has.
        loss, evaluation: relative differences of the training step's loss and of the evaluation's.
        weights: the largest norm of a variable's difference over the norm of the variable, all variables and
            batch statistics.
        update: the norm of the difference of the whole update over the norm of the update.
        statistics: moving means and variances in the model, and how many of them training moved.
        changed_in_evaluation: variables that evaluation changed, statistics and dropout seeds among them.
    """

    name: str
    parameters: int
    loss: float
    evaluation: float
    weights: float
    update: float
    statistics: int
    statistics_moved: int
    changed_in_evaluation: int

    @property
    def passed(self) -> bool:
        equal = max(self.loss, self.evaluation, self.weights, self.update) <= LIMIT
        return equal and self.statistics_moved == self.statistics and self.changed_in_evaluation == 0


def compare(name: str) -> Comparison:
    """Trains one step and evaluates, under looper and by hand."""
    size = LARGER_THAN_32.get(name, 32)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(EXAMPLES, size, size, 3)), np.arange(EXAMPLES) % CLASSES
    trainer = looper.Trainer(
        model=lambda: getattr(keras.applications, name)(weights=None, input_shape=x.shape[1:], classes=CLASSES),
        optimizer=lambda: keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy,
        precision="float64",
    )
    model = trainer.model
    start = values(model)
    loss_by_hand, evaluation_by_hand = by_hand(model, x, y)
    by_hand_end = values(model)
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)

    history = trainer.fit((x, y), steps=1, batch_size=EXAMPLES, shuffle=False, progress=False)
    end = values(model)
    evaluation = trainer.evaluate((x, y), batch_size=3)  # 3 and 1: the mean is over examples, not over batches
    unchanged = [np.array_equal(v, e) for v, e in zip(values(model), end, strict=True)]
    moving = [i for i, v in enumerate(model.variables) if v.name.startswith("moving_")]
    return Comparison(
        name=name,
        parameters=model.count_params(),
        loss=relative(history["loss"][0], loss_by_hand),
        evaluation=relative(evaluation["loss"], evaluation_by_hand),
        weights=max(
            # a bias under batch normalization has no gradient but rounding, and stays near 0: hence the floor
            np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
            for a, b in zip(end, by_hand_end, strict=True)
        ),
        update=float(
            norm(a - b for a, b in zip(end, by_hand_end, strict=True))
            / norm(b - s for b, s in zip(by_hand_end, start, strict=True))
        ),
        statistics=len(moving),
        statistics_moved=sum(not np.array_equal(end[i], start[i]) for i in moving),
        changed_in_evaluation=len(unchanged) - sum(unchanged),
    )


def by_hand(model: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """One step, as one writes it without a framework: its loss, and the loss of an evaluation after it."""
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(dtype="float64")
    optimizer = keras.optimizers.SGD(LEARNING_RATE)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        loss = cross_entropy(y, model(x, training=True))
    variables = model.trainable_variables
    optimizer.apply(tape.gradient(loss, variables), variables)
    return float(loss), float(cross_entropy(y, model(x, training=False)))


def values(model: keras.Model) -> list[np.ndarray]:
    """All variables, dropout seeds included."""
    return [v.numpy() for v in model.variables]


def norm(arrays) -> float:
    return float(np.sqrt(sum(np.square(a, dtype="float64").sum() for a in arrays)))


def relative(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="default: all of keras.applications")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    parser.add_argument("--here", action="store_true", help="print one architecture's result as JSON, in this process")
    parser.add_argument("--missing", action="store_true", help="keep the results there are, of the same versions")
    arguments = parser.parse_args()
    if arguments.here:
        comparison = compare(arguments.names[0])
        print(json.dumps(dataclasses.asdict(comparison) | {"passed": comparison.passed}, default=float))
        return
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    rows = {}
    if arguments.missing and arguments.out.exists():
        earlier = json.loads(arguments.out.read_text())
        rows = {row["name"]: row for row in earlier["architectures"] if earlier["versions"] == versions}
    for name in arguments.names or ARCHITECTURES:
        if name in rows:
            continue
        command = [sys.executable, "-m", "benchmarks.applications", "--here", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        failed = {"name": name, "passed": False, "error": run.stderr.strip().splitlines()[-1:] or run.returncode}
        rows[name] = failed if run.returncode else json.loads(run.stdout.splitlines()[-1])
        print(json.dumps(rows[name]), flush=True)
        result = {
            "what": "relative differences between one step of looper and one by hand, float64",
            "passed": f"{sum(row['passed'] for row in rows.values())} of {len(rows)}",
            "limit": LIMIT,
            "architectures": [rows[name] for name in sorted(rows)],
        }
        save(arguments.out, result, "benchmarks.applications")


if __name__ == "__main__":
    main()
