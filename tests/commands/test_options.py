"""Options as people type them: kinds of values, dataclasses in dataclasses, files of options, help."""

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import looper
from looper import cli
from looper.commands.options import as_json, parse
from looper.commands.values import as_text, kind_of

PROGRAM = "looper run mine.py"


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Encoder:
    width: int = 32
    """Outputs of each layer."""
    sizes: tuple[int, ...] = (8, 9)


@dataclasses.dataclass
class Decoder:
    width: int = 64
    inner: Encoder = dataclasses.field(default_factory=lambda: Encoder(width=5))


class Mine(looper.Trainer):
    """Mine."""

    @dataclasses.dataclass
    class Config:
        encoder: Encoder = dataclasses.field(default_factory=Encoder)
        decoder: Decoder = dataclasses.field(default_factory=Decoder)
        color: Color = Color.RED
        made: Any = dataclasses.field(default=None, init=False)

    defaults = {"steps": 10, "batch_size": 4}
    presets = {"wide": {"encoder.width": 99}}


def config(*words):
    return parse(Mine, list(words), PROGRAM)[0]


@pytest.mark.parametrize(
    ("hint", "typed", "value"),
    [
        (int, "1e5", 100_000),
        (int, "10_000", 10_000),
        (float, "3", 3.0),
        (bool, "Yes", True),
        (bool, "0", False),
        (str, "none", "none"),
        (str | None, "none", None),
        (int | str, "8", 8),
        (str | int, "8", 8),
        (int | str, "eight", "eight"),
        (Path | None, "a/b", Path("a/b")),
        (Literal["auto"] | int, "auto", "auto"),
        (Literal["auto", "weights"] | bool, "false", False),
        (Literal[1, 2], "2", 2),
        (Color, "BLUE", Color.BLUE),
        (list[int], "8,9", [8, 9]),
        (tuple[int, ...], "", ()),
        (tuple[int, str], "8,a", (8, "a")),
        (tuple, "a, b", ("a", "b")),
        (Sequence[float], "1,2.5", (1.0, 2.5)),
        (set[int], "2,1", {1, 2}),
        (list[Path] | None, "none", None),
        (list[Path] | None, "a,b", [Path("a"), Path("b")]),
        (dict[int, float], "0=1,1=5", {0: 1.0, 1: 5.0}),
        (Mapping[str, int], "a:1", {"a": 1}),
        (dict[str, str], "a=http://x,b:c=d", {"a": "http://x", "b": "c=d"}),
        (looper.Every, "10", looper.Every(steps=10)),
        (looper.Every, "1 epoch", looper.Every(epochs=1)),
        (looper.Every, "30s", looper.Every(seconds=30.0)),
        (looper.Every, "90 sec", looper.Every(seconds=90.0)),
        (looper.Every | None, "5m", looper.Every(minutes=5.0)),
        (looper.Every | None, "2 hours", looper.Every(minutes=120.0)),
        (looper.Every | None, "none", None),
    ],
)
def test_a_value_is_read_as_it_is_typed(hint, typed, value):
    kind = kind_of(hint)
    found = kind.read(typed)
    assert found == value and type(found) is type(value)
    assert kind.read(as_text(value)) == value  # what is written is read as the same


@pytest.mark.parametrize(
    ("hint", "typed"),
    [
        (int, "1.5"),
        (int, "inf"),
        (int | None, ""),
        (float, "a"),
        (bool, "2"),
        (Literal["a"], "b"),
        (Color, "red"),
        (tuple[int, int], "8"),
        (list[int], "8,a"),
        (dict[int, float], "0"),
        (looper.Every, "5 parsecs"),
        (looper.Every, "m"),
        (looper.Every, "1.5 steps"),
    ],
)
def test_a_wrong_value_is_none(hint, typed):
    with pytest.raises((ValueError, OverflowError)):
        kind_of(hint).read(typed)


def test_of_what_cannot_be_typed_there_is_no_option():
    for hint in (np.ndarray, int | np.ndarray, list[list[int]], dict[str, tuple]):
        assert kind_of(hint) is None


def test_dataclasses_in_dataclasses_have_dotted_names():
    assert config() == Mine.Config()
    found = config("--encoder.width", "8", "--decoder.inner.sizes", "1", "2", "--color", "BLUE")
    assert (found.encoder.width, found.encoder.sizes, found.color) == (8, (8, 9), Color.BLUE)
    assert (found.decoder.width, found.decoder.inner) == (64, Encoder(5, (1, 2)))
    assert config("--preset", "wide").encoder.width == 99
    with pytest.raises(looper.InputError, match=r"no option '--encodr.width': did you mean '--encoder.width'\?"):
        config("--encodr.width", "8")


def test_a_field_without_a_default_is_asked_for():
    @dataclasses.dataclass
    class Config:
        width: int
        """Outputs."""
        depth: int = 2

    needs = type("Needs", (looper.Trainer,), {"Config": Config})
    with pytest.raises(looper.InputError, match=r"^looper run mine.py needs --width N: Outputs\.$"):
        parse(needs, ["--depth", "3"], PROGRAM)
    assert parse(needs, ["--width", "3"], PROGRAM)[0] == Config(3)


def test_a_dataclass_without_a_default_is_made_of_its_own():
    @dataclasses.dataclass
    class Config:
        encoder: Encoder
        width: int = 1

    needs = type("Needs", (looper.Trainer,), {"Config": Config, "presets": {"wide": {"encoder": Encoder(512)}}})
    assert parse(needs, [], PROGRAM)[0] == Config(Encoder())
    assert parse(needs, ["--encoder.width", "3"], PROGRAM)[0] == Config(Encoder(3))
    assert parse(needs, ["--preset", "wide", "--encoder.sizes", "1"], PROGRAM)[0] == Config(Encoder(512, (1,)))
    untyped = type("Untyped", (looper.Trainer,), {"Config": dataclasses.make_dataclass("C", [("made", np.ndarray)])})
    with pytest.raises(looper.InputError, match="made needs a default: a value of its type cannot be typed"):
        parse(untyped, [], PROGRAM)


