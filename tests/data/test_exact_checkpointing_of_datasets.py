"""A run over a tf.data dataset is continued exactly, or its start says why it cannot be and what to do."""

import re
import warnings

import keras
import pytest
import tensorflow as tf

from looper.data import make_source
from looper.data.dataset import DatasetSource
from looper.data.exact import why_not_saved, why_other_orders
from looper.data.feed import Feed
from tests.support import models
from tests.support.sources import batches, train
from tests.support.stopping import SaveAt, assert_same, everything

X, Y = models.data(examples=50)


@pytest.fixture(autouse=True)
def _seeded():
    tf.random.set_seed(0)  # tf.data makes other orders of the same seed= before the first global seed of a process


def pairs():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def noisy(seeds, example):
    x, y = example
    return x + tf.random.stateless_uniform([6], tf.stack([seeds, seeds])), y


EXACT = {
    "one shuffle": lambda: pairs().shuffle(20, seed=1).batch(8),
    "repeat, then shuffle": lambda: pairs().repeat(2).shuffle(20, seed=1).batch(8),
    "one order for all passes": lambda: pairs().shuffle(50, seed=1, reshuffle_each_iteration=False).repeat(2).batch(8),
    "cache, then shuffle": lambda: pairs().cache().shuffle(20, seed=1).batch(8),
    "interleave": lambda: (
        tf.data.Dataset.range(2)
        .interleave(lambda i: pairs().skip(tf.cast(i, tf.int64) * 25).take(25), num_parallel_calls=2)
        .shuffle(20, seed=2)
        .batch(8)
    ),
    "stateless ops of a counter": lambda: tf.data.Dataset.zip(tf.data.Dataset.counter(), pairs()).map(noisy).batch(8),
    "repeat on the other side of a zip": lambda: (
        tf.data.Dataset.zip(tf.data.Dataset.counter().repeat(), pairs().shuffle(20, seed=1)).map(noisy).batch(8)
    ),
}


