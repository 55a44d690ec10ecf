"""Data: shuffling that any position can be entered at, partial batches, and what TensorFlow's iterators lose."""

import itertools
from itertools import chain

import keras
import numpy as np
import pytest
import tensorflow as tf

from looper.data import make_source
from looper.data.arrays import ArraySource
from looper.data.dataset import DatasetSource
from looper.data.feed import Feed
from tests.support.sources import batches


def rest(source, number, batch=0):
    """The batches of a pass of arrays from one of them on; the iterator would go on to the next pass."""
    return batches(itertools.islice(source.open(number, batch), source.length - batch))


def test_a_pass_has_every_example_once_and_passes_differ():
    source = ArraySource(np.arange(103), batch_size=10, shuffle=True, seed=0)
    first, second = (rest(source, number) for number in (0, 1))
    assert [len(batch) for batch in first] == [10] * 10 + [3]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(103))
    assert first != second
    assert first[0] != list(range(10))


def test_the_order_depends_on_the_seed_alone_and_not_on_the_batch_size():
    def order(batch_size, seed):
        source = ArraySource(np.arange(50), batch_size=batch_size, shuffle=True, seed=seed)
        return list(chain(*rest(source, 3)))

    assert order(7, 0) == order(50, 0)
    assert order(7, 0) != order(7, 1)


@pytest.mark.parametrize("examples", [40, 43, 1])
def test_any_position_is_entered_exactly(examples):
    source = ArraySource(np.arange(examples), batch_size=4, shuffle=True, seed=2)
    whole = rest(source, 5)
    for position in range(len(whole) + 1):
        assert rest(source, 5, position) == whole[position:]
    beyond = batches(itertools.islice(source.open(5, 0), 2 * source.length))
    assert beyond == whole + rest(source, 6)


def test_batches_larger_than_a_chunk_and_nested_structures():
    x = np.random.default_rng(0).normal(size=(10, 1000, 300)).astype("float32")  # 1.2 MB an example, 4 MB a chunk
    data = ({"a": x, "b": np.arange(10)}, np.arange(10.0))
    iterator = ArraySource(data, batch_size=6, shuffle=False, seed=0).open(0, 0)
    first, second = next(iterator), next(iterator)
    np.testing.assert_array_equal(first[0]["a"].numpy(), x[:6])
    np.testing.assert_array_equal(second[0]["b"].numpy(), np.arange(6, 10))
    assert second[1].dtype == tf.float32, "float64 becomes Keras' floatx, as in fit"


def test_static_batch_shape_where_there_is_one():
    even = ArraySource(np.arange(8), batch_size=4, shuffle=True, seed=0)
    assert even.element_spec.shape == (4,)
    assert ArraySource(np.arange(9), batch_size=4, shuffle=True, seed=0).element_spec.shape == (None,)


def shuffled(examples, batch):
    dataset = tf.data.Dataset.range(examples).shuffle(20, seed=1, reshuffle_each_iteration=True)
    return dataset.batch(batch)


PIPELINES = {
    "partial last batch": lambda: shuffled(17, 4),
    "even batches": lambda: shuffled(16, 4),
    "filter": lambda: shuffled(20, 1).unbatch().filter(lambda x: x % 3 > 0).batch(4),
    "small buffer": lambda: tf.data.Dataset.range(17).shuffle(5, seed=1).batch(4),
    "cache and parallel map": lambda: shuffled(17, 4).map(lambda x: x + 1, num_parallel_calls=4),
    "not shuffled": lambda: tf.data.Dataset.range(17).batch(4),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_dataset_is_continued_exactly_at_every_position(pipeline, tmp_path):
    """The rest of the pass and the orders of the two passes after it, as in a process that was never stopped."""
    dataset = PIPELINES[pipeline]()
    undisturbed = [batches(dataset) for _ in range(5)]
    for number in (0, 2):  # to enter the third pass, the orders of two are drawn
        for position in range(len(undisturbed[number])):
            before = Feed(DatasetSource(PIPELINES[pipeline]()))
            for _ in range(number):
                batches(before.iterator)
                before.next_pass()
            for _ in range(position):
                next(before.iterator)
            before.advance(position)
            saved = before.saved_iterator
            path = None if saved is None else tf.train.Checkpoint(iterator=saved).write(str(tmp_path / "iterator"))
            after = Feed(DatasetSource(PIPELINES[pipeline]()))
            after.restore(before.state(), path and (lambda it, path=path: tf.train.Checkpoint(iterator=it).read(path)))
            rest = [batches(after.iterator)]
            for _ in range(2):
                after.next_pass()
                rest.append(batches(after.iterator))
            assert rest == [undisturbed[number][position:], *undisturbed[number + 1 : number + 3]], (number, position)


def test_why_passes_are_iterators_of_their_own(tmp_path):
    """TensorFlow 2.21 restores an iterator over `repeat()` to another order at the end of a pass.

    If this fails, TensorFlow was mended and `DatasetSource` can be simpler.
    """
    repeated = shuffled(17, 4).repeat()
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # which would make the position a matter of chance
    repeated = repeated.with_options(options)
    iterator = iter(repeated)
    for _ in range(5):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    expected = [next(iterator).numpy().tolist() for _ in range(5)]
    again = iter(shuffled(17, 4).repeat().with_options(options))
    tf.train.Checkpoint(iterator=again).read(path)
    assert [next(again).numpy().tolist() for _ in range(5)] != expected


def test_a_dataset_that_cannot_be_saved_is_said_and_read_past():
    calls = tf.data.Dataset.range(12).map(lambda x: tf.numpy_function(lambda v: v, [x], tf.int64)).batch(3)
    feed = Feed(make_source(calls, batch_size=None, shuffle=False, seed=0))
    with pytest.warns(UserWarning, match="TensorFlow cannot save the position in this dataset"):
        feed.warn_if_not_saved()
    next(feed.iterator)
    feed.advance(1)
    assert feed.saved_iterator is None
    after = Feed(make_source(calls, batch_size=None, shuffle=False, seed=0))
    after.restore(feed.state(), None)
    assert batches(after.iterator) == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_floatx_is_respected():
    keras.config.set_floatx("float64")
    try:
        assert ArraySource(np.ones(3), batch_size=3, shuffle=False, seed=0).element_spec.dtype == tf.float64
    finally:
        keras.config.set_floatx("float32")
