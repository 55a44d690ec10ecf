"""The recipes reach what they say, in short; and one that is killed goes on with the same bits."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import recipes as comparison
from looper.base.schedule import Every
from looper.commands.options import parse
from looper.saved import checkpoint
from recipes import diffusion, distill, gan, language_model, rl
from tests.support import inside
from tests.support.processes import ROOT

README = (ROOT / "recipes" / "README.md").read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A part of the text, on which a model learns in seconds."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(language_model.read(None)[:60_000])
    return file


def train(kind, workdir=None, steps=None, execution="auto", options=(), **own):
    """Trains with the recipe's defaults. Returns the trainer."""
    _, trainer_options, fit_options, _ = parse(kind, list(options), f"looper run {kind.__name__}")
    changed = {"workdir": workdir, "execution": execution}
    trainer = kind(config=kind.Config(**own), **vars(dataclasses.replace(trainer_options, **changed)))
    given = vars(fit_options) | ({} if steps is None else {"steps": steps, "epochs": None})
    if workdir is not None:
        given["save_every"] = Every(steps=-(-steps // 3))
    trainer.fit(**given | {"progress": False})
    return trainer


def test_the_language_model_is_better_than_a_table_of_letters(text, capsys, tmp_path):
    small = {"layers": 1, "heads": 2, "width": 32, "context": 16, "warmup": 10}
    trainer = train(language_model.LanguageModel, workdir=tmp_path, steps=150, text=text, generate="def ", **small)
    letters = trainer._text.numpy()
    counts = np.bincount(letters[: trainer.train_length], minlength=len(trainer.letters)) + 1
    table = -np.log(counts / counts.sum())[letters[trainer.train_length :]].mean()
    assert trainer.history["eval/loss"][-1] < 0.9 * table
    written, told = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert written.startswith("def ")
    assert len(written) == len("def ") + 300
    assert f"loss {trainer.history['eval/loss'][-1]:.3f} on the last tenth" in told
    assert trainer.go_on_from("def ") == written


def test_decay_is_for_matrices_alone(text):
    """Where gradients are zero, an update is the decay."""
    config = language_model.LanguageModel.Config(layers=1, width=16, context=8, warmup=0, text=text)
    trainer = language_model.LanguageModel(config=config)
    variables = trainer.model.trainable_variables
    before = [v.numpy() for v in variables]
    trainer.optimizer.apply([0.0 * v for v in variables], variables)
    moved = {v.path: bool((v.numpy() != b).any()) for v, b in zip(variables, before, strict=True)}
    assert moved == {v.path: len(v.shape) == 2 for v in variables}
    assert set(moved.values()) == {True, False}


def test_the_table_of_pairs_is_that_of_its_definition():
    numbers = np.array([0, 1, 0, 1, 0, 2, 0, 1])
    # of 5 letters to learn from, 0 is followed by 1 twice, 1 by 0 twice; each count has one more: 3 of 5, 3 of 5
    chances = {(0, 2): 1 / 5, (2, 0): 1 / 3, (0, 1): 3 / 5}
    expected = -np.mean([np.log(chances[pair]) for pair in [(2, 0), (0, 1)]])
    assert language_model.loss_of_pairs(numbers, 5) == pytest.approx(expected)


def test_the_gan_draws_digits(capsys, tmp_path):
    trainer = train(gan.Gan, workdir=tmp_path, steps=400, watch_every=40)
    distances = trainer.history["distance"]
    assert len(distances) == 10
    assert distances[-1] < distances[0] / 2
    assert f"distance {distances[-1]:.2f}; after 40 steps {distances[0]:.2f}" in capsys.readouterr().out


def test_frechets_distance_is_that_of_two_normal_distributions():
    frechet = gan.Frechet()
    frechet.features = lambda x: x
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, (200_000, 2)), random.normal([3, 0], [2, 1], (200_000, 2))
    # the means are 3 apart, one deviation 2 - 1: 9 + 1; 200,000 draws of which each has an error of some units
    assert frechet.of(a, b) == pytest.approx(10, abs=0.1)
    assert frechet.of(a, a) == pytest.approx(0, abs=1e-6)


def test_a_penalty_on_the_slope_is_that_by_hand():
    trainer = gan.Gan(config=gan.Gan.Config(gradient_penalty=1.0), execution="eager")
    image, small = tf.constant(gan.digits()[0][:1]), 1e-2
    judged = trainer.discriminator
    moved = np.repeat(image.numpy(), 64, 0).reshape(64, 64) + small * np.eye(64, dtype="float32")
    slopes = (judged(moved.reshape(64, 8, 8, 1)) - judged(image)) / small
    # float32's differences over a hundredth
    assert float(trainer.slope(image)[0, 0]) == pytest.approx(np.square(slopes).sum() / 2, rel=2e-2)


def test_the_diffusion_model_draws_digits(tmp_path):
    small = {"watch_every": 200, "width": 8, "noise_steps": 20}
    trainer = train(diffusion.Diffusion, tmp_path, steps=200, options=("--ema", "0.9"), **small)
    noise = np.random.default_rng(0).normal(size=(256, 8, 8, 1))
    assert trainer.history["distance"][-1] < 0.3 * diffusion.energy_distance(noise, diffusion.digits())


def test_a_perfect_denoiser_gives_the_digit_back():
    """With the noise known at each step, what is drawn is the digit itself."""
    trainer = diffusion.Diffusion(config=diffusion.Diffusion.Config(width=8, noise_steps=20), execution="eager")
    digits = diffusion.digits()[:4]

    def knows(inputs, training):
        x, step = inputs
        left = trainer.left[int(step[0])]
        return (x - np.sqrt(left) * digits) / np.sqrt(1 - left)

    trainer.model = knows
    drawn = trainer.predict_step(np.random.default_rng(0).normal(size=digits.shape).astype("float32"))
    np.testing.assert_allclose(drawn, digits, atol=1e-4)  # float32 over 20 steps


def test_the_student_learns_from_the_teacher(capsys):
    trainer = train(distill.Distill)
    assert trainer.history["eval/accuracy"][-1] > 0.85
    assert "(teacher 0.9" in capsys.readouterr().out


def test_the_pole_is_balanced_ever_longer():
    trainer = train(rl.Balance, steps=3_750)  # 15,000 steps of the pole
    assert trainer.history["length"][-1] > 100
    assert trainer.history["length"][0] < 40


SHORT = {
    "gan": (gan.Gan, {"watch_every": 36}),
    "rl": (rl.Balance, {"memory": 100, "learn_from": 8, "explore": 20}),
    "language_model": (language_model.LanguageModel, {"layers": 1, "width": 16, "context": 8, "dropout": 0.1}),
}


@pytest.mark.parametrize("name", SHORT)
def test_one_that_is_killed_goes_on_with_the_same_bits(name, tmp_path, text):
    """What was saved after a third of the run is all that is left of the first one."""
    kind, own = SHORT[name]
    own = own | ({"text": text} if name == "language_model" else {})
    ends = []
    for _ in range(2):
        ends.append(inside.values(train(kind, workdir=tmp_path, steps=36, execution="graph", **own)))
        for path in (tmp_path / "checkpoints").iterdir():
            if checkpoint.step_of(path) > 12:
                shutil.rmtree(path)
    whole, continued = ends
    assert whole.keys() == continued.keys()
    for part, value in whole.items():
        np.testing.assert_array_equal(continued[part], value, err_msg=part)


def test_the_preset_is_nanogpts_configuration_for_a_cpu():
    """That of its README: "python train.py config/train_shakespeare_char.py --device=cpu ..."."""
    config, trainer, fit, _ = parse(language_model.LanguageModel, ["--preset", "nanogpt-cpu"], "looper run x.py")
    assert (config.layers, config.heads, config.width, config.context, config.dropout) == (4, 4, 128, 64, 0.0)
    assert (fit.batch_size, fit.steps, trainer.clip_norm, config.learning_rate) == (12, 2000, 1.0, 1e-3)


def test_the_table_is_that_of_the_committed_results():
    results = json.loads(comparison.RESULTS.read_text())["recipes"]
    assert comparison.table(results) in README


def test_no_recipe_uses_what_is_private():
    for file in (ROOT / "recipes").glob("*.py"):
        assert re.search(r"from looper|import looper\.|looper[.\w]*\._", file.read_text()) is None, file.name
