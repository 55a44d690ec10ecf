"""Datasets that are read many batches at a time: the same batches, at any place, in chunks of any size."""

import itertools
import types

import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data import chunks as chunks_module
from looper.data import feed as feed_module
from looper.data.chunks import Chunks, chunking, of_chunks
from looper.data.dataset import DatasetSource
from looper.data.feed import Feed
from looper.step.programs import StackedExecution
from tests.support import inside, models
from tests.support.sources import batches, late, make_trainer, train
from tests.support.stopping import SaveAt, assert_same, everything

X, Y = models.data(examples=50)


@pytest.fixture(autouse=True)
def _seeded():
    tf.random.set_seed(0)  # tf.data makes other orders of the same seed= before the first global seed of a process


def numbers(examples=50):
    return tf.data.Dataset.range(examples).shuffle(20, seed=1)


def symbolic(dataset):
    options = tf.data.Options()
    options.experimental_symbolic_checkpoint = True
    return dataset.with_options(options)


CHUNKED = {
    "examples": lambda: numbers().batch(8),
    "examples, prefetched": lambda: numbers().batch(8).prefetch(tf.data.AUTOTUNE),
    "examples that repeat": lambda: tf.data.Dataset.range(20).repeat(5).shuffle(20, seed=1).batch(8),
    "without the remainder": lambda: numbers().batch(8, drop_remainder=True),
    "batches of a fixed shape": lambda: numbers().batch(8, drop_remainder=True).map(lambda x: x + 1),
    "batches that are kept": lambda: tf.data.Dataset.range(50).batch(8).cache(),
    "a cache that repeats": lambda: tf.data.Dataset.range(20).cache().repeat(5).batch(8),
    "a cache that is shuffled": lambda: tf.data.Dataset.range(50).cache().shuffle(20, seed=1).batch(8),
    "a map": lambda: numbers().map(lambda x: x + 1).batch(8),
    "a map, then repeat after shuffle": lambda: (
        tf.data.Dataset.range(20).map(abs).shuffle(20, seed=1).repeat(4).batch(8)
    ),
    "a map, shuffled whole": lambda: tf.data.Dataset.range(50).map(abs).shuffle(50, seed=1).batch(8),
    "a map, take, then cache": lambda: tf.data.Dataset.range(50).map(abs).batch(4).take(9).cache(),
    "a map, two batches": lambda: tf.data.Dataset.range(16).map(abs).shuffle(16, seed=1).batch(8),
    "a map, two shuffles": lambda: numbers().map(lambda x: x + 1).shuffle(9, seed=2).batch(8),
    "a map, shuffle, then cache": lambda: numbers().map(lambda x: x + 1).batch(8).cache(),
    "a map, cache, then shuffle": lambda: tf.data.Dataset.range(50).map(abs).cache().shuffle(20, seed=1).batch(8),
    "some batches": lambda: numbers().batch(8).skip(1).take(4),
}
"""All of less than 13 batches."""

NOT_CHUNKED = {
    "maybe of other sizes": lambda: numbers().batch(8).map(lambda x: x),
    "a shorter one in the middle": lambda: numbers(12).batch(8).repeat(2),
    "large": lambda: tf.data.Dataset.from_tensors(tf.zeros([20_000])).repeat(8).batch(2),
    "strings": lambda: tf.data.Dataset.from_tensor_slices(["a", "b", "c"]).batch(2),
    "of other lengths": lambda: tf.data.Dataset.from_tensor_slices([[1], [2]]).padded_batch(2),
    "symbolic checkpoints": lambda: symbolic(numbers().batch(8)),
    "what cannot be saved": lambda: numbers().map(lambda x: tf.numpy_function(lambda v: v, [x], tf.int64)).batch(8),
}


def opened(make, sizes):
    """The batches of three passes, read in stacks of some sizes, one after the other."""
    feed, sizes = Feed(DatasetSource(make())), itertools.cycle(sizes)
    passes = []
    for _ in range(3):
        found = []
        feed.give(next(sizes))
        while (part := feed.iterator.take(3)) is not None:
            found += [part.batch(i).numpy().tolist() for i in range(part.start, part.start + part.count)]
            feed.advance(part.count)
            feed.give(next(sizes))
        passes.append(found)
        feed.next_pass()
    return passes


@pytest.mark.parametrize("pipeline", CHUNKED)
def test_the_same_batches_in_any_chunks(pipeline, monkeypatch):
    make = CHUNKED[pipeline]
    monkeypatch.setattr(chunks_module, "WORTH_A_CHANGE", 0)  # sizes change in these short passes, too
    dataset = make()
    expected = [batches(dataset) for _ in range(3)]
    assert chunking(dataset) is not None
    for sizes in ([4], [256], [1, 5, 3], [7, 2]):
        assert opened(make, sizes) == expected, sizes