@pytest.mark.parametrize("pipeline", ["one shuffle", "stateless ops of a counter"])
def test_what_is_not_warned_of_is_continued_exactly(pipeline, tmp_path):
    """Stopped in its first pass, and again in the second. The next test has all pipelines, without training."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = everything(train(EXACT[pipeline](), workdir=tmp_path / "whole", execution="graph"))
        stopped = {"workdir": tmp_path / "stopped", "execution": "graph"}
        for step in (3, 9):
            with pytest.raises(RuntimeError, match="stopped by the test"):
                train(EXACT[pipeline](), callbacks=[SaveAt(step)], **stopped)
        assert_same(everything(train(EXACT[pipeline](), **stopped)), expected)


def continued(make, number, position, folder):
    """Whether the rest of a pass, and the next one, are as undisturbed where another process begins there."""
    before = Feed(DatasetSource(make()))
    for _ in range(number):
        list(before.iterator)
        before.next_pass()
    for _ in range(position):
        next(before.iterator)
    before.advance(position)
    path = tf.train.Checkpoint(iterator=before.saved_iterator).write(str(folder / "iterator"))
    rest = [str(batch) for batch in before.iterator]
    before.next_pass()
    rest += [str(batch) for batch in before.iterator]
    after = Feed(DatasetSource(make()))
    after.restore(
        {"number": number, "batch": position}, lambda iterator: tf.train.Checkpoint(iterator=iterator).read(path)
    )
    again = [str(batch) for batch in after.iterator]
    after.next_pass()
    return rest == again + [str(batch) for batch in after.iterator]


@pytest.mark.parametrize("pipeline", EXACT)
def test_what_is_not_warned_of_is_exact_at_each_position(pipeline, tmp_path):
    make = EXACT[pipeline]
    assert said(make()) is None
    for number, position in ((0, 3), (0, 6), (1, 1), (1, 5)):
        assert continued(make, number, position, tmp_path), (number, position)


def symbolic(dataset):
    options = tf.data.Options()
    options.experimental_symbolic_checkpoint = True
    return dataset.with_options(options)


def layer():
    augment = keras.layers.RandomFlip(seed=0)
    return lambda x, y: (augment(x[..., None, None], training=True)[..., 0, 0], y)


def in_any_order(dataset):
    options = tf.data.Options()
    options.deterministic = False
    return dataset.with_options(options)


UNSAVED = {
    "py_function": (
        lambda: pairs().map(lambda x, y: (tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), [6]), y)),
        r"it calls Python in map \(.*keras.utils.PyDataset",
    ),
    "numpy_function": (
        lambda: pairs().filter(lambda x, y: tf.numpy_function(lambda v: v >= 0, [y], tf.bool)),
        r"it calls Python in filter \(",
    ),
    "random ops": (
        lambda: pairs().map(lambda x, y: (x + tf.random.normal([6]), y), num_parallel_calls=2),
        r"it calls random ops in map \(RandomStandardNormal\): use looper.data.augment",
    ),
    "Keras layer": (
        lambda: pairs().map(layer()),
        "it changes variables in map, as Keras' augmentation layers do: use looper.data.augment",
    ),
    "from_generator": (
        lambda: tf.data.Dataset.from_generator(
            lambda: iter(zip(X, Y, strict=True)), output_signature=tf.data.DatasetSpec.from_value(pairs()).element_spec
        ),
        "it is made by from_generator: give looper the generator function itself",
    ),
    "shuffle in interleave": (
        lambda: tf.data.Dataset.range(2).interleave(lambda i: pairs().shuffle(9, seed=1)),
        "it shuffles inside interleave: shuffle before or after it",
    ),
    "copy_to_device": (
        lambda: pairs().apply(tf.data.experimental.copy_to_device("/cpu:0")),
        "it uses copy_to_device or prefetch_to_device: leave that out",
    ),
    "prefetch_to_device": (
        lambda: pairs().apply(tf.data.experimental.prefetch_to_device("/cpu:0")),
        "it uses copy_to_device or prefetch_to_device: leave that out",
    ),
}

OTHER_ORDERS = {
    "two shuffles": (lambda: pairs().shuffle(9, seed=1).shuffle(7, seed=2), "it has several shuffles"),
    "shuffle, then repeat": (lambda: pairs().shuffle(9, seed=1).repeat(2), r"repeat\(\) comes after shuffle\(\)"),
    "shuffle, then cache": (lambda: pairs().shuffle(9, seed=1).cache(), r"cache\(\) comes after shuffle\(\)"),
    "in any order": (
        lambda: pairs().map(lambda x, y: (x, y), num_parallel_calls=2, deterministic=False),
        r"map\(\) is not deterministic: leave deterministic=False out",
    ),
    "option": (lambda: in_any_order(pairs()), "is not deterministic"),
    "symbolic": (
        lambda: symbolic(pairs().map(lambda x, y: (x + tf.random.normal([6]), y))),
        "experimental_symbolic_checkpoint restores it to other numbers, because it calls random ops in map",
    ),
}


def said(dataset):
    """What the start of a run says of a dataset; None if nothing."""
    feed = Feed(make_source(dataset, batch_size=None, shuffle=False, seed=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        feed.warn_if_not_saved()
    assert len(caught) <= 1
    return str(caught[0].message) if caught else None


@pytest.mark.parametrize("kind", UNSAVED)
def test_what_cannot_be_saved_is_said(kind):
    make, reason = UNSAVED[kind]
    message = said(make().batch(8))
    assert message is not None
    assert "\n" not in message
    assert re.match(f"TensorFlow cannot save the position in this dataset: {reason}", message), message


@pytest.mark.parametrize("kind", OTHER_ORDERS)
def test_what_draws_other_orders_is_said(kind):
    make, reason = OTHER_ORDERS[kind]
    message = said(make().batch(8))
    assert re.match(f"a run that is continued draws other orders .*: .*{reason}[^\n]*$", message or ""), message


def test_shuffling_without_any_seed_is_said():
    tf.random.set_seed(None)
    try:
        assert "shuffle() has no seed, so each process draws another" in said(pairs().shuffle(9).batch(8))
    finally:
        tf.random.set_seed(0)
    assert said(pairs().shuffle(9).batch(8)) is None


@pytest.mark.parametrize("kind", ["two shuffles", "shuffle, then repeat", "shuffle, then cache", "symbolic"])
def test_what_is_warned_of_is_not_exact(kind, tmp_path):
    """If this fails, TensorFlow was mended and the warning can go."""

    def make():
        return OTHER_ORDERS[kind][0]().batch(8)

    assert not all(continued(make, 1, position, tmp_path) for position in (1, 3, 5))


def test_looking_does_not_read_the_data_or_move_its_orders():
    read = []

    def note(x, y):
        read.append(int(y))
        return x

    counted = pairs().map(lambda x, y: (tf.ensure_shape(tf.py_function(note, [x, y], tf.float32), [6]), y)).batch(8)
    said(counted)
    assert read == []

    def orders(look):
        dataset = tf.data.Dataset.range(20).shuffle(20, seed=3).batch(5)
        feed = Feed(make_source(dataset, batch_size=None, shuffle=False, seed=0))
        if look:
            feed.warn_if_not_saved()
        found = []
        for _ in range(3):
            found.append(batches(feed.iterator))
            feed.next_pass()
        return found

    assert orders(look=True) == orders(look=False)


def test_nothing_is_said_of_what_is_exact():
    for make in EXACT.values():
        assert why_not_saved(make()) is None
        assert why_other_orders(make()) is None
