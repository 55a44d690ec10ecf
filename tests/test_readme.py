"""The README's figures come from committed results, and its recipe runs."""

import json
import os
import re
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import looper
from looper.cli import HELP
from looper.launch import failure
from looper.workers import peers, rendezvous
from looper.workers.cluster import PORT, Cluster, read_cluster

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def cell(values, digits=2):
    low, high = values["interval"]
    return f"{values['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


MODELS = ["mlp", "deep_mlp", "cnn32", "cnn256", "gpt8", "gpt64", "nanogpt", "resnet50"]
STEP, LOOP = "hand-written step, one a call", "hand-written in-graph loop"
AT_MOST = {
    ("mlp", LOOP): 0.35,
    ("mlp", "Orbit: in-graph loop, summaries"): 0.25,
    ("mlp", "Keras fit, best steps_per_execution"): 0.25,
    ("mlp", "Keras fit: bar, TensorBoard"): 0.05,
    ("mlp", "Lightning: bar, logger"): 0.05,
    ("mlp", "JAX by hand, lax.scan"): 2.0,
    ("deep_mlp", LOOP): 0.5,
    ("gpt8", STEP): 0.55,
    ("nanogpt", STEP): 0.7,
    ("cnn32", STEP): 0.6,
}


@pytest.mark.parametrize("model", MODELS)
def test_speeds_are_those_of_the_committed_results(model):
    found = result(f"hot_step_{model}")
    times, ratios = found["microseconds per step"], found["ratios looper / peer, turn by turn"]
    by_hand = {name: values["median"] for name, values in times.items() if name.startswith("hand-written")}
    best = min(by_hand, key=by_hand.get)
    assert (
        f"| {times['looper']['median']:,.0f} | {cell(ratios[STEP])} | {cell(ratios[LOOP])} | {cell(ratios[best])} |"
        in README
    )
    assert found["execution"] == "auto"
    for (named, peer), bound in AT_MOST.items():
        assert named != model or ratios[peer]["median"] <= bound


def test_speeds_against_everyone_are_those_of_the_committed_results():
    found = result("hot_step_mlp")
    for name, values in found["microseconds per step"].items():
        low, high = values["interval"]
        ratio = found["ratios looper / peer, turn by turn"].get(name)
        shown = cell(ratio) if ratio else ""
        assert f"| {name} | {values['median']:,.0f} | {low:,.0f} to {high:,.0f} | {shown} |" in README
    assert found["not measured"] == {}


def test_figures_are_those_of_the_committed_results():
    text = " ".join(README.split())
    first = result("startup")["seconds to the first step"]
    ours, cached, by_hand = (first[side]["median"] for side in ("looper", "looper, XLA programs in the cache", LOOP))
    assert f"took {ours:.1f} s, by hand {by_hand:.1f}, and {cached:.1f} in a second process" in text
    graph = result("hot_step_graph")["ratio looper / hand-written, pair by pair"]
    assert f'With `execution="graph"` looper takes {cell(graph)} of the loop' in text
    peaks: dict[str, dict[str, float]] = {}
    for model, modes in result("memory")["peak MiB"].items():
        for mode, found in modes.items():
            peaks.setdefault(mode, {})[model] = found["ratio"]["median"]
    assert set(peaks["graph"]) == set(MODELS)
    low, high = ({mode: least(found.values()) for mode, found in peaks.items()} for least in (min, max))
    own = peaks["xla_step"].pop("resnet50")
    assert (
        f"looper's peak memory is {low['graph']:.2f} to {high['graph']:.2f} of the hand-written loop's in the graph, "
        f"{low['xla_step']:.2f} to {max(peaks['xla_step'].values()):.2f} with XLA steps ({own:.2f} of ResNet-50), "
        f"{low['xla_loop']:.2f} to {high['xla_loop']:.2f} in an XLA loop"
    ) in text
    assert max(high["graph"], high["xla_loop"], *peaks["xla_step"].values()) <= 1.05
    steps = []
    for name in ("same_mode", "same_mode_xla_step", "same_mode_dataset"):
        found = {
            (model, mode): one
            for model, modes in result(name)["looper / by hand"].items()
            for mode, one in modes.items()
        }
        medians = {pair: one["ratio"]["median"] for pair, one in found.items()}
        steps.append(f"{min(medians.values()):.2f} to {max(medians.values()):.2f}")
        assert all(one["within the bound"] for one in found.values())
    assert max(medians, key=medians.get) == ("mlp", "graph")  # over a dataset
    assert f"it takes {steps[0]} in the graph on seven models, {steps[1]} with XLA steps on seven" in text
    assert f"over a `tf.data.Dataset` in place of arrays {steps[2]} on four models in both modes" in text
    runs = result("autotune_cost")["seconds of a fit"]
    shortest, longest = (least(run["auto"]["median"] for run in runs) for least in (min, max))
    low, high = (least(run["ratio"]["median"] for run in runs) for least in (min, max))
    assert len(runs) == 5
    assert (
        f"runs that chose, of {shortest:.1f} to {longest:.0f} s, took {low:.2f} to {high:.2f} times as long as those"
    ) in text
    assert all(run["ratio"]["interval"][0] <= run["bound"] for run in runs)
    applications = json.loads((ROOT / "benchmarks" / "results" / "applications.json").read_text())
    assert applications["passed"] == "40 of 40"
    assert "Each of the 40 architectures" in README
    memory = json.loads((ROOT / "benchmarks" / "results" / "memory_flat.json").read_text())
    growth = [part["growth of the second half, share"] for part in memory.values() if "calls" in part]
    assert len(growth) == 4
    assert max(growth) < 0.001