@pytest.mark.parametrize("pipeline", NOT_CHUNKED)
def test_what_is_read_batch_by_batch(pipeline):
    assert chunking(NOT_CHUNKED[pipeline]()) is None


def test_of_parts_with_lengths_of_their_own_nothing_is_chunked():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    source = DatasetSource(dataset)
    assert source.batch_bytes == 8 * (X[0].nbytes + Y[0].nbytes)
    source.set_parts(("x", "y"))
    assert source.batch_bytes is None


def test_options_of_the_user_stay_and_only_what_can_be_tuned_is_tuned():
    options = tf.data.Options()
    options.deterministic, options.threading.private_threadpool_size = True, 3
    plain = chunking(numbers().batch(8).with_options(options).prefetch(1)).chunks(2).options()
    assert (plain.deterministic, plain.threading.private_threadpool_size) == (True, 3)
    assert (plain.autotune.enabled, plain.experimental_optimization.inject_prefetch) == (False, False)
    mapped = numbers().map(lambda x: x, num_parallel_calls=tf.data.AUTOTUNE).batch(8)
    assert chunking(mapped).chunks(2).options().autotune.enabled is not False


@pytest.mark.parametrize("position", [1, 3, 5])
@pytest.mark.parametrize("pipeline", ["examples", "batches of a fixed shape"])
def test_a_place_is_entered_by_any_reader(pipeline, position, tmp_path):
    """In the middle of a stack; by stacks of other sizes, and batch by batch."""
    make = CHUNKED[pipeline]
    dataset = make()
    undisturbed = [batches(dataset) for _ in range(3)]
    for before_size, after_size in ((4, 2), (2, 256), (4, None)):
        before = Feed(DatasetSource(make()))
        before.give(before_size)
        assert len(list(read(before))) == len(undisturbed[0])
        before.next_pass()
        list(itertools.islice(read(before), position))
        path = tf.train.Checkpoint(iterator=before.saved_iterator).write(str(tmp_path / "iterator"))
        after = Feed(DatasetSource(make()))
        after.restore(before.state(), lambda it, path=path: tf.train.Checkpoint(iterator=it).read(path))
        after.give(after_size)
        assert list(read(after)) == undisturbed[1][position:]
        after.next_pass()
        assert list(read(after)) == undisturbed[2]


def test_what_is_read_singly_now_is_read_up_to_the_place(tmp_path):
    """As by several workers, where one has begun."""
    before = Feed(DatasetSource(numbers().batch(8)))
    before.give(4)
    list(itertools.islice(read(before), 3))
    path = tf.train.Checkpoint(iterator=before.saved_iterator).write(str(tmp_path / "iterator"))
    source = DatasetSource(numbers().batch(8))
    source.read_singly()
    after = Feed(source)
    after.restore(before.state(), lambda it: tf.train.Checkpoint(iterator=it).read(path))
    assert list(read(after)) == batches(numbers().batch(8))[3:]


def read(feed):
    """Its batches, each taken by itself."""
    while True:
        if feed.stack is None:
            batch = next(feed.iterator, None)
        else:
            part = feed.iterator.take(1)
            batch = part and part.batch(part.start)
        if batch is None:
            return
        feed.advance(1)
        yield batch.numpy().tolist()


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(20, seed=1).batch(8)


@pytest.mark.parametrize("execution", ["xla_loop", "graph"])
def test_a_run_goes_on_with_other_stacks(execution, tmp_path):
    """Saved in the middle of a stack, and continued with smaller ones, as logs come more often."""
    expected = train(dataset(), execution=execution)
    for step in (3, 9, 10):
        workdir = tmp_path / str(step)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            train(dataset(), workdir=workdir, execution=execution, callbacks=[SaveAt(step)])
        found = make_trainer(workdir, execution=execution)
        found.fit(dataset(), epochs=3, log_every=looper.Every(steps=2), progress=False)
        assert found.step == expected.step
        for mine, right in zip(found.model.weights, expected.model.weights, strict=True):
            np.testing.assert_array_equal(mine.numpy(), right.numpy())


