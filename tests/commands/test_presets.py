"""`--preset NAME`: a recipe's own sets of options; and fields of its `Config` that do not tell one run from another."""

import dataclasses

import keras
import numpy as np
import pytest

import looper
from looper.commands.options import parse

PROGRAM = "looper run mine.py"


class Mine(looper.Trainer):
    """Mine."""

    @dataclasses.dataclass
    class Config:
        width: int = 8
        """Outputs."""
        say: str = dataclasses.field(default="", compare=False)
        """What to say."""

    defaults = {"steps": 10, "batch_size": 4, "clip_norm": 1.0}
    presets = {
        "large": {"width": 64, "steps": 50, "ema": 0.9},
        "epochs": {"epochs": 3},
        "wrong": {"stepps": 1},
        "own": {"widht": 1},
    }

    def build(self):
        self.model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(self.config.width)])
        self.optimizer = keras.optimizers.SGD(0.1)
        self.loss = "mse"


def chosen(*argv):
    config, trainer, fit, _ = parse(Mine, list(argv), PROGRAM)
    return config.width, fit.steps, fit.batch_size, trainer.clip_norm, trainer.ema


def test_a_preset_stands_over_the_defaults_and_under_the_command_line():
    assert chosen() == (8, 10, 4, 1.0, None)
    assert chosen("--preset", "large") == (64, 50, 4, 1.0, 0.9)
    assert chosen("--preset", "epochs") == (8, None, 4, 1.0, None)
    assert chosen("--preset=large", "--steps", "7", "--width", "2") == (2, 7, 4, 1.0, 0.9)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "larg"], "invalid choice: 'larg'.*'large'"),
        (["--preset"], "expected one argument"),
        (["--preset", "own"], r"Mine.presets: no option 'widht'; did you mean 'width'\?"),
        (["--presett", "own"], r"no option '--presett': did you mean '--preset'\?"),
        (["--preset", "wrong"], r"Mine.presets: no option 'stepps'; did you mean 'steps'\?"),
    ],
)
def test_what_is_wrong_with_a_preset_is_one_line(argv, message):
    with pytest.raises(looper.InputError, match=message):
        parse(Mine, argv, PROGRAM)


def test_help_names_the_presets(capsys):
    with pytest.raises(SystemExit):
        parse(Mine, ["--help"], PROGRAM)
    assert "a set of options of the recipe: large, epochs" in capsys.readouterr().out


def test_a_field_that_does_not_count_may_change_where_a_run_goes_on(tmp_path):
    """Another one may not."""
    data = np.ones((8, 1), "float32"), np.ones((8, 8), "float32")

    def fit(steps, **config):
        trainer = Mine(config=Mine.Config(**config), workdir=tmp_path)
        trainer.fit(data, steps=steps, batch_size=4, progress=False)
        return trainer.step

    assert fit(2) == 2
    assert fit(3, say="more") == 3
    with pytest.raises(looper.InputError, match="width"):
        fit(4, width=9)
