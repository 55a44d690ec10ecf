"""Sources side by side: what each batch holds, from any position, and through a stop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.data import make_source, zipped
from looper.data.augment import augmented, mixup, noise
from tests.support import inside
from tests.support.stopping import SaveAt, assert_same, everything

LABELLED, UNLABELLED = 7, 10
SIZES = {"labelled": 3, "unlabelled": 4}
IDS, OTHERS = np.arange(LABELLED), 100 + np.arange(UNLABELLED)
IMAGES = np.random.default_rng(0).normal(size=(UNLABELLED, 2, 2, 1)).astype("float32")
RAGGED = tf.ragged.constant([[i] * (i % 3) for i in range(UNLABELLED)])


def source_of(unlabelled=OTHERS, sizes=SIZES, shuffle=True, seed=3, **more):
    data = zipped(labelled=(IDS, 2 * IDS), unlabelled=unlabelled, batch_size=sizes)
    return make_source(data, batch_size=None, shuffle=shuffle, seed=seed, **more)


def read(source, number, batch, count):
    """So many batches from a position on, as nested lists."""
    found = []
    while len(found) < count:
        for each in source.open(number, batch):
            found.append(tf.nest.map_structure(as_list, each))
            if len(found) == count:
                break
        number, batch = number + 1, 0
    return found


def as_list(tensor):
    if isinstance(tensor, tf.SparseTensor):
        tensor = tf.sparse.to_dense(tensor)
    return tensor.to_list() if isinstance(tensor, tf.RaggedTensor) else tensor.numpy().tolist()


def test_an_epoch_is_a_pass_over_the_first_source():
    """The last of its batches is smaller. The others are full, and go through their examples again and again."""
    source = source_of()
    assert (source.length, source.parts) == (3, ("labelled", "unlabelled"))
    found = read(source, 0, 0, 15)  # five epochs, and six passes over the other source
    assert [len(batch["labelled"][0]) for batch in found] == [3, 3, 1] * 5
    assert [len(batch["unlabelled"]) for batch in found] == [4] * 15
    alone = make_source(IDS, batch_size=3, shuffle=True, seed=3)
    assert [batch["labelled"][0] for batch in found] == read(alone, 0, 0, 15)
    assert all(y == [2 * i for i in x] for x, y in (batch["labelled"] for batch in found))
    stream = np.concatenate([batch["unlabelled"] for batch in found]).reshape(-1, UNLABELLED)
    assert [sorted(each.tolist()) for each in stream] == [OTHERS.tolist()] * 6
    assert len({tuple(each) for each in stream.tolist()}) == 6


def test_in_order():
    found = read(source_of(shuffle=False), 0, 0, 4)
    assert [batch["labelled"][0] for batch in found] == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2]]
    assert np.concatenate([batch["unlabelled"] for batch in found]).tolist() == [*OTHERS, *OTHERS[:6]]


def test_more_examples_in_a_batch_than_there_are():
    found = read(source_of(sizes={"labelled": 9, "unlabelled": 23}), 0, 0, 2)
    assert [len(batch["labelled"][0]) for batch in found] == [7, 7]
    counts = np.unique_counts([i for batch in found for i in batch["unlabelled"]]).counts
    assert sorted(counts.tolist()) == [4] * 4 + [5] * 6


KINDS = {
    "arrays": lambda: OTHERS,
    "ragged": lambda: RAGGED,
    "sparse": lambda: tf.sparse.from_dense(np.diag(OTHERS)),
    "augmented": lambda: augmented(IMAGES, [noise(0.1), mixup(0.2)], seed=1),
    "a list of examples": lambda: [(i, i) for i in OTHERS],
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_position_is_reached(kind):
    source = source_of(KINDS[kind](), training=True)
    whole = read(source, 0, 0, 8)
    for step in (1, 3, 5):
        assert read(source, *divmod(step, 3), 8 - step) == whole[step:]


def test_the_draws_of_augmentation_are_those_of_each_pass():
    """A batch that has examples of two passes is drawn for both."""
    found = read(source_of(KINDS["augmented"](), shuffle=False, training=True), 0, 0, 5)
    alone = make_source(KINDS["augmented"](), batch_size=UNLABELLED, shuffle=False, seed=3, training=True)
    expected = np.concatenate([*read(alone, 0, 0, 2)])
    np.testing.assert_array_equal(np.concatenate([batch["unlabelled"] for batch in found]), expected)


def test_what_is_read_by_index_comes_in_the_same_order(tmp_path):
    mapped = np.memmap(tmp_path / "others", OTHERS.dtype, "w+", shape=OTHERS.shape)
    mapped[:] = OTHERS
    assert read(source_of(mapped), 0, 0, 7) == read(source_of(), 0, 0, 7)


@pytest.mark.parametrize("size", [2, 5])
def test_stacks_hold_the_batches(size):
    source, found = source_of(), []
    take = source.open_stacks(0, 1, size)
    while len(found) < 8:
        part, _ = take()
        for i in range(part.count):
            found.append(tf.nest.map_structure(lambda x: x.numpy().tolist(), part.batch(i)))
        assert part.stack["unlabelled"].shape == (size, 4)
    assert found[:8] == read(source, 0, 1, 8)


def test_what_zipped_refuses():
    with pytest.raises(looper.InputError, match="expected a dict with the number of examples of each"):
        zipped(a=IDS, b=OTHERS, batch_size={"a": 3})
    with pytest.raises(looper.InputError, match="batch_size=8: expected a dict"):
        zipped(a=IDS, batch_size=8)
    with pytest.raises(looper.InputError, match=r"batch_size\['a'\]=0: expected a positive whole number"):
        zipped(a=IDS, batch_size={"a": 0})
    pair = {"a": IDS, "b": tf.data.Dataset.range(9).batch(3)}
    with pytest.raises(looper.InputError, match=r"b comes in batches: zip such data by yourself"):
        make_source(zipped(**pair, batch_size={"a": 1, "b": 1}), batch_size=None, shuffle=True, seed=0)
    with pytest.raises(looper.InputError, match=r"what zipped.* returned has its batches already"):
        make_source(zipped(a=IDS, batch_size={"a": 1}), batch_size=3, shuffle=True, seed=0)


class Pulled(looper.Trainer):
    """It declares no parts: the data does."""

    def build(self):
        self.model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        self.optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        self.optimizer.build(self.model.trainable_variables)

    def compute_loss(self, batch, training):
        (x, y), u = batch["labelled"], batch["unlabelled"]
        far = self.model(u[0] if isinstance(u, tuple) else u, training=training)
        return [tf.square(self.model(x, training=training)[:, 0] - y), 0.1 * tf.square(far)]


X = np.random.default_rng(1).normal(size=(LABELLED, 2)).astype("float32")
U = np.random.default_rng(2).normal(size=(UNLABELLED, 2)).astype("float32")


def pulled(unlabelled, workdir=None, callbacks=(), epochs=4, **options):
    trainer = Pulled(workdir=workdir, **options)
    data = zipped(labelled=(X, X[:, 0]), unlabelled=unlabelled, batch_size={"labelled": 4, "unlabelled": 4})
    trainer.fit(
        data, epochs=epochs, callbacks=list(callbacks), log_every=looper.Every(steps=1), progress=False, save_every=None
    )
    return trainer


@pytest.mark.parametrize(
    ("unlabelled", "options"),
    [
        (U, {"execution": "graph"}),
        (U, {"execution": "xla_loop"}),
        ([(row, 0) for row in U], {"execution": "graph"}),
    ],
    ids=["stacks", "xla_loop", "a list of examples"],
)
def test_a_stopped_run_goes_on_with_the_same_bits(unlabelled, options, tmp_path):
    """In the middle of an epoch, where the other source is in the middle of a pass."""
    options |= {"strategy": "one_device"}
    whole = everything(pulled(unlabelled, tmp_path / "whole", **options))
    with pytest.raises(RuntimeError, match="stopped by the test"):
        pulled(unlabelled, tmp_path / "halves", callbacks=[SaveAt(3)], **options)
    assert_same(everything(pulled(unlabelled, tmp_path / "halves", **options)), whole)


def test_parts_of_the_data_are_divided_among_replicas():
    one = pulled(U, strategy="one_device", execution="graph", precision="float64")
    two = pulled(U, strategy="mirrored", devices=2, execution="graph", precision="float64")
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert inside.feed(two).source.parts == ("labelled", "unlabelled")
