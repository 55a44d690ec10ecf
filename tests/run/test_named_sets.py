"""Several sets of evaluation data: each by itself, under its name, watched like any other."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data import named
from tests.support import inside, models

X, Y = models.data(examples=40)
VAL, OOD = (X[:21], Y[:21]), (3 * X[21:], Y[21:])
MODES = [
    {"execution": "graph"},
    {"execution": "xla_step"},
    {"execution": "eager"},
    {"strategy": "mirrored", "devices": 2, "execution": "graph"},
]


def make(**options):
    return looper.Trainer(
        model=lambda: models.dense(norm=False),
        optimizer=lambda: keras.optimizers.SGD(0.1),
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        **options,
    )


def sets():
    """Arrays and a dataset."""
    return named(val=VAL, ood=tf.data.Dataset.from_tensor_slices(OOD).batch(4))


@pytest.mark.parametrize("options", MODES, ids=str)
def test_each_set_is_evaluated_by_itself(options):
    trainer = make(**options)
    fit = {"epochs": 2, "batch_size": 8, "progress": False}
    history = trainer.fit((X, Y), eval_data=sets(), **fit)
    alone = {"val": trainer.evaluate(VAL, batch_size=8), "ood": trainer.evaluate(OOD, batch_size=4)}
    assert alone["val"]["examples"] == 21 and alone["ood"]["examples"] == 19
    assert alone["val"]["loss"] != alone["ood"]["loss"]
    expected = {f"{name}/{log}": value for name, logs in alone.items() for log, value in logs.items()}
    assert trainer.evaluate(sets(), batch_size=8) == expected
    assert {name: history[f"eval/{name}"][-1] for name in expected} == expected
    assert [len(history[f"eval/{name}"]) for name in expected] == [2] * len(expected)
    other = make(**options)
    other.fit((X, Y), **fit)
    for mine, theirs in zip(trainer.model.weights, other.model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_recipes_own_data_may_be_several_sets(capsys):
    class Own(looper.Trainer):
        def build(self):
            self.model, self.loss = models.dense(norm=False), models.cross_entropy()
            self.optimizer = keras.optimizers.SGD(0.1)

        def train_step(self, batch):
            return super().train_step(batch)

        def train_data(self):
            return X, Y

        def eval_data(self):
            return sets()

    trainer = Own()
    assert trainer.audit().ok
    assert set(trainer.evaluate()) == {f"{name}/{log}" for name in ("val", "ood") for log in ("loss", "examples")}
    trainer.fit(epochs=1, batch_size=8)
    assert "(21, 19 examples)" in capsys.readouterr().err


class Unlabelled(looper.Trainer):
    """Knows how right it is only where there are labels."""

    def build(self):
        self.model, self.optimizer = models.dense(norm=False), keras.optimizers.SGD(0.1)
        self.loss, self.metrics = models.cross_entropy(), [keras.metrics.SparseCategoricalAccuracy("accuracy")]

    def eval_step(self, batch):
        if isinstance(batch, tuple):
            return super().eval_step(batch)
        return {"spread": tf.math.reduce_std(self.model(batch, training=False), 1)}


@pytest.mark.parametrize("names", [("ood", "val"), ("val", "ood")])
def test_each_set_logs_the_metrics_that_its_steps_update(names, recwarn):
    data = {"val": VAL, "ood": OOD[0]}
    together = named(**{name: data[name] for name in names})
    history = Unlabelled(execution="graph").fit((X, Y), eval_data=together, epochs=1, batch_size=8, progress=False)
    evaluated = {name for name in history.names() if name.startswith("eval/")} - {
        "eval/val/examples",
        "eval/ood/examples",
    }
    assert evaluated == {"eval/val/loss", "eval/val/accuracy", "eval/ood/spread"}
    assert not [warning for warning in recwarn if "updates this metric" in str(warning.message)]


def test_more_sets_than_are_kept_make_no_new_pipelines():
    trainer, many = make(), named(**{f"set_{i}": (X[i:], Y[i:]) for i in range(9)})
    trainer.evaluate(many)
    feeds = inside.evaluation_feeds(trainer)
    trainer.evaluate(many)
    assert [a is b for a, b in zip(feeds, inside.evaluation_feeds(trainer), strict=True)] == [True] * 9


def test_a_dict_of_parts_of_one_length_is_evaluated():
    class Parted(looper.Trainer):
        parts = ("labelled", "more")

        def build(self):
            self.model, self.optimizer = models.dense(norm=False), keras.optimizers.SGD(0.1)
            self.loss = models.cross_entropy()

        def compute_loss(self, batch, training):
            return super().compute_loss(batch["labelled"], training)

    trainer = Parted(execution="graph")
    data = {"labelled": (X, Y), "more": X}
    trainer.fit(data, epochs=1, batch_size=16, progress=False)
    found = trainer.evaluate(data, batch_size=16)
    alone = looper.Trainer(model=lambda: trainer.model, loss=models.cross_entropy()).evaluate((X, Y), batch_size=16)
    assert found == alone


def test_callbacks_watch_a_set(tmp_path):
    trainer = make(workdir=tmp_path, ema=0.9)
    callbacks = [
        looper.callbacks.EarlyStopping("eval/ood/accuracy", patience=1, min_delta=2.0),
        looper.callbacks.Checkpoint(best="eval/val/loss"),
        looper.callbacks.ReduceLROnPlateau("eval/val/accuracy", patience=1),
        looper.callbacks.EmaEvaluation(),
        looper.callbacks.HParams(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.fit((X, Y), epochs=9, eval_data=sets(), callbacks=callbacks, progress=False)
    assert trainer.epoch == 2, "no accuracy is better by 2"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "eval/val/loss" in row]
    assert len(evaluated) == 2
    assert {f"eval/{name}/raw_loss" for name in ("val", "ood")} <= evaluated[0].keys()
    with pytest.raises(looper.InputError, match="monitor='eval/loss' is not logged: did you mean"):
        make().fit((X, Y), epochs=1, eval_data=sets(), callbacks=[looper.callbacks.EarlyStopping()])


def test_what_is_no_set_is_one_line():
    several = r"Several sets of evaluation data are given as looper.data.named\(val=..., ood=...\)"
    one = tf.data.Dataset.from_tensor_slices(VAL).batch(4)
    for data in ({"val": one, "ood": one}, [one, one], {"val": VAL, "ood": OOD}, {"val": VAL, "ood": VAL}):
        with pytest.raises(looper.InputError, match=several):
            make().fit((X, Y), epochs=1, eval_data=data)
        with pytest.raises(looper.InputError, match=several):
            make().evaluate(data)
    with pytest.raises(looper.InputError, match=r"the training data is what named\(\) returned"):
        make().fit(sets(), epochs=1)
    with pytest.raises(looper.InputError, match="given no data"):
        named()
    with pytest.raises(looper.InputError, match="called 'a/b': expected a name without a slash"):
        named(**{"a/b": VAL})
    with pytest.raises(looper.InputError, match="batch_size=8 is for arrays"):
        make().evaluate(one, batch_size=8)


@pytest.mark.parametrize(
    ("ood", "message"),
    [
        (lambda: (X[:5, :2], Y[:5]), "in the set 'ood': the model failed on a batch x of float32"),
        (lambda: (X[:5], Y[:4]), r"in the set 'ood': .*\(\(5, 6\), \(4,\)\)"),
        (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat(), "in the set 'ood': .* never ends"),
        (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).take(0), "in the set 'ood': .* empty"),
        (lambda: (X[:5], 99 + Y[:5]), "(?s)in the set 'ood': .*99"),
    ],
)
@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_an_error_names_the_set(call, ood, message):
    trainer = make()
    given = named(val=VAL, ood=ood())
    with pytest.raises((looper.InputError, looper.errors.StepError), match=message):
        trainer.evaluate(given) if call == "evaluate" else trainer.fit(
            (X, Y), epochs=1, eval_data=given, progress=False
        )


def test_sets_need_names():
    with pytest.raises(looper.InputError, match=r"data without a name: expected sets by name, as in named\(val="):
        named(VAL)
    with pytest.raises(looper.InputError, match=r"looper\.data\.named\(val=\.\.\., ood=\.\.\.\)"):
        make().fit((X, Y), epochs=1, eval_data=[VAL, OOD], progress=False)
    with pytest.raises(looper.InputError, match=r"the model failed .*looper\.data\.named\(val=\.\.\., ood=\.\.\.\)"):
        make().evaluate([VAL, VAL])