def test_numbers_below_zero():
    config = dataclasses.make_dataclass("C", [("shift", float, 0.0), ("range", tuple[float, float], (0.0, 0.0))])
    shifted = type("Shifted", (looper.Trainer,), {"Config": config})
    found = parse(shifted, ["--shift", "-1e-3", "--range", "-1,2"], PROGRAM)[0]
    assert (found.shift, found.range) == (-1e-3, (-1.0, 2.0))


def test_options_come_from_a_file(tmp_path):
    """Over presets, under what is typed; of JSON or YAML, flat or nested."""
    content = {"encoder": {"width": 7, "sizes": [1]}, "decoder.width": 6, "epochs": 3, "save_every": None, "ema": 0.5}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a.yaml").write_text(
        "encoder: {width: 7, sizes: [1]}\ndecoder.width: 6\nepochs: 3\nsave-every:\nema: 0.5"
    )
    for name in ("a.json", "a.yaml"):
        words = ["--preset", "wide", "--config", str(tmp_path / name), "--decoder.width", "4"]
        own, trainer, fit, _ = parse(Mine, words, PROGRAM)
        assert (own.encoder, own.decoder.width) == (Encoder(7, (1,)), 4)
        assert (fit.epochs, fit.steps, fit.batch_size, fit.save_every, trainer.ema) == (3, None, 4, None, 0.5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"epoch": 3}', r"a.json: no option 'epoch'; did you mean 'epochs'\?"),
        ("a.json", '{"epochs": "three"}', r"a.json: epochs: expected a whole number or none, not 'three'\."),
        ("a.json", "{", "a.json: Expecting property name"),
        ("a.yaml", "[1", "a.yaml is no YAML: while parsing a flow sequence"),
        ("a.yaml", "3", "a.yaml: expected names of options with their values"),
        ("b.json", "{}", "No such file or directory"),
    ],
)
def test_a_wrong_file_is_one_line(name, text, message, tmp_path):
    (tmp_path / ("a.yaml" if name == "a.yaml" else "a.json")).write_text(text)
    with pytest.raises(looper.InputError, match=message) as error:
        config("--config", str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_what_a_run_was_started_with_starts_another(tmp_path):
    words = ["--epochs", "2", "--encoder.sizes", "4,5", "--color", "BLUE", "--clip-norm", "0.5", "--save-every", "30s"]
    made = parse(Mine, [*words, "--class-weight", "0=1,1=5", "--workdir", "runs/x"], PROGRAM)
    noted = as_json(*made[:3])
    assert "resume" not in noted  # or the file would begin the run anew
    (tmp_path / "options.json").write_text(json.dumps(noted))
    assert parse(Mine, ["--config", str(tmp_path / "options.json")], PROGRAM)[:3] == made[:3]


TWO = """
import looper, keras, numpy as np
class Base(looper.Trainer):
    defaults = {"steps": 2, "batch_size": 4, "workdir": "run"}
    def build(self):
        self.model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        self.optimizer, self.loss = keras.optimizers.SGD(0.1), "mse"
    def train_data(self):
        return np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
class Last(Base):
    pass
"""


def test_the_recipe_that_no_other_derives_from_is_run_and_notes_its_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("two.py").write_text(TWO)
    assert cli.main(["run", "two.py", "--steps", "3", "--devices", "none"]) == 0
    assert json.loads(Path("run/config.json").read_text())["recipe"] == "Last"
    noted = json.loads(Path("run/options.json").read_text())
    assert (noted["steps"], noted["batch_size"], noted["workdir"], noted["save_every"]) == (3, 4, "run", "5 minutes")
    assert cli.main(["run", "two.py", "--config", "run/options.json", "--workdir", "again"]) == 0
    assert json.loads(Path("again/options.json").read_text()) == noted | {"workdir": "again"}
    Path("two.py").write_text(TWO + "class Other(Base):\n    pass\n")
    assert cli.main(["run", "two.py"]) == 2
    assert "has 2 subclasses of looper.Trainer that no other derives from (Last, Other)" in capsys.readouterr().err


class Word(enum.StrEnum):
    FAST = "fast"


def test_what_a_file_cannot_say_is_left_out():
    kind = dataclasses.make_dataclass("C", [("a", str | None, "none"), ("b", list[str], None), ("w", Word, Word.FAST)])
    assert as_json(kind(b=["x,y"]), None) == {"w": "FAST"}


def test_the_line_of_a_recipe_that_gives_a_wrong_period_is_named(tmp_path, capsys):
    (tmp_path / "two.py").write_text(TWO + "    def callbacks(self):\n        return [looper.Every(steps=0)]\n")
    line = len(TWO.splitlines()) + 2
    assert cli.main(["run", str(tmp_path / "two.py"), "--workdir", str(tmp_path / "run")]) == 2
    assert (
        f"looper: error: two.py:{line}: Every: steps=0: expected a positive" in capsys.readouterr().err.splitlines()[-1]
    )


def test_help_is_two_screens(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(Mine, ["--help"], PROGRAM)
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert len(lines) <= 100  # two of fifty lines
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in said
    assert said.index("options of the recipe") < said.index("options of the Trainer") < said.index("options of fit")
    assert "  --encoder.width N" in said and "Outputs of each layer (32)" in said
    assert "data (default 32) (4)" in " ".join(said.split())
