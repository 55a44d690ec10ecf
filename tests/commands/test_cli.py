"""The command line, as processes: what a user types."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import looper
from looper import cli
from looper.commands.options import parse

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "recipes" / "digits.py")


def run(*words, cwd=ROOT):
    command = [sys.executable, "-m", "looper.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_a_switch_needs_no_value():
    @dataclasses.dataclass
    class Config:
        wide_layers: bool = False
        strings: str = ""

    class Recipe(looper.Trainer):
        pass

    Recipe.Config = Config
    words = ["--strict", "--epochs", "3", "--progress", "False", "--wide_layers"]
    config, trainer, fit, _ = parse(Recipe, words, "looper run recipe.py")
    assert (config.wide_layers, trainer.strict, fit.epochs, fit.progress) == (True, True, 3, False)
    config, _, fit, _ = parse(Recipe, ["--shuffle", "no", "--wide-layers", "False"], "looper run recipe.py")
    assert (config.wide_layers, fit.shuffle) == (False, False)


def test_help_does_not_import_tensorflow():
    code = "import sys, looper, looper.cli; looper.cli.main(['--help']); sys.exit('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "looper run RECIPE" in done.stdout
    assert "numpy" not in done.stdout


def test_the_recipe_of_the_readme_trains_and_is_continued(tmp_path, capsys):
    """digits.py: at least 98% of the held-out digits. Another process continues the run."""
    workdir = str(tmp_path / "digits")
    assert cli.main(["run", DIGITS, "--epochs", "2", "--workdir", workdir]) == 0
    assert "epoch 2/2  step 90/90" in capsys.readouterr().err
    second = run("run", DIGITS, "--epochs", "20", "--workdir", workdir)
    assert second.returncode == 0, second.stderr
    assert "continuing after step 90" in second.stderr
    rows = [json.loads(line) for line in (tmp_path / "digits" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 900
    assert rows[-1]["eval/examples"] == 360
    assert rows[-1]["eval/accuracy"] >= 0.98
    assert cli.main(["run", DIGITS, "--epochs", "20", "--workdir", workdir, "--learning-rate", "0.1"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("looper: error: the workdir")
    assert "config.learning_rate was 0.002, is now 0.1" in line


@pytest.mark.parametrize(("words", "synchronized"), [((), False), (("--synchronized-bn",), True)])
def test_synchronized_batch_normalization_of_the_digits(words, synchronized, monkeypatch):
    made = []
    monkeypatch.setattr(looper.Trainer, "fit", lambda self, **options: made.append(self.model))
    cli.main(["run", DIGITS, *words])
    norms = [layer for layer in made[0].layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert [norm.synchronized for norm in norms] == [synchronized] * 3


@pytest.mark.parametrize("level", [None, "0"])
def test_the_first_line_comes_before_tensorflow_and_its_noise_does_not(level, tmp_path):
    """TensorFlow 2.21 writes about its operations and drivers before any level is set. Shown on request."""
    (tmp_path / "recipe.py").write_text("class Nothing: pass\n")
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level}
    command = [sys.executable, "-m", "looper.cli", "run", "recipe.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    first, *between, last = done.stderr.splitlines()
    assert first == "looper: importing TensorFlow ..."
    assert any("oneDNN" in line for line in between) == (level == "0") == bool(between)
    assert "has 0 subclasses of looper.Trainer" in last


def test_devices_are_set_before_the_recipe_is_imported(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import keras, looper, numpy as np, tensorflow as tf\n"
        "tf.constant(1)  # starts TensorFlow: too late to split the CPU\n"
        "class Recipe(looper.Trainer):\n"
        "    defaults = {'steps': 2, 'batch_size': 4}\n"
        "    def build(self):\n"
        "        self.model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "        self.optimizer, self.loss = keras.optimizers.SGD(0.1), 'mse'\n"
        "        print('replicas', self.strategy.num_replicas_in_sync)\n"
        "    def train_data(self):\n"
        "        return np.ones((8, 2), 'float32'), np.ones((8, 1), 'float32')\n"
    )
    (tmp_path / "two.yaml").write_text("devices: 2\nstrategy: one_device\n")  # what is typed counts more
    done = run("run", str(recipe), "--config", str(tmp_path / "two.yaml"), "--strategy", "mirrored")
    assert done.returncode == 0, done.stderr
    assert "replicas 2" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "no command 'rum': did you mean 'run'?"),
        (["recipes/digits.py"], "did you mean 'looper run recipes/digits.py'?"),
        (["run"], "run needs a recipe first: looper run RECIPE [options]."),
        (["run", "recipes/digit.py"], "there is no such file; did you mean 'recipes/digits.py'?"),
        (["run", "recipes"], "no recipe 'recipes': it is a folder; give a Python file, such as recipes/NAME.py."),
        (["run", DIGITS, "--devices", "two"], "looper run: --devices: invalid int value: 'two'."),
        (["audit", DIGITS, "--strategy=mirored"], "strategy='mirored': did you mean 'mirrored'?"),
        (["run", "nowhere.py"], "no recipe 'nowhere.py': there is no such file."),
        (["board", "nowhere"], "there are no TensorBoard events in nowhere"),
        (["board"], "looper board: the following arguments are required: workdir."),
        (["board", "runs", "--prt", "6007"], "looper board has no option '--prt': did you mean '--port'?"),
        (["--verison"], "no option '--verison': did you mean '--version'?"),
        (["doctor", "two"], "looper doctor: 'two' is one word too many."),
        (["doctor", "--worker", "2"], "looper doctor has no option '--worker': did you mean '--workers'?"),
        (["doctor", "--devices", "two"], "looper doctor: --devices: invalid int value: 'two'."),
    ],
)
def test_what_a_user_types_wrong_first(words, message, capsys):
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_wrong_options_of_a_recipe(capsys):
    assert cli.main(["run", DIGITS, "--epoch", "3"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("looper: error: looper run ")
    assert "has no option '--epoch': did you mean '--epochs'?" in line
    assert cli.main(["run", f"{DIGITS}:Digit"]) == 2
    assert "did you mean 'Digits'" in capsys.readouterr().err


def test_a_wrong_value_is_one_line(capsys):
    for words, message in [
        (["--epochs", "ten"], "--epochs: expected a whole number or none, not 'ten'."),
        (["--epochs"], "--epochs: expected one argument."),
        (["--progress", "perhaps"], "--progress: expected true or false, not 'perhaps'."),
        (["--precision", "bf16"], "--precision: expected one of float32, float64, mixed_bfloat16, mixed_float16, not "),
        (["--save-every", "often"], "--save-every: 'often' is not a period: write a number and a unit, such as '100 "),
        (["--log-every", "0"], "--log-every: Every: steps=0: expected a positive whole number."),
    ]:
        with pytest.raises(looper.InputError) as error:
            parse(None, words, "looper run recipe.py")
        assert str(error.value).startswith(f"looper run recipe.py: {message}"), error.value
        assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


def test_options_are_the_trainers_and_fits():
    """The dataclasses of the command line and the signatures have the same names and defaults."""
    import dataclasses
    import inspect

    from looper.base.options import FitOptions, TrainerOptions

    for options, function in ((TrainerOptions, looper.Trainer.__init__), (FitOptions, looper.Trainer.fit)):
        parameters = inspect.signature(function).parameters
        for field in dataclasses.fields(options):
            assert parameters[field.name].default == field.default, field.name