@pytest.mark.parametrize("execution", ["graph", "xla_loop", "xla_step"])
def test_a_run_that_is_stopped_has_the_bits_of_one_that_is_not(execution, tmp_path):
    whole = train(dataset(), workdir=tmp_path / "whole", execution=execution)
    assert [type(one) for one in inside.executions(whole, "train")] == [StackedExecution]
    for step in (4, 11):
        with pytest.raises(RuntimeError, match="stopped by the test"):
            train(dataset(), workdir=tmp_path / "stopped", execution=execution, callbacks=[SaveAt(step)])
    stopped = train(dataset(), workdir=tmp_path / "stopped", execution=execution)
    assert_same(everything(stopped), everything(whole))


def slow(seconds, examples=64):
    """Examples, two of which take so long."""
    return tf.data.Dataset.range(examples).map(lambda x: late(x, seconds / 2))


def counts(dataset, sizes=(32, 32, 32)):
    """How many batches come at a time, in a pass for each size of stacks."""
    feed = Feed(DatasetSource(dataset))
    found = []
    for size in sizes:
        feed.give(size)
        found.append([])
        while (part := feed.iterator.take(size)) is not None:
            found[-1].append(part.count)
            feed.advance(part.count)
        feed.next_pass()
    return found


def test_a_chunk_follows_the_pace(monkeypatch):
    """Of slow data a stack is given out before it is full; in the second pass, which is fast, it is full at once."""
    monkeypatch.setattr(chunks_module, "WORTH_A_CHANGE", 4)
    found = counts(slow(0.02).cache().batch(2))
    assert [sum(each) for each in found] == [32, 32, 32]
    assert max(found[0]) <= chunks_module.UNKNOWN_PACE
    assert found[2] == [32]
    assert max(counts(slow(0.02).batch(2), [32])[0]) <= 0.25 / 0.02  # of a busy machine more than WAIT_SECONDS
    assert counts(tf.data.Dataset.range(64).batch(2), [32]) == [[32]]  # what only takes from memory is not waited for


@pytest.mark.parametrize("seconds", [0.03, 0.15])
def test_the_pace_of_slow_data_is_known_after_the_first_stack(seconds):
    """Though a stack of it may have one batch alone. What is read to find out comes next, and is counted."""
    feed, read = Feed(DatasetSource(slow(seconds).batch(2))), 0
    feed.give(16)
    part = feed.iterator.take(1)
    assert feed.steady_pace() > 0.4 * seconds  # two may come at once
    while part is not None:
        read += part.count
        feed.advance(part.count)
        part = feed.iterator.take(16)
    assert read == feed.read_so_far[0] == 32
    assert feed.read_so_far[1] > 0.5 * 32 * seconds


def test_a_bad_batch_that_is_met_while_looking_for_the_pace_fails_at_its_place():
    def check(x):
        with tf.control_dependencies([tf.debugging.Assert(x < 8, ["bad example", x])]):
            return tf.identity(x)

    feed = Feed(DatasetSource(slow(0.15).map(check).batch(2)))
    feed.give(16)
    for _ in range(4):
        part = feed.iterator.take(1)
        assert part.count == 1
        feed.advance(1)
        feed.steady_pace()
    with pytest.raises(tf.errors.InvalidArgumentError, match="bad example"):
        feed.iterator.take(1)


def test_a_cache_and_a_shuffle_are_read_whole(monkeypatch):
    """At any pace, and where the next pass, whose iterator was made while the cache was filled, has smaller stacks."""
    monkeypatch.setattr(chunks_module, "WORTH_A_CHANGE", 4)
    assert [sum(each) for each in counts(slow(0.02).cache().shuffle(16, seed=1).batch(2))] == [32, 32, 32]
    dataset = tf.data.Dataset.range(64).map(abs).shuffle(16, seed=1).batch(2).cache()
    assert [sum(each) for each in counts(dataset, sizes=(32, 2, 32))] == [32, 32, 32]


class Counted:
    """An iterator whose chunks are counted."""

    def __init__(self, how, size, sizes):
        self._iterator, self._sizes = iter(how.chunks(size)), sizes
        sizes.append(size)

    def __next__(self):
        return next(self._iterator)


def test_a_short_pass_is_not_moved_and_a_long_one_is(monkeypatch):
    monkeypatch.setattr(chunks_module, "time", types.SimpleNamespace(monotonic=lambda: 0.0))
    how, sizes = chunking(tf.data.Dataset.range(4000).map(abs).batch(2)), []

    def move(chunks, size):
        iterator = Counted(how, size, sizes)
        iterator._iterator = iter(how.dataset.skip(seen[0]).rebatch(2 * size))
        return iterator

    for left, expected in ((10, [1]), (2000, [1, 16, 64])):
        sizes.clear()
        seen = [0]
        reader = of_chunks(Chunks(how, Counted(how, 1, sizes), 1, move, lambda taken: None), 64, left)
        for _ in range(5):
            part, _ = reader()
            seen[0] += part.count
        assert sizes == expected


