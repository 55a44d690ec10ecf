"""Augmentation depends on the seed, the pass and the example alone: not on batches, nor on where a run was stopped."""

import functools
import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data import make_source
from looper.data.augment import augmented, brightness, crop, cutout, flip, mixup, noise, rotate
from tests.support import models
from tests.support.stopping import SaveAt, assert_same, everything

L = models.L
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(37, 6, 6, 2)).astype("float32")
LABELS = np.eye(4, dtype="float32")[RANDOM.integers(0, 4, 37)]
ALL = [flip(vertical=True), crop(2), rotate(), rotate(25.0), noise(0.1), brightness(0.2), cutout(3), mixup(0.3)]
SOME = [flip(), crop(2), noise(0.1), mixup(0.3)]  # one after the other; each of ALL is tried alone


class Examples:
    """The same examples, one by one."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, i):
        return IMAGES[i], LABELS[i]


def examples_of(data, batch_size, number, batch=0, shuffle=True):
    source = make_source(data, batch_size=batch_size, shuffle=shuffle, seed=5, training=True)
    batches = itertools.islice(source.open(number, batch), source.length - batch)
    return [np.concatenate(parts) for parts in zip(*(tf.nest.map_structure(np.array, b) for b in batches), strict=True)]


def differ(a, b):
    """The share of the images that differ."""
    return np.mean([(one != other).any() for one, other in zip(a, b, strict=True)])


# operations are the same functions for all forms of data: what is read example by example gets several at once
@pytest.mark.parametrize(
    ("operations", "data"),
    [*(([operation], "arrays") for operation in ALL), (SOME, "examples")],
    ids=[*(operation.name for operation in ALL), "several, of examples"],
)
def test_the_same_examples_for_any_batch_size_and_position(operations, data):
    given = (IMAGES, LABELS) if data == "arrays" else Examples()
    x, y = examples_of(augmented((IMAGES, LABELS), operations, seed=3), 37, 1)
    for batch_size, batch in ((1, 30), (16, 1)) if data == "arrays" else ((1, 30), (16, 0)):
        x_too, y_too = examples_of(augmented(given, operations, seed=3), batch_size, 1, batch)
        np.testing.assert_array_equal(x_too, x[batch * batch_size :])
        np.testing.assert_array_equal(y_too, y[batch * batch_size :])
    plain, _ = examples_of((IMAGES, LABELS), 37, 1)
    assert differ(plain, x) > 0.4  # a flip leaves every second image as it is
    source = make_source(augmented(given, operations, seed=3), batch_size=37, shuffle=False, seed=5, training=True)
    (this_pass, _), (other_pass, _) = (next(iter(source.open(number, 0))) for number in (1, 2))
    assert differ(np.array(this_pass), np.array(other_pass)) > 0.4


def test_another_seed_changes_other_things():
    one, other = (examples_of(augmented((IMAGES, LABELS), [flip(), crop(2)], seed=seed), 37, 1)[0] for seed in (3, 4))
    assert differ(one, other) > 0.4


def test_each_example_has_draws_of_its_own():
    same = np.repeat(IMAGES[:1], 37, 0)
    x, _ = examples_of(augmented((same, LABELS), [crop(2), noise(0.1)], seed=0), 37, 0)
    assert len({image.tobytes() for image in x}) == 37


def drawn(operation, images, count=2000):
    seeds = tf.stack([tf.zeros([count], tf.int64), tf.range(count, dtype=tf.int64)], 1)
    # in a graph, as in tf.data: example by example, eager operations take several times as long
    return tf.function(operation)(tf.repeat(tf.constant(images), count, 0), seeds).numpy()


def share(found, count=2000):
    """Shares of each image, to be compared at 5 standard deviations of a share of 2000 draws: 0.056 at the most."""
    kinds = {}
    for image in found:
        kinds[image.tobytes()] = kinds.get(image.tobytes(), 0) + 1 / count
    return kinds


def test_flips_turns_and_crops_are_equally_likely():
    image = np.arange(32.0, dtype="float32").reshape(1, 4, 4, 2) + 1
    flipped = share(drawn(flip(vertical=True), image))
    expected = {image[0, ::a, ::b].tobytes(): 0.25 for a in (1, -1) for b in (1, -1)}
    assert flipped == pytest.approx(expected, abs=0.056)
    turned = share(drawn(rotate(), image))
    assert turned == pytest.approx({np.rot90(image[0], k).tobytes(): 0.25 for k in range(4)}, abs=0.056)
    padded = np.pad(image[0], [(1, 1), (1, 1), (0, 0)])
    expected = {padded[i : i + 4, j : j + 4].tobytes(): 1 / 9 for i in range(3) for j in range(3)}
    assert share(drawn(crop(1), image)) == pytest.approx(expected, abs=0.056)


def test_noise_brightness_and_cutout():
    zeros = np.zeros((1, 4, 4, 1), "float32")
    values = drawn(noise(0.5), zeros)
    assert abs(values.mean()) < 5 * 0.5 / np.sqrt(values.size)
    assert values.std() == pytest.approx(0.5, rel=0.02)  # 5 standard deviations of a standard deviation of 32,000
    shifts = drawn(brightness(0.5), zeros)
    assert (np.ptp(shifts, axis=(1, 2, 3)) == 0).all()
    assert -0.5 <= shifts.min() < -0.49
    assert 0.49 < shifts.max() < 0.5
    holes = drawn(cutout(3), np.ones((1, 8, 8, 1), "float32"))[..., 0] == 0
    sizes = holes.sum((1, 2))
    assert set(sizes.tolist()) == {4, 6, 9}  # in a corner, at a border, inside
    assert holes.any(0).all()
    # a centre is on an edge row with probability 1/4, and so is its column: 9/16 of the holes are whole
    assert np.mean(sizes == 9) == pytest.approx(9 / 16, abs=0.056)


def test_rotation_by_an_angle_is_a_rotation():
    operation = rotate(30.0)
    row, column = np.mgrid[:21, :21] - 10.0
    plane = (3 * row + 5 * column).astype("float32")[None, ..., None]  # bilinear interpolation keeps planes
    angles = []
    for turned in drawn(operation, plane, 50)[:, :, :, 0]:
        down, right = turned[11, 10] - turned[10, 10], turned[10, 11] - turned[10, 10]
        assert np.hypot(down, right) == pytest.approx(np.hypot(3, 5), rel=1e-4)  # float32 of numbers up to 80
        assert turned[10, 10] == pytest.approx(0, abs=1e-4)
        angles.append(np.degrees(np.arctan2(right, down) - np.arctan2(5, 3)))
    assert -30 <= min(angles) < -20
    assert 20 < max(angles) <= 30


def test_mixup_is_the_papers_formula():
    """x = w x_i + (1 - w) x_j, and y with the same w and j; w from Beta(alpha, alpha): mean 1/2, variance known."""
    count = 500
    basis = np.eye(count, dtype="float32")
    x, y = examples_of(augmented((basis[:, None, :, None], 2 * basis), [mixup(0.4)], seed=0), count, 0, shuffle=False)
    x = x[:, 0, :, 0]
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_allclose(x.sum(1), 1, rtol=1e-6)  # float32
    assert ((x != 0).sum(1) <= 2).all()
    weights = np.diag(x)
    assert weights.mean() == pytest.approx(0.5, abs=5 * 0.373 / np.sqrt(count))
    assert weights.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.15)
    partners = np.argmax(x - np.diag(weights), 1)
    assert len(set(partners[weights < 0.999].tolist())) > 0.99 * (weights < 0.999).sum(), "a permutation"


def convolutional():
    return keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(4, 3), L.Flatten(), L.Dense(4)])


def fit(data, folder=None, callbacks=(), batch_size=8):
    trainer = looper.Trainer(
        model=convolutional,
        optimizer=lambda: keras.optimizers.SGD(0.05),
        loss=lambda: keras.losses.CategoricalCrossentropy(from_logits=True),
        workdir=folder,
        execution="graph",
    )
    trainer.fit(data, epochs=3, batch_size=batch_size, progress=False, callbacks=callbacks)
    return trainer


FORMS = {
    "arrays": lambda: augmented((IMAGES, LABELS), SOME, seed=1),
    "examples": lambda: augmented(Examples(), SOME, seed=1),
    "dataset": lambda: augmented(
        tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).shuffle(37, seed=2).batch(8), SOME, seed=1
    ),
}


@functools.cache
def undisturbed(form):
    """The end of a run that is not stopped."""
    return everything(fit(FORMS[form](), batch_size=None if form == "dataset" else 8))


@pytest.mark.xdist_group("undisturbed augmented runs")
@pytest.mark.parametrize(("form", "stops"), [("arrays", (2, 7)), ("examples", (7,)), ("dataset", (2, 7))])
def test_a_stopped_run_is_continued_exactly(form, stops, tmp_path):
    """Stopped in its first pass, and again in its second. Examples end as arrays do."""
    tf.random.set_seed(0)
    size = None if form == "dataset" else 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = undisturbed("arrays" if form == "examples" else form)
        for step in stops:
            with pytest.raises(RuntimeError, match="stopped by the test"):
                fit(FORMS[form](), tmp_path, [SaveAt(step)], batch_size=size)
        assert_same(everything(fit(FORMS[form](), tmp_path, batch_size=size)), expected)


def test_passes_over_an_augmented_dataset_differ():
    dataset = augmented(tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8), [noise(1.0)], seed=0)
    first, second = ([x.numpy() for x, _ in dataset] for _ in range(2))
    assert all((a != b).all() for a, b in zip(first, second, strict=True))


def test_evaluation_does_not_augment_unless_asked():
    data = augmented((IMAGES, LABELS), [noise(1.0)], seed=0)
    trainer = fit(data)
    assert trainer.evaluate(data) == trainer.evaluate((IMAGES, LABELS))
    np.testing.assert_array_equal(trainer.predict(data), trainer.predict(IMAGES))
    asked = augmented((IMAGES, LABELS), [noise(1.0)], seed=0, evaluate=True)
    assert trainer.evaluate(asked)["loss"] != trainer.evaluate(data)["loss"]
    trainer.fit(data, epochs=4, batch_size=8, validation_split=0.25, progress=False)
    held_out = trainer.evaluate((IMAGES[27:], LABELS[27:]), batch_size=8)
    assert trainer.history.rows[-1]["eval/loss"] == held_out["loss"]
    assert held_out["examples"] == 10


def test_another_augmentation_is_another_configuration(tmp_path):
    fit(augmented((IMAGES, LABELS), [flip()], seed=0), tmp_path)
    with pytest.raises(looper.InputError, match=r"flip\(horizontal=True"):
        fit(augmented((IMAGES, LABELS), [crop(2)], seed=0), tmp_path)


def test_wrong_augmentation_is_said():
    def fails(message, data, operations):
        with pytest.raises(looper.InputError, match=message):
            make_source(augmented(data, operations), batch_size=4, shuffle=True, seed=0, training=True)

    fails("expected flip", (IMAGES, LABELS), [tf.image.random_hue])
    fails("several mixup", (IMAGES, LABELS), [mixup(0.1), mixup(0.2)])
    fails(r"images of shape \(4, 6\)|images of shape \(.*, 6\)", (np.ones((8, 6)), np.ones(8)), [flip()])
    fails("mixup got int64: expected float", (IMAGES, np.arange(37)), [mixup(0.1)])
    fails("noise got uint8", IMAGES.astype("uint8"), [noise(0.1)])
    fails("rotate.. by 90 degrees needs square images", np.ones((4, 3, 5, 1), "float32"), [rotate()])
    fails("expected arrays, an indexable source or a tf.data.Dataset", "images", [flip()])