def test_what_replicas_and_workers_cost_is_the_committed_result():
    measured = result("scaling")["measured"]
    split, fit = "hand-written, replicas slice the batch", "Keras fit: bar, TensorBoard"
    distributed = "hand-written, experimental_distribute_dataset"
    chosen = "ratios looper in the mode that it chooses / other, turn by turn"
    titles = {"mlp": "the first model above", "cnn256": "2 convolutions, batch 256"}
    for name, row in measured.items():
        ratios = row["ratios looper / other, turn by turn"]
        assert ratios[split]["median"] <= 1.03
        if row["replicas"] in (2, 4):
            model, where = name.split(", ")
            by_fit = cell(ratios[fit]) if fit in ratios else "does not train"
            assert (
                f"| {titles[model]}, {where} | {row['microseconds per step']['looper']['median']:,.0f} | "
                f"{cell(ratios[split])} | {cell(ratios[distributed])} | {by_fit} | {cell(row[chosen][distributed])} |"
            ) in README
            assert model != "mlp" or ratios[distributed]["median"] <= 0.8
    share = measured["mlp, 2 workers"]["share of collectives"]["median"]
    assert f"on two workers, {share:.0%} is the exchange of its gradients" in README


def test_killed_workers_are_the_committed_ones():
    kills = result("worker_kills")["kills"]
    assert len(kills) == 10
    assert "In ten runs" in README
    assert sum(row["rank"] == 0 for row in kills) == 5
    for row in kills:
        assert row["code"] == 0 and row["killed_after"] and row["restarts"] == 1
        assert row["same_bits"] and row["same_evaluation"] and row["variables"] > 50


def test_the_comparison_of_transfers_is_the_committed_one():
    runs = json.loads((ROOT / "benchmarks" / "results" / "transfer.json").read_text())["runs"]
    assert len(runs) == 5
    for choice, results in runs.items():
        [line] = [line for line in README.splitlines() if line.startswith(f"| `{choice}`: ")]
        for name, shown in zip(("accuracy", "loss"), line.split(" | ")[1:], strict=True):
            values = [result[name] for result in results]
            assert len(values) == 3
            wanted = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            assert shown.removesuffix(" |") == wanted


def test_the_audits_figures_are_the_committed_ones():
    cost = json.loads((ROOT / "benchmarks" / "results" / "audit_cost.json").read_text())["models"]
    five, blocks, resnet = (
        f"{row['cost of the check, share of the time to the first step']['median']:.1%}" for row in cost.values()
    )
    assert list(cost) == ["five layers", "transformer of four blocks", "ResNet50"]
    shown = f"it costs {five} (five layers), {blocks} (a transformer of four blocks) and {resnet} (ResNet50;"
    assert shown in " ".join(README.split())
    applications = json.loads((ROOT / "benchmarks" / "results" / "audit_applications.json").read_text())
    assert applications["passed"] == "40 of 40"


class Classifier(keras.Model):
    """The model that the README's audit is of."""

    def __init__(self):
        super().__init__()
        self.d, self.n = keras.layers.Dense(4), keras.layers.BatchNormalization()
        self.drop, self.e = keras.layers.Dropout(0.5), keras.layers.Dense(2)

    def call(self, x, training=None):
        return self.e(self.drop(self.n(self.d(x), training=False)))


def test_the_audit_is_printed_as_shown():
    [shown] = re.findall(r"```text\n(.*?)```", README, re.S)
    trainer = looper.Trainer(model=Classifier, optimizer="sgd", loss="mse")
    report = trainer.audit((np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 2))))
    assert shown.strip() == str(report)


def test_every_kind_of_finding_is_in_the_table():
    source = "".join(path.read_text() for path in (ROOT / "looper" / "audit").glob("*_checks.py"))
    kinds = set(re.findall(r'"([a-z]+-[a-z0-9-]+)"', source)) - {"error", "warning", "note"}
    assert {kind for kind in kinds if f"`{kind}`" not in README} <= {"from-logits"}


