"""Runs all recipes as their users do, and prints the table of recipes/README.md.

    python -m benchmarks.recipes [--only NAME ...] [--out FILE]
    python -m benchmarks.recipes --check [--only NAME ...]

Each default run is timed, and may take 4 minutes. `--check` makes short runs instead: of each recipe the audit finds no
error; on 2 replicas and with `accumulate=2` it ends as on one device, where it draws no random numbers in its steps;
and when it is killed and started again, it ends with the same bits.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.saving import save

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "recipes.json"
MOST_SECONDS = 240


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        task: what it does.
        shows: what of looper it shows.
        found: where in its last lines its figures stand, by their names.
        told: its figures, as the table has them.
        reference: what they are to be compared with, of all results.
        variants: options of its runs, by a name; "" is the default run.
        seeds: runs of each variant.
        short: options of a short run.
        alike: whether its steps draw nothing, so that replicas and micro-batches end as one device.
        refused: what is said of `accumulate=2`, if it cannot be.
    """

    task: str
    shows: str
    found: str
    told: str
    reference: Callable[[dict[str, Any]], str]
    variants: dict[str, Sequence[str]] = dataclasses.field(default_factory=lambda: {"": ()})
    seeds: int = 1
    short: Sequence[str] = ()
    alike: bool = False
    refused: str | None = None


