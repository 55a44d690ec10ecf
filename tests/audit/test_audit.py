"""The audit's other promises: it changes nothing, says so at the start of `fit`, refuses with `strict`, and reports."""

import json
import random
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from benchmarks import audit_cost
from looper.audit import record
from looper.audit.record import Recorder
from looper.audit.report import Report, Row, folded
from looper.audit.tree import Tree
from looper.cli import main
from tests.support import inside, models

L = keras.layers
X, Y = models.data((6,), 48)


class Digits(looper.Trainer):
    """A recipe with its own shuffled data, dropout, batch normalization, metrics and moving averages."""

    def build(self):
        self.model = keras.Sequential(
            [keras.Input((6,)), L.Dense(8), L.BatchNormalization(name="n"), L.Dropout(0.5, name="drop"), L.Dense(3)]
        )
        self.optimizer, self.loss = keras.optimizers.Adam(0.01), models.cross_entropy()
        self.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]

    def train_data(self):
        return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(48).batch(8).repeat()  # unseeded


class Unseeded(Digits):
    """Draws from Keras' global seed generator too."""

    def compute_loss(self, batch, training):
        loss = super().compute_loss(batch, training)
        return loss + 0.01 * tf.reduce_mean(keras.random.normal([4]))


def everything(trainer):
    values = inside.values(trainer)
    own = {f"own {name}": str(stream) for name, stream in inside.random_state(trainer).items()}
    return values | own | {"python": random.random(), "numpy": np.random.random(), "step": trainer.step}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Unseeded, {"ema": 0.9, "accumulate": 2}),
        (Digits, {"precision": "mixed_float16"}),
        (Digits, {"strategy": "mirrored", "devices": 2}),
        (Digits, {"execution": "eager"}),
    ],
    ids=str,
)
def test_training_goes_as_if_there_had_been_no_audit(kind, options):
    """Weights, dropout masks, the order of an unseeded shuffle, metrics and averages: all the same bits."""

    def run(audited):
        keras.utils.clear_session(free_memory=False)
        random.seed(0)
        np.random.seed(0)
        trainer = kind(**options)
        if audited:
            trainer.audit((X[:8], Y[:8]))
        trainer.fit(steps=3, steps_per_epoch=6, progress=False)
        if audited:
            trainer.audit()
        history = trainer.fit(steps=6, steps_per_epoch=6, progress=False)
        return everything(trainer), history["loss"], history["accuracy"]

    values, losses, accuracies = run(False)
    audited, audited_losses, audited_accuracies = run(True)
    assert losses == audited_losses
    assert accuracies == audited_accuracies
    assert list(values) == list(audited)
    for name, value in values.items():
        np.testing.assert_array_equal(value, audited[name], err_msg=name)


def test_an_audit_changes_no_variable():
    trainer = Digits()
    trainer.fit(steps=2, steps_per_epoch=6, progress=False)
    before = inside.values(trainer)
    trainer.audit()
    for name, variable in inside.variables(trainer).items():
        np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)


def test_an_audit_puts_back_what_evaluation_changes():
    class Counts(Digits):
        def build(self):
            super().build()
            self.seen = tf.Variable(0.0, trainable=False)

        def eval_step(self, batch):
            self.seen.assign_add(1.0)
            return super().eval_step(batch)

    trainer = Counts()
    report = trainer.audit()
    assert ("changed-by-evaluation", "seen") in {(finding.kind, finding.path) for finding in report.findings}
    assert trainer.seen.numpy() == 0


def test_hooks_are_gone_after_it():
    def hooks():
        assigning = type(tf.Variable(0.0))
        kinds = (keras.Layer, tf.GradientTape, keras.Variable, assigning)
        return [{name: value for name, value in vars(kind).items() if callable(value)} for kind in kinds]

    trainer = Digits()
    before, held = hooks(), [dict(vars(layer)) for layer in trainer.model.layers]
    trainer.audit()
    assert hooks() == before
    assert [set(vars(layer)) for layer in trainer.model.layers] == [set(h) for h in held]
    with pytest.raises(ZeroDivisionError), Recorder(Tree({"model": trainer.model}, trainer.strategy), "training"):
        raise ZeroDivisionError
    assert hooks() == before
    assert "call" not in vars(trainer.model)