@pytest.mark.parametrize("execution", ["graph", "xla_loop"])
@pytest.mark.parametrize("shuffled", [True, False])
def test_what_lies_before_a_batch_that_cannot_be_read_is_trained(shuffled, execution, monkeypatch):
    """The error names its step, in a chunk of many batches, too."""
    monkeypatch.setattr(chunks_module, "WORTH_A_CHANGE", 4)

    def check(i, x):
        with tf.control_dependencies([tf.debugging.Assert(i != 205, ["bad example", i])]):
            return x, x[:3]

    def numbered():
        examples = tf.data.Dataset.from_tensor_slices((np.arange(400), np.ones((400, 6), "float32")))
        return examples.shuffle(100, seed=1) if shuffled else examples

    order = [int(i) for i, _ in numbered()]
    data = numbered().map(check).batch(8)
    trainer = looper.Trainer(model=lambda: models.dense(norm=False), optimizer="sgd", loss="mse", execution=execution)
    bad = order.index(205) // 8
    # of an order that is drawn for this pass alone nothing can be read again: it is one of a chunk
    first, last = (bad // 8 * 8, bad // 8 * 8 + 8) if shuffled else (bad, bad + 1)
    where = f"steps {first + 1} to {last}" if shuffled else f"step {bad + 1}"
    with pytest.raises(looper.errors.StepError, match=f"failed in {where}: .*bad example"):
        trainer.fit(data, epochs=1, log_every=looper.Every(steps=50), progress=False)
    assert trainer.step == first


@pytest.mark.parametrize("execution", ["graph", "xla_loop"])
def test_with_a_workdir_too_the_first_pass_is_read_in_chunks(execution, tmp_path, monkeypatch):
    opened, of_chunks = [], feed_module.of_chunks
    monkeypatch.setattr(feed_module, "of_chunks", lambda *given: opened.append(given) or of_chunks(*given))
    train(dataset(), workdir=tmp_path, execution=execution, epochs=1)
    assert opened


def test_a_dataset_that_cannot_be_saved_is_read_all_the_same():
    """A variable in its map, of which nothing can be told before."""
    scale = tf.Variable(2.0)
    data = tf.data.Dataset.range(6000).map(lambda i: scale * tf.cast(i, tf.float32)).batch(2)
    assert chunking(data).movable
    assert sum(counts(data, [64])[0]) == 3000


def test_an_error_that_waits_is_not_lost_to_stacks_of_another_size():
    def number(i):
        return tf.strings.to_number(tf.where(i == 115, "bad", tf.strings.as_string(i)))

    for size, other in ((8, 3), (8, 40)):
        feed = Feed(DatasetSource(tf.data.Dataset.range(400).map(number).batch(10)))
        feed.give(size)
        seen = feed.iterator.take(size).count
        feed.advance(seen)
        feed.give(other)
        with pytest.raises(tf.errors.OpError, match="bad"):
            while (part := feed.iterator.take(other)) is not None:
                feed.advance(part.count)
                seen += part.count
        assert seen == 11


def test_after_a_restart_no_batch_before_a_bad_one_is_given_twice(tmp_path):
    def number(i):
        return tf.strings.to_number(tf.where(i == 9005, "bad", tf.strings.as_string(i)))

    def feed():
        # of which chunks stay of one size: where they change, places are counted from there
        endless = tf.data.Dataset.range(20_000).take_while(lambda i: i >= 0)
        return Feed(DatasetSource(endless.map(number).batch(10)))

    before = feed()
    before.give(100)
    first = list(itertools.islice(read(before), 310))
    path = tf.train.Checkpoint(iterator=before.saved_iterator).write(str(tmp_path / "iterator"))
    after = feed()
    after.restore(before.state(), lambda it: tf.train.Checkpoint(iterator=it).read(path))
    after.give(100)
    rest = []
    with pytest.raises(tf.errors.OpError, match="bad"):
        for batch in read(after):
            rest.append(batch)
    assert [each[0] for each in first + rest] == [10.0 * i for i in range(900)]


def test_the_end_on_a_device_of_ones_own():
    """A second CPU stands for the GPU, which there is none of here."""
    feed = Feed(DatasetSource(numbers(64).batch(8)))
    feed.give(8, "CPU:1")
    assert len(list(read(feed))) == 8
    assert feed.iterator.take(1) is None
