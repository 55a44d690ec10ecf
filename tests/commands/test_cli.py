"""The command line, as processes: what a user types."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import looper
from looper import cli
from looper.commands.options import parse, with_values

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

    words = ["--strict", "--epochs", "3", "--progress", "False", "--shuffle"]
    filled = ["--strict", "True", "--epochs", "3", "--progress", "False", "--shuffle", "True"]
    assert with_values(words, None) == filled
    own = ["--wide-layers", "--strings", "--shuffle", "--wide-layers", "False", "--wide_layers"]
    filled = [
        "--wide-layers",
        "True",
        "--strings",
        "--shuffle",
        "True",
        "--wide-layers",
        "False",
        "--wide_layers",
        "True",
    ]
    assert with_values(own, Config) == filled
    assert with_values(["--wide-layers"], None) == ["--wide-layers"]


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
    done = run("run", str(recipe), "--strategy", "mirrored", "--devices", "2")
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
        (["run", DIGITS, "--devices", "two"], "looper run: argument --devices: invalid int value: 'two'."),
        (["audit", DIGITS, "--strategy=mirored"], "strategy='mirored': did you mean 'mirrored'?"),
        (["run", "nowhere.py"], "no recipe 'nowhere.py': there is no such file."),
        (["board", "nowhere"], "there are no TensorBoard events in nowhere"),
        (["board"], "looper board: the following arguments are required: workdir."),
        (["board", "runs", "--prt", "6007"], "looper board has no option '--prt': did you mean '--port'?"),
        (["--verison"], "no option '--verison': did you mean '--version'?"),
        (["doctor", "two"], "looper doctor: 'two' is one word too many."),
        (["doctor", "--worker", "2"], "looper doctor has no option '--worker': did you mean '--workers'?"),
        (["doctor", "--devices", "two"], "looper doctor: argument --devices: invalid int value: 'two'."),
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
        (["--epochs", "ten"], "Error parsing --epochs: no type matching {None}|INT could be instantiated from ['ten']"),
        (["--precision", "bf16"], "invalid choice 'bf16' for argument '--precision'. Expected one of ('float32', "),
        (["--save-every", "often"], "Error parsing --save-every: 'often' is not a period: write a number and a unit, "),
    ]:
        with pytest.raises(looper.InputError) as error:
            parse(None, words, "looper run recipe.py")
        assert str(error.value).startswith(message) and str(error.value).endswith("; see looper run recipe.py --help.")
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