def test_the_check_at_the_start_leaves_nothing_in_the_compiled_steps():
    """The graphs are those that are compiled without it, operation by operation."""

    def operations(trainer):
        kept = inside.executions(trainer)
        assert len(kept) == 2
        return [inside.operations(trainer, execution) for execution in kept]

    make, shape = audit_cost.MODELS["five layers"]
    checked, without = audit_cost.new_trainer(make), audit_cost.new_trainer(make)
    audit_cost.first_step(checked, shape)
    with audit_cost.unchecked():
        audit_cost.first_step(without, shape)
    assert inside.report(without) is None
    assert inside.report(checked).ok
    assert operations(checked) == operations(without)


class Leaky(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.dense = L.BatchNormalization(), L.Dropout(0.5), L.Dense(3)

    def call(self, x, training=None):
        return self.dense(self.drop(self.norm(x, training=False)))


def leaky(**options):
    return looper.Trainer(model=Leaky, optimizer="sgd", loss=models.cross_entropy(), **options)


@pytest.mark.parametrize("execution", ["graph", "xla_loop"])
def test_fit_says_what_it_finds_once(capsys, execution):
    trainer = leaky(execution=execution)
    trainer.fit((X, Y), epochs=1, eval_data=(X, Y), progress=False)
    told = capsys.readouterr().err
    assert "looper: audit: 2 errors" in told
    assert "error   model/norm [hard-coded]" in told
    assert "error   model/drop [leaked-flag]" in told
    trainer.fit((X, Y), epochs=2, eval_data=(X, Y), progress=False)
    assert "audit" not in capsys.readouterr().err


def test_fit_says_nothing_where_nothing_is_wrong(capsys):
    Digits().fit(steps=2, steps_per_epoch=2, eval_data=(X, Y), progress=False)
    assert capsys.readouterr().err == ""


def test_strict_refuses_before_the_first_step(tmp_path):
    trainer = leaky(strict=True, workdir=tmp_path / "run")
    with pytest.raises(looper.InputError) as refused:
        trainer.fit((X, Y), epochs=1, progress=False)
    assert "model/norm" in str(refused.value)
    assert "Pass training=training on" in str(refused.value)
    assert trainer.step == 0
    assert not list((tmp_path / "run").glob("**/[!.]*.*"))
    # the workdir is as good as new: another configuration may have it
    looper.Trainer(
        model=models.dense, optimizer="adam", loss=models.cross_entropy(), workdir=tmp_path / "run", strict=True
    ).fit((X, Y), epochs=1, progress=False)
    Digits(strict=True).fit(steps=1, steps_per_epoch=6, progress=False)


class TrainsInEvaluation(looper.Trainer):
    def eval_step(self, batch):
        return {"loss": self.loss(batch[1], self.model(batch[0], training=True))}


def test_strict_refuses_what_was_evaluated_before():
    trainer = TrainsInEvaluation(model=models.dense, optimizer="sgd", loss=models.cross_entropy(), strict=True)
    trainer.evaluate((X, Y), batch_size=16)
    with pytest.raises(looper.InputError, match="in evaluation"):
        trainer.fit((X, Y), epochs=1, batch_size=16, eval_data=(X, Y), progress=False)


def test_strict_needs_compiled_steps():
    with pytest.raises(looper.InputError, match=r"trainer\.audit\(\)"):
        leaky(strict=True, execution="eager")


def test_an_audit_needs_data():
    with pytest.raises(looper.InputError, match="give audit\\(\\) a batch"):
        leaky().audit()


def test_tensorboard_has_the_report(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    leaky(workdir=tmp_path).fit((X, Y), epochs=1, progress=False)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    [event] = events.Tensors("audit")
    shown = event.tensor_proto.string_val[0].decode()
    assert "- **error** `model/drop` (leaked-flag)" in shown
    assert "    model" in shown


def test_the_report_as_json():
    report = leaky().audit((X, Y))
    content = json.loads(report.json())
    assert [(f["severity"], f["kind"], f["path"]) for f in content["findings"][:2]] == [
        ("error", "hard-coded", "model/norm"),
        ("error", "leaked-flag", "model/drop"),
    ]
    assert {layer["path"]: layer["training"] for layer in content["layers"]}["model/norm"] == [[False, "hard-coded"]]
    assert content["versions"]["keras"] == keras.__version__


def test_the_command(tmp_path, monkeypatch, capsys):
    """Exit code 0 without errors, 1 with, 2 for wrong input; nothing is written."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        textwrap.dedent("""
        import keras, looper, numpy as np
        L = keras.layers
        class Good(looper.Trainer):
            defaults = {"workdir": "run", "epochs": 1}
            def build(self):
                layers = [L.Dense(4), L.BatchNormalization(), L.Dropout(0.5)]
                self.model = keras.Sequential([keras.Input((3,)), *self.norm(layers)])
                self.optimizer, self.loss = keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError()
            def norm(self, layers):
                return layers
            def train_data(self):
                return np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 4))
        class Bad(Good):
            def compute_loss(self, batch, training):
                return self.loss(batch[1], self.model(batch[0]))
        """)
    )
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        return main(["audit", *argv]), capsys.readouterr().out

    good, bad = run(f"{recipe}:Good", "--batch-size", "4"), run(f"{recipe}:Bad", "--json")
    missing = run("missing.py")
    assert good[0] == 0
    assert good[1].endswith("No findings.\n")
    assert bad[0] == 1
    assert json.loads(bad[1])["findings"][0]["kind"] == "no-flag"
    assert missing[0] == 2
    assert not (tmp_path / "run").exists()


def row(path, kind="Dense", depth=1, training=((True, "passed on"),)):
    return Row(path, kind, depth, training, ((False, "passed on"),), None, True, "", "")


def test_blocks_that_repeat_are_folded():
    block = ["Conv2D", "BatchNormalization", "ReLU"]
    rows = [row(f"model/{kind}_{i}", kind) for i in range(4) for kind in block]
    shown = folded([row("model", "Sequential", 0), *rows, row("model/head")])
    assert [(r.path, bool(note)) for r, note in shown] == [
        ("model", False),
        ("model/Conv2D_0", False),
        ("model/BatchNormalization_0", False),
        ("model/ReLU_0", False),
        ("model/Conv2D_1", True),
        ("model/head", False),
    ]
    assert shown[4][1] == "... the same 3 layers 3 times more: Conv2D_1 to ReLU_3"


def test_a_block_that_differs_is_not_folded():
    rows = [row(f"model/dense_{i}") for i in range(4)] + [row("model/odd", training=((False, "leaked"),))]
    shown = [r.path for r, note in folded(rows) if not note]
    assert shown == ["model/dense_0", "model/odd"]


def test_what_does_nothing_is_a_note():
    """Dropout with rate 0, and a layer that no step calls: to be known, and nothing wrong."""

    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop, self.out, self.forgotten = L.Dropout(0.0), L.Dense(3), L.Dropout(0.5)

        def call(self, x):
            return self.out(self.drop(x))

    report = looper.Trainer(model=Unused, optimizer="sgd", loss=models.cross_entropy()).audit((X, Y))
    found = {(finding.severity, finding.kind, finding.path) for finding in report.findings}
    assert found == {("note", "rate-0", "model/drop"), ("note", "never-called", "model/forgotten")}
    assert report.ok


def test_a_report_without_errors_is_ok():
    assert Report((), ()).ok
    assert not leaky().audit((X, Y)).ok


def test_a_trainer_that_another_one_makes_on_replicas_is_looked_at():
    """Also if it is the first of a process: in the scope of replicas a variable is of another class."""
    record._variable_class.cache_clear()

    def small():
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    class Outer(looper.Trainer):
        def build(self):
            inner = looper.Trainer(model=small, optimizer="sgd", loss="mse", strategy=self.strategy)
            inner.fit((np.ones((8, 2)), np.ones((8, 1))), epochs=1, batch_size=4, progress=False)
            self.model = small()

    Outer(strategy="mirrored", devices=2)
    assert record._variable_class() is type(tf.Variable(0.0))
