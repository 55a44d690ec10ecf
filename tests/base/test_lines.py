"""An error in a recipe names the recipe's line, in each mode, and shows no line of TensorFlow, Keras or looper."""

import re
import traceback
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper import cli
from looper.base.errors import StepError
from looper.run import fit as fit_module
from tests.support import models
from tests.support.processes import ROOT

L = models.L
X, Y = models.data()
TWO = {"strategy": "mirrored", "devices": 2}
WAYS = [{"execution": "graph"}, {"execution": "eager"}, {"execution": "graph", **TWO}, {"accumulate": 2}]


def line_with(mark, file=__file__):
    lines = Path(file).read_text().splitlines()
    [found] = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    return f"{Path(file).name}:{found}"


class Own(looper.Trainer):
    def build(self):
        self.model = models.dense(norm=False)
        self.optimizer = keras.optimizers.SGD(0.1)
        self.optimizer.build(self.model.trainable_variables)
        self.loss = models.cross_entropy()


class Asserts(Own):
    def compute_loss(self, batch, training):
        tf.debugging.assert_less(tf.reduce_max(batch[0]), -9.0, message="too bright")  # asserts
        return super().compute_loss(batch, training)


class AssertsInAFunction(Own):
    @tf.function
    def looked_at(self, x):
        tf.debugging.assert_less(tf.reduce_max(x), -9.0, message="too bright")  # asserts in a function
        return x

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = super().compute_loss((self.looked_at(batch[0]), batch[1]), True)
        self.minimize(loss, tape)
        return {"loss": loss}


def fit(recipe, data=(X, Y), **options):
    recipe(**options).fit(data, epochs=1, batch_size=10, progress=False)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_operation_that_fails(way):
    with pytest.raises(StepError, match=f"step 1, {line_with('asserts')}: .*too bright") as error:
        fit(Asserts, **way)
    assert "eager" not in str(error.value)


@pytest.mark.parametrize("execution", ["graph", "eager"])
def test_an_operation_that_fails_in_a_function_of_the_recipe(execution):
    with pytest.raises(StepError, match=f"step 1, {line_with('asserts in a function')}: .*too bright"):
        fit(AssertsInAFunction, execution=execution)


@pytest.mark.parametrize("execution", ["graph", "eager"])
def test_an_operation_that_fails_in_evaluation_or_on_a_single_batch(execution):
    trainer = Asserts(execution=execution)
    with pytest.raises(StepError, match=f"evaluation steps? 1.*, {line_with('asserts')}: .*too bright"):
        trainer.evaluate((X, Y))
    with pytest.raises(StepError, match=f"step 1, {line_with('asserts')}: .*too bright"):
        trainer.train_on_batch((X, Y))


@pytest.mark.parametrize("way", WAYS[:3], ids=str)
def test_the_cause_inside_a_layer_is_kept(way):
    def model():
        return keras.Sequential([keras.Input((6,), dtype="int32"), L.Embedding(5, 2), L.Flatten(), L.Dense(3)])

    tokens = np.arange(len(X) * 6).reshape(-1, 6) % 9
    trainer = looper.Trainer(model=model, optimizer="sgd", loss=models.cross_entropy, **way)
    with pytest.raises((StepError, looper.InputError), match=r"is not in \[0, 5\)") as error:
        trainer.fit((tokens, Y), epochs=1, batch_size=10, shuffle=False, progress=False)
    assert "eager" not in str(error.value) and "\n" not in str(error.value)


class Refused(Own):
    def compute_loss(self, batch, training):
        text = tf.strings.as_string(batch[0][0, 0])  # refused by XLA
        return super().compute_loss(batch, training) + 0.0 * tf.strings.to_number(text)


@pytest.mark.parametrize("execution", ["xla_step", "xla_loop"])
def test_what_xla_refuses(execution):
    with pytest.warns(UserWarning, match=rf"the operation AsString \({line_with('refused by XLA')}\)"):
        fit(Refused, execution=execution)


class Shapes(Own):
    def compute_loss(self, batch, training):
        return tf.matmul(batch[0], batch[0])  # other shapes


class Building(Own):
    def build(self):
        raise KeyError("width")  # in build


class Reading(Own):
    def train_data(self):
        raise FileNotFoundError("digits.npz")  # in train_data


class Calling(looper.callbacks.Callback):
    def on_step(self, step, logs):
        return logs["los"]  # in a callback


def with_a_callback():
    Own().fit((X, Y), epochs=1, progress=False, callbacks=[Calling()])


@pytest.mark.parametrize(
    ("run", "kind", "mark"),
    [
        (lambda: fit(Shapes, execution="graph"), ValueError, "other shapes"),
        (lambda: fit(Shapes, execution="xla_step"), ValueError, "other shapes"),
        (lambda: fit(Shapes, execution="xla_loop"), ValueError, "other shapes"),
        (lambda: fit(Shapes, execution="graph", **TWO), ValueError, "other shapes"),
        (Building, KeyError, "in build"),
        (lambda: Reading().fit(epochs=1), FileNotFoundError, "in train_data"),
        (with_a_callback, KeyError, "in a callback"),
    ],
)
def test_a_traceback_shows_the_users_lines_alone(run, kind, mark):
    """And one of looper, which raised it again."""
    with pytest.raises(kind) as error:
        run()
    frames = traceback.extract_tb(error.value.__traceback__)
    assert f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" == line_with(mark)
    libraries = [frame.filename for frame in frames if not frame.filename.startswith(str(ROOT / "tests"))]
    assert {Path(name).name for name in libraries} <= {"arguments.py"}