def test_the_recipe_runs(tmp_path, monkeypatch):
    """As printed."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    [code] = [block for block in blocks if "class Digits" in block]
    names = {}
    exec(code, names)
    assert names["history"]["eval/accuracy"][-1] > 0.85
    outputs = names["trainer"].predict(names["x_test"])
    assert outputs.shape == (297, 10)
    accuracy = names["trainer"].evaluate((names["x_test"], names["y_test"]))["accuracy"]
    np.testing.assert_allclose((outputs.argmax(-1) == names["y_test"]).mean(), accuracy, atol=0.01)  # bfloat16


def test_the_other_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    x, y = load_digits(return_X_y=True)
    names = {"x": x / 16, "y": y, "keras": keras, "looper": looper}
    [augmenting] = [block for block in blocks if "augmented(" in block]
    exec(augmenting, names)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    trainer = looper.Trainer(
        model=lambda: keras.Sequential(layers), optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"]
    )
    history = trainer.fit(names["train_data"], epochs=2, progress=False)
    assert history["loss"][1] < history["loss"][0]

    [several] = [block for block in blocks if "loss_weights" in block]
    exec(several, names)
    targets = {"digit": y, "even": (y % 2 == 0).astype("float32")[:, None]}
    history = names["trainer"].fit((x / 16, targets), epochs=2, progress=False)
    assert history["digit_accuracy"][1] > history["digit_accuracy"][0]

    [unfreezing] = [block for block in blocks if "callbacks.Unfreeze(" in block]
    others = {**names, "x": x / 16, "y": y}
    exec(unfreezing.replace("[unfreeze])", "[unfreeze], progress=False)"), others)
    assert len(others["trainer"].model.trainable_variables) == 6

    [own] = [block for block in blocks if "class Enough" in block]
    exec(own, names)
    stopped = names["trainer"].fit((x / 16, targets), epochs=500, callbacks=[names["Enough"]()], progress=False)
    assert stopped["loss"][-1] < 0.05


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    [pattern] = re.findall(r"grep -x '(.*)' README.md", (ROOT / ".ci" / "run").read_text())
    assert [line for line in commands if re.fullmatch(pattern, line)] == [commands[1]]


def block(language, containing):
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in text]
    return found


@pytest.mark.parametrize(
    "code, restarts, requeued",
    [(0, 0, False), (75, 0, True), (75, 9, True), (69, 0, True), (69, 5, False), (2, 0, False), (137, 0, False)],
)
def test_the_batch_script_requeues_what_may_be_tried_again(tmp_path, code, restarts, requeued):
    """With stand-ins for SLURM's commands, which note how they are called."""
    script = tmp_path / "job.sbatch"
    script.write_text(block("bash", "#SBATCH"))
    for name, then in {"srun": f"exit {code}", "scontrol": ""}.items():
        note = f'echo "$@ on $LOOPER_PORT" > "{tmp_path}/{name}.txt"'
        (tmp_path / name).write_text(f"#!/bin/sh\n{note}\n{then}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "8", "SLURM_RESTART_COUNT": str(restarts)}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **slurm}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stderr == ""
    started = (tmp_path / "srun.txt").read_text()
    assert started == "--cpus-per-task=8 looper run recipes/digits.py --workdir /shared/runs/digits on 14711\n"
    assert (tmp_path / "scontrol.txt").exists() == requeued
    assert not requeued or (tmp_path / "scontrol.txt").read_text().startswith("requeue 4711")


def test_the_manifest_is_yaml():
    claim, job = pytest.importorskip("yaml").safe_load_all(block("yaml", "TFJob"))
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] == "OnFailure"
    assert worker["template"]["spec"]["containers"][0]["command"][:3] == ["looper", "run", "recipes/digits.py"]
    assert worker["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_cluster_of_the_readme_is_one():
    [config] = re.findall(r"export TF_CONFIG='(.*?)'", README)
    assert read_cluster({"TF_CONFIG": config}) == Cluster(("10.0.0.1:2222", "10.0.0.2:2222"), 0)


def test_what_the_readme_says_of_clusters_is_in_the_code():
    text = " ".join(README.split())
    assert f"exits with {failure.LOST_PEER}; start all again" in text
    assert f'saves and stops all: {failure.REQUEUE}, "start me again"' in text
    assert f"after `LOOPER_START_SECONDS` ({rendezvous.SECONDS:g}) at most" in text
    assert f"listens on `LOOPER_PORT` ({PORT}), the next on the next" in text
    assert f"up to {2 * peers.PROBE_SECONDS:g} s go into asking which" in text
    assert "`looper doctor`" in text and "looper doctor [--workers N]" in HELP