def of(results: dict[str, Any], recipe: str, figure: str, variant: str = "") -> str:
    """The mean of a figure over the seeds, and the smallest and largest, if there are several."""
    values = [run[figure] for run in results[recipe]["runs"][variant] if figure in run]
    digits = 2 if max(values) < 100 else 0
    digits = 3 if max(values) < 10 else digits
    mean, low, high = (f"{number:.{digits}f}" for number in (np.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


RECIPES = {
    "digits": Recipe(
        task="classify 8x8 images of digits",
        shows="a recipe as most are: model, optimizer, loss, metrics",
        found=r"evaluation after step 900 .*accuracy (?P<accuracy>[\d.]+)",
        told="{accuracy} of 360 held-out images right",
        reference=lambda r: f"logistic regression: {r['references']['logistic regression']:.3f}",
        seeds=3,
        short=("--steps", "60", "--save-every", "20 steps"),
    ),
    "transfer": Recipe(
        task="pretrain on the digits 0 to 4, transfer to 50 images of 5 to 9",
        shows="`freeze`, `Unfreeze`, learning rates of layers",
        found=r"evaluation after step 300 .*accuracy (?P<accuracy>[\d.]+)",
        told="{accuracy} of 846 held-out images right",
        reference=lambda r: f"from scratch: {r['references']['transfer from scratch']:.3f}",
        seeds=3,
        short=("--steps", "30", "--save-every", "10 steps"),
    ),
    "language_model": Recipe(
        task="write Python, character by character",
        shows="a transformer of your own, `CosineDecay`, decay of matrices alone, `predict_step` that generates",
        found=r"loss (?P<loss>[\d.]+) on the last tenth, .* of a table of pairs (?P<pairs>[\d.]+)",
        told="loss {loss} on the last tenth, in nats per character",
        reference=lambda r: (
            f"the same model by hand: {r['language_model']['by hand']:.3f}; "
            f"a table of pairs: {of(r, 'language_model', 'pairs')}"
        ),
        short=("--steps", "40", "--save-every", "10 steps", "--layers", "1", "--eval-every", "20 steps"),
        alike=True,
    ),
    "gan": Recipe(
        task="draw digits with a DCGAN",
        shows="an own `train_step` with two optimizers, `run.log`, pictures in TensorBoard",
        found=r"distance (?P<distance>-?[\d.]+); after 400 steps (?P<early>-?[\d.]+); .* digits (?P<halves>-?[\d.]+)",
        told="Frechet's distance {distance}, after 400 steps {early}",
        reference=lambda r: f"between halves of the real digits: {of(r, 'gan', 'halves')}",
        seeds=3,
        short=("--steps", "60", "--save-every", "20 steps", "--watch-every", "30"),
        refused="accumulate=2",
    ),
    "diffusion": Recipe(
        task="draw digits by taking noise away",
        shows="averaged weights (`ema`), a `predict_step` that loops",
        found=r"distance (?P<distance>-?[\d.]+); after 500 steps (?P<early>-?[\d.]+); .* digits (?P<halves>-?[\d.]+)",
        told="energy distance {distance}, after 500 steps {early}",
        reference=lambda r: f"between halves of the real digits: {of(r, 'diffusion', 'halves')}",
        short=("--steps", "30", "--save-every", "10 steps", "--watch-every", "15", "--noise-steps", "4"),
    ),
    "distill": Recipe(
        task="distill a large network into a small one, with 100 labels",
        shows="a second model in the loss, a trainer inside of a recipe",
        found=r"student (?P<accuracy>[\d.]+) of the held-out digits right \((?:alone|teacher (?P<teacher>[\d.]+))\)",
        told="{accuracy} of 360 held-out digits right",
        reference=lambda r: (
            f"alone: {of(r, 'distill', 'accuracy', 'alone')}; the teacher: {of(r, 'distill', 'teacher')}"
        ),
        variants={"": (), "alone": ("--alone",)},
        seeds=5,
        short=("--steps", "60", "--save-every", "20 steps"),
        alike=True,
    ),
    "rl": Recipe(
        task="balance a pole with double Q-learning",
        shows="data that training makes (`prefetch=0`) and that is saved with `state()`, `after_update`",
        found=r"length (?P<length>\d+) of 200 over the last 100 episodes; (?:not solved|solved after (?P<solved>\d+))",
        told="episodes of {length} of 200 steps; 195 after {solved} updates, in {seeds_with_solved} seeds",
        reference=lambda r: "solved: 195",
        seeds=5,
        short=("--steps", "600", "--save-every", "200 steps", "--log-every", "200 steps"),
    ),
}


def run(name: str, options: Sequence[str], workdir: Path, refused: str | None = None) -> tuple[float, str]:
    """Runs a recipe: the seconds that it took, and what it printed. Raises SystemExit unless it ends as it should."""
    began = time.monotonic()
    command = [sys.executable, "-m", "looper.cli", "run", f"recipes/{name}.py", "--workdir", str(workdir), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != (2 if refused else 0) or (refused or "") not in done.stderr:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.monotonic() - began, done.stdout + done.stderr


def figures(name: str, said: str) -> dict[str, float]:
    """The figures that a recipe printed at last."""
    *_, last = [None, *re.finditer(RECIPES[name].found, said)]
    if last is None:
        raise SystemExit(f"{name} did not tell what it reached:\n{said[-2000:]}")
    return {figure: float(value) for figure, value in last.groupdict().items() if value is not None}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """All runs of a recipe."""
    recipe = RECIPES[name]
    found: dict[str, Any] = {"command": f"looper run recipes/{name}.py", "runs": {}, "seconds": []}
    for variant, options in recipe.variants.items():
        found["runs"][variant] = []
        for seed in range(recipe.seeds):
            more = [*options, "--seed", str(seed)]
            if name in ("digits", "transfer"):
                more += ["--split-seed", str(seed)]
            seconds, said = run(name, more, folder / name / f"{variant}_{seed}".replace(" ", "_"))
            found["runs"][variant].append(figures(name, said))
            found["seconds"] += [] if variant else [round(seconds, 1)]
            print(f"{name} {variant} seed {seed}: {found['runs'][variant][-1]}  {seconds:.0f} s", flush=True)
    if name == "language_model":
        found["by hand"] = language_model_by_hand()
    return found


def references() -> dict[str, float]:
    """What the table compares with, and no recipe makes."""
    from sklearn.linear_model import LogisticRegression

    from recipes.digits import Digits

    (x, y), (x_held_out, y_held_out) = Digits().train_data(), Digits().eval_data()
    regression = LogisticRegression(max_iter=2000).fit(x.reshape(len(x), -1), y)
    score = regression.score(x_held_out.reshape(len(x_held_out), -1), y_held_out)
    transfer = json.loads((RESULTS.parent / "transfer.json").read_text())["runs"]["scratch"]
    return {
        "logistic regression": score,
        "transfer from scratch": float(np.mean([one["accuracy"] for one in transfer])),
    }


def language_model_by_hand() -> float:
    """The loss of the language model's network on the same text, trained in a loop of its own, with its own rates."""
    import keras
    import tensorflow as tf

    from recipes.language_model import LanguageModel

    made = LanguageModel(seed=1)  # the same network and text; what trains it is below
    config, model, text = made.config, made.model, made._text
    steps, size = made.defaults["steps"], made.defaults["batch_size"]
    rates = keras.optimizers.schedules.CosineDecay(
        0.0, steps - config.warmup, alpha=0.1, warmup_target=config.learning_rate, warmup_steps=config.warmup
    )
    optimizer = keras.optimizers.AdamW(rates, weight_decay=0.1, beta_2=0.99, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) < 2])

    def loss_of(starts: Any, training: bool) -> Any:
        windows = tf.gather(text, starts[:, None] + tf.range(config.context + 1))
        logits = model(windows[:, :-1], training=training)
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(windows[:, 1:], logits, from_logits=True))

    @tf.function
    def step(starts: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(starts, True)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    random = np.random.default_rng(1)
    for _ in range(steps):
        step(tf.constant(random.integers(0, made.train_length - config.context, size), tf.int32))
    evaluated = tf.function(lambda starts: loss_of(starts, False))
    starts = made.eval_data().astype("int32")
    starts = starts[: len(starts) // size * size].reshape(-1, size)
    return float(np.mean([evaluated(tf.constant(some)) for some in starts]))


def table(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = ["| recipe | task | what it shows | time | result | reference |", "| --- | --- | --- | --- | --- | --- |"]
    for name, recipe in RECIPES.items():
        cells = (f"[{name}.py]({name}.py)", recipe.task, recipe.shows)
        if name not in results:
            rows.append(f"| {' | '.join(cells)} | | not measured yet | |")
            continue
        runs = results[name]["runs"][""]
        found = {figure: len([run for run in runs if figure in run]) for run in runs for figure in run}
        figures = {figure: of(results, name, figure) for figure in found}
        figures |= {f"seeds_with_{figure}": f"{count} of {len(runs)}" for figure, count in found.items()}
        seconds = np.mean(results[name]["seconds"])
        told = recipe.told.format(**figures)
        rows.append(f"| {' | '.join(cells)} | {seconds:.0f} s | {told} | {recipe.reference(results)} |")
    return "\n".join(rows)


# Short runs, compared


def check(name: str, folder: Path) -> None:
    """Raises SystemExit if one of the promises about a recipe does not hold."""
    recipe = RECIPES[name]
    audit = [sys.executable, "-m", "looper.cli", "audit", f"recipes/{name}.py"]
    done = subprocess.run(audit, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout}{done.stderr[-2000:]}")
    found = re.findall(r"^(?:note|warning) .*\[(.*)\]$", done.stdout, re.M)
    print(f"{name}: the audit finds no error{', and tells: ' if found else ''}{', '.join(found)}", flush=True)
    run(name, recipe.short, folder / "whole")
    kill_and_go_on(name, recipe.short, folder / "killed")
    same(final(folder / "whole"), final(folder / "killed"), 0.0)
    print(f"{name}: killed and started again: the same bits", flush=True)
    for title, options in {
        "2 replicas": ("--strategy", "mirrored", "--devices", "2"),
        "accumulate=2": ("--accumulate", "2"),
    }.items():
        refused = recipe.refused if title == "accumulate=2" else None
        if recipe.alike:
            exact = ("--precision", "float64", "--execution", "graph")
            run(name, [*recipe.short, *exact], folder / "one")
            run(name, [*recipe.short, *exact, *options], folder / title)
            one, other = (weights(final(folder / each)) for each in ("one", title))
            said = f"weights differ by {same(one, other, 1e-9):.1e}"
        else:
            run(name, [*recipe.short, *options], folder / title, refused)
            said = "is refused in one line" if refused else "runs"
        print(f"{name}: {title}: {said}", flush=True)


def kill_and_go_on(name: str, options: Sequence[str], workdir: Path) -> None:
    """Starts a run, kills it when it has saved, and starts it again."""
    command = [sys.executable, "-m", "looper.cli", "run", f"recipes/{name}.py", "--workdir", str(workdir), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(workdir.glob("checkpoints/step_*/state.index")):
            time.sleep(0.01)  # polls a file of another process
        if process.poll() is not None:
            raise SystemExit(f"{name} ended before it was killed: make its short run longer")
        process.kill()
    run(name, options, workdir)


def final(workdir: Path) -> dict[str, np.ndarray]:
    """All values of the last checkpoint of a run."""
    import tensorflow as tf

    newest = max((workdir / "checkpoints").glob("step_*"))
    reader = tf.train.load_checkpoint(str(newest / "state"))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


def weights(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the model: of a metric each replica has sums of its own."""
    return {name: value for name, value in values.items() if name.startswith("variables/model.")}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float) -> float:
    """The largest difference. Raises SystemExit if it is over `tolerance`, or if they hold other variables."""
    if not one or one.keys() != other.keys():
        raise SystemExit(f"they hold other variables: {sorted(one.keys() ^ other.keys())}")
    differences = {name: np.abs(one[name].astype("float64") - other[name]).max(initial=0.0) for name in one}
    worst = max(differences, key=differences.__getitem__)
    if not differences[worst] <= tolerance:  # also of what is no number
        raise SystemExit(f"{worst} differs by {differences[worst]}")
    return float(differences[worst])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="recipes to run")
    parser.add_argument("--check", action="store_true", help="short runs, compared, in place of the default ones")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write; what is not run stays in it")
    arguments = parser.parse_args()
    slow = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            if arguments.check:
                check(name, Path(folder) / name)
                continue
            found = measure(name, Path(folder))
            results = json.loads(arguments.out.read_text())["recipes"] if arguments.out.exists() else {}
            results |= {name: found, "references": references()}
            save(arguments.out, {"recipes": results}, "benchmarks.recipes")
            if max(found["seconds"]) > MOST_SECONDS:
                slow[name] = found["seconds"]
    if not arguments.check:
        print(table(results))
    if slow:
        sys.exit(f"over {MOST_SECONDS} s: {slow}")


if __name__ == "__main__":
    main()