def test_all_lines_where_keras_filter_is_off():
    keras.config.disable_traceback_filtering()
    try:
        with pytest.raises(ValueError) as error:
            fit(Shapes)
    finally:
        keras.config.enable_traceback_filtering()
    files = [frame.filename for frame in traceback.extract_tb(error.value.__traceback__)]
    assert any("tensorflow" in name for name in files) and any("looper/step" in name for name in files)


def test_all_lines_of_a_fault_of_looper(monkeypatch):
    """Though a library that looper calls is none of it."""

    def faulty(*_):
        return __import__("json").loads("no JSON")

    faulty.__code__ = faulty.__code__.replace(co_filename=fit_module.__file__)  # as if it stood there
    monkeypatch.setattr(fit_module.Fit, "_modes", faulty)
    with pytest.raises(ValueError, match="Expecting value") as error:
        fit(Own)
    files = [frame.filename for frame in traceback.extract_tb(error.value.__traceback__)]
    assert str(Path(looper.__file__).parent / "trainer.py") in files


RECIPE = """
import keras, looper, numpy as np, tensorflow as tf

class Base(looper.Trainer):
    defaults = {"epochs": 1}
    def build(self):
        self.model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        self.optimizer, self.loss = keras.optimizers.SGD(0.1), "mse"
    def train_data(self):
        return np.ones((8, 6), "float32"), np.zeros((8, 1), "float32")

class Fails(Base):
    def compute_loss(self, batch, training):
        tf.debugging.assert_less(tf.reduce_max(batch[0]), 0.5, message="too bright")  # run
        return super().compute_loss(batch, training)

class Mistaken(Base):
    def compute_loss(self, batch, training):
        return tf.matmul(batch[0], tf.ones((5, 1)))  # traced

class Refused(Base):
    def build(self):
        super().build()
        self.every = looper.Every(stepps=3)  # refused
"""


@pytest.mark.parametrize(
    ("name", "options", "code", "mark", "message"),
    [
        ("Fails", ["--execution", "graph"], 1, "run", "TensorFlow failed in step 1, PLACE: .*too bright.*"),
        ("Fails", ["--execution", "eager"], 1, "run", "TensorFlow failed in step 1, PLACE: .*too bright.*"),
        ("Mistaken", [], 1, "traced", "PLACE: ValueError: Dimensions must be equal.*"),
        ("Refused", [], 1, "refused", "PLACE: TypeError: .*stepps.*"),
    ],
)
def test_on_the_command_line(name, options, code, mark, message, tmp_path, capsys):
    """The user's lines, if it is no error of looper's, and one line of what happened."""
    file = tmp_path / "recipe_with_mistakes.py"
    file.write_text(RECIPE)
    assert cli.main(["run", f"{file}:{name}", *options]) == code
    said = capsys.readouterr().err.splitlines()
    place = line_with(mark, file)
    shown = [line for line in said if line.startswith(("  File", "looper: error"))]
    assert re.fullmatch(f"looper: error: {message.replace('PLACE', place)}", shown[-1])
    assert all(str(file) in line for line in shown[:-1]) and len(shown) <= 3


def test_a_recipe_that_is_not_python(tmp_path, capsys):
    file = tmp_path / "not_python.py"
    file.write_text("import looper\nclass :\n")
    assert cli.main(["run", str(file)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("looper: error: not_python.py:2: SyntaxError: ")


class Chained(Own):
    def compute_loss(self, batch, training):
        try:
            raise KeyError("first")
        except KeyError as error:
            raise error from error  # its own cause


class Handled(Own):
    def compute_loss(self, batch, training):
        try:
            return tf.matmul(batch[0], batch[0])
        except ValueError:
            raise RuntimeError("another")  # noqa: B904  # while it handles one of TensorFlow's


def test_causes_that_go_in_a_circle_end():
    with pytest.raises(KeyError, match="first"):
        fit(Chained)


def test_what_was_being_handled_is_shortened_too():
    with pytest.raises(RuntimeError, match="another") as error:
        fit(Handled)
    frames = traceback.extract_tb(error.value.__context__.__traceback__)
    assert [frame.filename for frame in frames] == [__file__]


WRONG_SHAPE = (
    RECIPE
    + """
class WrongShape(Base):
    def compute_loss(self, batch, training):
        return self.model(tf.ones((2, 3)), training=training)  # of keras
"""
)


def test_of_a_long_message_of_keras_the_command_line_says_one_line(tmp_path, capsys):
    file = tmp_path / "wrong_shape.py"
    file.write_text(WRONG_SHAPE)
    assert cli.main(["run", f"{file}:WrongShape"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"looper: error: {line_with('of keras', file)}: ValueError: ")
    assert not any("Arguments received" in line for line in said)
