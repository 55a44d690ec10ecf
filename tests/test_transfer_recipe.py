"""recipes/transfer.py: each choice does what it says, on the digits and on a folder of images."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import looper
from benchmarks import transfer as comparison
from looper import cli
from recipes import transfer
from tests.support import inside

ROOT = Path(__file__).parent.parent
PRETRAINED = transfer.pretrained
SHORT = {"epochs": 3, "batch_size": 10, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def quick_base():
    """Random weights stand in for the pretrained ones: what becomes of them is the same."""
    with pytest.MonkeyPatch.context() as patch:
        random = [np.random.default_rng(i).random(w.shape) for i, w in enumerate(transfer.small((8, 8, 1)).weights)]
        patch.setattr(transfer, "pretrained", lambda strategy, seed: random)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (folder / name).mkdir()
        for i in range(5):
            pixels = random.integers(0, 255, (10 + i, 12, 3)).astype("uint8")
            (folder / name / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return folder


EXPECTED = {  # whether the base's weights and its batch statistics move
    "frozen": (False, False),
    "naive": (False, True),
    "fine_tuned": (True, False),
    "fine_tuned_moving": (True, True),
    "scratch": (True, True),
}


def test_every_trainer_of_a_seed_begins_alike(monkeypatch):
    """Whether or not it was the one to pretrain the base."""
    monkeypatch.setattr(transfer, "pretrained", PRETRAINED)
    first, second = transfer.Transfer(seed=3), transfer.Transfer(seed=3)
    for a, b in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("choice", EXPECTED)
def test_each_choice_moves_what_it_says(choice):
    trainer = transfer.Transfer(config=transfer.Transfer.Config(choice=choice, fine_tune_from=1))
    before, first = comparison.parts(trainer), trainer.model.layers[0].layers[0].get_weights()
    history = trainer.fit(**SHORT)
    after = comparison.parts(trainer)
    assert tuple((before[name] != after[name]).any() for name in ("weights", "statistics")) == EXPECTED[choice]
    assert (trainer.model.layers[0].layers[0].get_weights()[0] != first[0]).any() == (choice == "scratch")
    x = trainer.train_data()[0]
    quiet = np.array_equal(trainer.model.layers[0](x, training=True), trainer.model.layers[0](x, training=False))
    assert quiet == (choice == "frozen")
    assert history["eval/examples"][-1] == 846
    rates = {round(factor, 6) for factor, _ in inside.trained(trainer)["optimizers"]["optimizer"].values()}
    assert rates == ({0.1} if choice.startswith("fine_tuned") else set())


def test_a_folder_of_images_and_a_base_of_keras_applications(images, tmp_path):
    config = transfer.Transfer.Config(
        images=images, base="MobileNetV2", weights="none", image_size=32, fine_tune_from=1, unfreeze_last=4
    )
    trainer = transfer.Transfer(config=config)
    before = comparison.parts(trainer)
    history = trainer.fit(**SHORT | {"epochs": 2, "batch_size": 4})
    after = comparison.parts(trainer)
    assert (before["weights"] != after["weights"]).any()
    assert (before["statistics"] == after["statistics"]).all()
    assert history["eval/examples"] == [3, 3]
    assert trainer.predict(images_of(trainer)).shape == (3, 3)
    trainer._base.save_weights(tmp_path / "base.weights.h5")
    config.weights, config.choice = str(tmp_path / "base.weights.h5"), "frozen"
    again = comparison.parts(transfer.Transfer(config=config))
    np.testing.assert_array_equal(again["weights"], after["weights"])


def images_of(trainer):
    data = trainer.eval_data()
    return np.stack([data[i][0] for i in range(len(data))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "ResNet51", "weights": "none", "images": "here"}, "ResNet51: expected small, or"),
        ({"base": "ResNet50"}, "ResNet50: expected small, or with --images"),
        ({"images": "here"}, "--weights own is for the digits"),
        ({"images": "elsewhere", "weights": "none"}, "expected a folder with a sub-folder of images for each class"),
    ],
)
def test_wrong_options_are_one_clear_line(images, options, message):
    if "images" in options:
        options = options | {"images": images if options["images"] == "here" else images / "ant"}
    with pytest.raises(looper.InputError, match=message):
        transfer.Transfer(config=transfer.Transfer.Config(**options)).fit(**SHORT)


def test_the_recipe_runs_from_the_command_line_and_goes_on(tmp_path):
    """The real base: pretrained on the digits 0 to 4. Another process, a script, continues in the fine-tuning."""
    words = [str(ROOT / "recipes" / "transfer.py"), "--workdir", str(tmp_path), "--fine-tune-from", "4"]
    assert cli.main(["run", *words, "--epochs", "6"]) == 0
    done = subprocess.run([sys.executable, *words, "--epochs", "20"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 100
    assert rows[-1]["eval/accuracy"] > 0.7


def test_a_recipe_brings_its_own_callbacks():
    class Recipe(transfer.Transfer):
        def callbacks(self):
            return [looper.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: called.append("own"))]

    called = []
    given = looper.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: called.append("given"))
    Recipe().fit(**SHORT | {"epochs": 1}, callbacks=given)
    assert called == ["own", "given"]


def test_the_comparison_shows_means_and_ranges(tmp_path):
    results = {"frozen": [{"accuracy": 0.5}, {"accuracy": 0.75}], "scratch": [{"accuracy": 0.25}, {"accuracy": 0.25}]}
    assert comparison.table(results).splitlines() == [
        "choice   accuracy              ",
        "frozen   0.625 (0.500 to 0.750)",
        "scratch  0.250 (0.250 to 0.250)",
    ]
    measured = comparison.train("fine_tuned", 0, tmp_path, epochs=1)
    assert measured["statistics moved by"] == measured["weights moved by"] == 0.0
    assert list((tmp_path / "fine_tuned" / "seed_0").glob("**/events.out.tfevents.*"))
