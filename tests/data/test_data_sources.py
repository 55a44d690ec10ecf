"""What people have for data trains as Keras' fit trains it, and a run that is stopped continues exactly."""

import functools
import itertools
import subprocess
import sys
import warnings

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf

import looper
from looper.data import make_source
from looper.data.arrays import ArraySource
from looper.data.indexed import IndexedSource
from tests.support import line, models
from tests.support.sources import make_trainer, model, train
from tests.support.stopping import SaveAt, assert_same, everything

L = models.L
X, Y = models.data(examples=50)
BATCH = 8
same_runs = pytest.mark.xdist_group("runs over sources of data")


def weights_of(trainer):
    return [w.numpy() for w in trainer.model.weights]


def assert_equal_weights(a, b, atol=0.0):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@functools.cache
def first_weights():
    """Those that looper's trainer begins with."""
    return weights_of(make_trainer())


def keras_fit(data, *, epochs=3, **options):
    """Weights after Keras' own fit, from the weights that looper's trainer begins with."""
    mine = model()
    mine.set_weights(first_weights())
    mine.compile(keras.optimizers.SGD(0.1), models.cross_entropy())
    x, y, sample_weight = (*data, None)[:3] if isinstance(data, tuple) else (data, None, None)
    mine.fit(x, y, sample_weight=sample_weight, epochs=epochs, verbose=0, shuffle=False, **options)
    return [w.numpy() for w in mine.weights]


class Batches(keras.utils.PyDataset):
    """Shuffles itself at the end of each epoch, from a seed."""

    def __init__(self, kind=lambda x, y: (x, y), **options):
        super().__init__(**options)
        self.kind, self.random = kind, np.random.default_rng(3)
        self.order, self.calls = np.arange(50), []

    def __len__(self):
        return -(-50 // BATCH)

    def __getitem__(self, i):
        rows = self.order[i * BATCH : (i + 1) * BATCH]
        return self.kind(X[rows], Y[rows])

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")
        self.order = self.random.permutation(50)


class Changing(Batches):
    """Has another number of batches after each pass, as one that gathers examples."""

    def __init__(self, batches, change, **options):
        super().__init__(**options)
        self.batches, self.change = batches, change

    def __len__(self):
        return self.batches

    def on_epoch_end(self):
        super().on_epoch_end()
        self.batches += self.change


class Endless(Batches):
    __len__ = None
    num_batches = None

    def __getitem__(self, i):
        return super().__getitem__(i % 6)


class Cursor:
    """An iterator with a state, of its own random order, endless or not."""

    def __init__(self, length=7):
        self.length, self.count, self.random = length, 0, np.random.default_rng(0)
        self.key = np.zeros(2)

    def __iter__(self):
        return self

    def __next__(self):
        if self.count == self.length:
            self.count = 0
            raise StopIteration
        self.count += 1
        rows = self.random.integers(0, 50, BATCH)
        self.key += rows[:2]
        return X[rows] + self.key.mean() * 1e-3, Y[rows]

    def state(self):
        return {"count": self.count, "random": self.random.bit_generator.state, "key": self.key}

    def restore(self, state):
        self.count, self.key = state["count"], np.array(state["key"])
        self.random.bit_generator.state = state["random"]


class TorchTensor:
    """The part of torch.Tensor's interface that looper uses; torch itself is not installed here."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = np.asarray(array), np.shape(array), np.asarray(array).dtype

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.array

    def __getitem__(self, index):
        return TorchTensor(self.array[index])

    def __len__(self):
        return len(self.array)


TorchTensor.__module__ = "torch"


class MapDataset:
    """As torch.utils.data.Dataset: `len()` and `[i]`."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 50

    def __getitem__(self, i):
        if not 0 <= i < 50:
            raise IndexError(i)
        self.read.append(i)
        return TorchTensor(X[i]), int(Y[i])


class DataLoader:
    """As torch.utils.data.DataLoader: an iterable of lists of tensors."""

    def __iter__(self):
        for start in range(0, 50, BATCH):
            yield [TorchTensor(X[start : start + BATCH]), TorchTensor(Y[start : start + BATCH])]

    def __len__(self):
        return 7


def generator():
    for start in range(0, 50, BATCH):
        yield X[start : start + BATCH], Y[start : start + BATCH]


def memory_mapped(tmp_path):
    if not (tmp_path / "x.npy").exists():
        np.save(tmp_path / "x.npy", X)
    return np.load(tmp_path / "x.npy", mmap_mode="r"), Y


def hdf5(tmp_path):
    path = tmp_path / "data.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = X, Y
    file = h5py.File(path, "r")
    return file["x"], file["y"]


BY_BATCH = {
    "PyDataset": lambda: Batches(),
    "PyDataset with workers": lambda: Batches(workers=3, max_queue_size=4),
    "endless PyDataset": lambda: Endless(),
    "generator function": lambda: generator,
    "cursor with a state": lambda: Cursor(),
    "DataLoader": lambda: DataLoader(),
}
BY_EXAMPLE = {
    "memory-mapped": memory_mapped,
    "HDF5": hdf5,
    "map dataset": lambda _: MapDataset(),
    "list of examples": lambda _: [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "DataFrame": lambda _: (pd.DataFrame(X), pd.Series(Y)),
    "Torch tensors": lambda _: (TorchTensor(X), TorchTensor(Y)),
    "tensors": lambda _: (tf.constant(X), tf.constant(Y)),
}


@functools.cache
def trained_on_arrays(shuffle):
    """The end of an undisturbed run over the same examples as arrays."""
    return everything(train((X, Y), batch_size=BATCH, more={} if shuffle else {"shuffle": False}))


def stopped_and_continued(make_data, folder, steps, **options):
    """The end of a run that is stopped at each of the steps."""
    for step in steps:
        with pytest.raises(RuntimeError, match="stopped by the test"):
            train(make_data(), workdir=folder, callbacks=[SaveAt(step)], **options)
    return everything(train(make_data(), workdir=folder, **options))


STOPS = {
    "PyDataset": (3, 7, 10),
    "PyDataset with workers": (3,),
    "endless PyDataset": (10,),
    "generator function": (3, 8, 10),
    "cursor with a state": (3, 10),
    "DataLoader": (10,),
}
"""Of what has a known length and of what has none, one is stopped in the first pass, at its end and in the second."""


@functools.cache
def undisturbed_over_batches(kind):
    """What has an order of its own is as an undisturbed run of it, the rest as arrays in order."""
    if kind in ("generator function", "DataLoader"):
        return trained_on_arrays(False)
    return everything(train(BY_BATCH[kind](), more=until(kind)))


def until(kind):
    return {"epochs": None, "steps": 20} if "endless" in kind else {}


@same_runs
@pytest.mark.filterwarnings("ignore:the data is a")
@pytest.mark.parametrize("kind", STOPS)
def test_a_run_over_batches_is_continued_exactly(kind, tmp_path):
    expected = undisturbed_over_batches(kind.removesuffix(" with workers"))
    assert expected[2] in (20, 21)
    got = stopped_and_continued(BY_BATCH[kind], tmp_path / "stopped", STOPS[kind], more=until(kind))
    assert_same(got, expected)


@same_runs
@pytest.mark.parametrize(("kind", "steps"), [("map dataset", (3, 7, 10)), ("HDF5", (3,))])
def test_indexed_data_trains_as_arrays_and_is_continued_exactly(kind, steps, tmp_path):
    """Where a run may be stopped does not depend on what is read by index: one kind is stopped at the end of a pass
    and in the next one, too."""

    def make():
        return BY_EXAMPLE[kind](tmp_path)

    got = stopped_and_continued(make, tmp_path / "stopped", steps, batch_size=BATCH)
    assert_same(got, trained_on_arrays(True))


@pytest.mark.parametrize("kind", BY_EXAMPLE)
def test_shuffled_index_is_read_as_arrays_are(kind, tmp_path):
    found = []
    for data in ((X, Y), BY_EXAMPLE[kind](tmp_path)):
        source = make_source(data, batch_size=7, shuffle=True, seed=4)
        assert isinstance(source, (ArraySource, IndexedSource))
        found.append(list(itertools.islice(source.open(1, 2), 6)))
        assert [x.shape[0] for x, _ in found[-1]] == [7, 7, 7, 7, 7, 1]
    for (x, y), (x_too, y_too) in zip(*found, strict=True):
        assert (x.dtype, y_too.dtype.is_integer) == (x_too.dtype, True)
        np.testing.assert_array_equal(x, x_too)
        np.testing.assert_array_equal(y, y_too)


def test_only_a_batch_of_indexed_data_is_read():
    class Rows:
        """Notes what is read; complains like HDF5 about an index that does not ascend."""

        shape, dtype = (1000, 6), np.dtype("float32")

        def __init__(self):
            self.read = []

        def __getitem__(self, index):
            rows = np.arange(1000)[index]
            assert (np.diff(rows) > 0).all()
            self.read.append(len(rows))
            return np.repeat(rows[:, None], 6, 1).astype("float32")

    rows = Rows()
    source = make_source((rows, np.arange(1000)), batch_size=10, shuffle=True, seed=0)
    assert isinstance(source, IndexedSource)
    x, y = next(source.open(5, 60))
    np.testing.assert_array_equal(x[:, 0].numpy(), y.numpy())
    assert set(rows.read) == {10}
    assert len(rows.read) < 10


KINDS = {
    "a list of float64, weighted": (
        lambda x, y: [x.astype("float64"), y.astype("float64"), np.arange(len(x), dtype="float64") / 4]
    ),
    "float16": (lambda x, y: (x.astype("float16"), y)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_py_dataset_trains_as_in_keras_fit(kind):
    class AsKeras(Batches):
        """Keras 3.15 calls on_epoch_end once more, before the first epoch."""

        def on_epoch_end(self):
            if self.calls:
                super().on_epoch_end()

    mine, theirs = Batches(KINDS[kind]), AsKeras(KINDS[kind])
    trained = train(mine)
    assert_equal_weights(weights_of(trained), keras_fit(theirs), atol=1e-6)  # sums in another order
    assert mine.calls == theirs.calls == ["begin", "end"] * 3


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_keep_the_order(workers):
    source = make_source(Batches(workers=workers, max_queue_size=3), batch_size=None, shuffle=True, seed=0)
    got = np.concatenate([x.numpy() for x, _ in source.open(0, 2)])
    np.testing.assert_array_equal(got, X[2 * BATCH :])


ARRAYS = {
    "float64": (X.astype("float64"), Y),
    "float16": (X.astype("float16"), Y),
    "ints": ((X * 10).astype("int64"), Y.astype("uint8")),
    "bools": (X > 0, Y),
    "targets of rank 2": (X, Y[:, None]),
    "DataFrame": (pd.DataFrame(X.astype("float64")), pd.Series(Y)),
    "mixed numbers": (pd.DataFrame({i: X[:, i] if i % 2 else (X[:, i] * 10).astype("int64") for i in range(6)}), Y),
    "Series of weights": (X, Y, pd.Series(np.linspace(0, 2, 50))),
    "SciPy": (scipy.sparse.csr_matrix(X * (X > 0)), Y),
    "sparse tensor": (tf.sparse.from_dense(X * (X > 0)), Y),
}


def test_arrays_train_as_in_keras_fit():
    """One trainer takes all, each kind from the first weights."""
    trainer = make_trainer()
    for epochs, (kind, data) in enumerate(ARRAYS.items()):
        trainer.model.set_weights(first_weights())
        trainer.fit(data, epochs=2 * epochs + 1, batch_size=BATCH, shuffle=False, progress=False)
        expected = keras_fit(data, epochs=1, batch_size=BATCH)
        for one, other in zip(weights_of(trainer), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6, err_msg=kind)  # sums in another order
        trainer.fit(data, epochs=2 * epochs + 2, batch_size=BATCH, progress=False)
        assert trainer.step == 7 * (2 * epochs + 2), f"shuffled {kind}"


def words(count=50):
    random = np.random.default_rng(0)
    rows = [random.integers(1, 9, random.integers(1, 6)).tolist() for _ in range(count)]
    return tf.ragged.constant(rows, dtype=tf.int32)


class Bag(L.Layer):
    """Embeddings of ragged word numbers, summed."""

    def __init__(self):
        super().__init__()
        self.table = self.add_weight(shape=(9, 4), initializer="glorot_uniform", name="table")

    def call(self, x):
        rows = tf.RaggedTensor.from_row_splits(tf.gather(self.table, x.flat_values), x.row_splits)
        return tf.reduce_sum(rows, 1)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.bag, self.out = Bag(), L.Dense(3)

    def call(self, x):
        return self.out(self.bag(x))


def sparse():
    return tf.sparse.from_dense(X * (X > 0))


COMPOSITE = {"ragged": (words, Subclassed), "sparse": (sparse, model)}
WAYS = {"replicas": {"strategy": "mirrored", "devices": 2}, "accumulate": {"accumulate": 3}}
WAYS["both"] = WAYS["replicas"] | WAYS["accumulate"]


def given(kind, form):
    """The same batches in a form of data, and options for `fit`."""
    x = COMPOSITE[kind][0]()
    if form == "arrays":
        return (x, Y), {"batch_size": 10, "shuffle": False}
    if form == "dataset":
        return tf.data.Dataset.from_tensor_slices((x, Y)).batch(10), {}
    batches = list(itertools.islice(make_source((x, Y), batch_size=10, shuffle=False, seed=0).open(0, 0), 5))
    return (lambda: iter(batches)), {}


def trained_on_composite(kind, form, **options):
    """Weights, predictions and results of an evaluation."""
    trainer = make_trainer(make_model=COMPOSITE[kind][1], precision="float64", execution="graph", **options)
    data, more = given(kind, form)
    trainer.fit(data, epochs=2, progress=False, **more)
    data, more = given(kind, form)
    more.pop("shuffle", None)
    results = trainer.evaluate(data, **more)
    rows = trainer.predict(data, **more)
    assert rows.shape == (50, 3)
    return [*weights_of(trainer), rows, np.array([results["loss"], results["examples"]])]


undivided = functools.cache(trained_on_composite)


# what divides a batch sees tensors: the forms of data, which only make them, are tried with one way each
@same_runs
@pytest.mark.parametrize(("form", "way"), [("arrays", "accumulate"), ("dataset", "replicas"), ("generator", "both")])
@pytest.mark.parametrize("kind", COMPOSITE)
def test_ragged_and_sparse_batches_are_divided(kind, form, way):
    found = trained_on_composite(kind, form, **WAYS[way])
    assert_equal_weights(found, undivided(kind, "arrays"), atol=1e-12)  # float64


def test_strings_and_dicts_of_columns():
    frame = pd.DataFrame({"size": X[:, 0].astype("float64"), "kind": np.where(Y > 0, "a", "b")})
    source = make_source((dict(frame), frame["size"]), batch_size=4, shuffle=False, seed=0)
    x, y = next(source.open(0, 0))
    assert x["kind"].dtype == tf.string
    assert x["size"].dtype == y.dtype == tf.float32
    with pytest.raises(looper.InputError, match=r"columns that make no one array \(size: float64, kind: .*dict"):
        make_source((frame, Y), batch_size=4, shuffle=False, seed=0)
    with pytest.raises(looper.InputError, match="an array of dtype object cannot be used"):
        make_source((np.array([{}, 1], object), Y[:2]), batch_size=4, shuffle=False, seed=0)


def two_inputs_in_a_list():
    a, b = keras.Input((4,)), keras.Input((2,))
    return keras.Model([a, b], models.L.Dense(3)(models.L.Concatenate()([a, b])))


def test_several_inputs_may_be_a_list_as_in_keras():
    """And the labels a list of numbers."""
    x, y = models.two_inputs_data()
    x = [x["a"], x["b"]]
    trainer = looper.Trainer(model=two_inputs_in_a_list, optimizer="sgd", loss=models.cross_entropy())
    reference = two_inputs_in_a_list()
    reference.compile("sgd", models.cross_entropy())
    reference.set_weights(trainer.model.get_weights())
    reference.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    data = (x, y.tolist())
    history = trainer.fit(data, batch_size=8, epochs=2, shuffle=False, eval_data=data, progress=False)
    for ours, theirs in zip(trainer.model.get_weights(), reference.get_weights(), strict=True):
        assert models.norm_difference(ours, theirs) < 1e-5  # float32
    assert history["eval/loss"][-1] == pytest.approx(reference.evaluate(x, y, verbose=0), rel=1e-5)
    np.testing.assert_allclose(trainer.predict(x), reference.predict(x, verbose=0), rtol=1e-4, atol=1e-6)
    assert trainer.audit(data).ok
    split = looper.Trainer(model=two_inputs_in_a_list, optimizer="sgd", loss=models.cross_entropy())
    split.fit((x, y), batch_size=8, epochs=1, validation_split=0.2, progress=False)
    assert split.history.rows[-1]["eval/examples"] == 10


def test_a_generator_serves_once():
    def endless():
        while True:
            yield from generator()

    expected = train(endless(), more={"epochs": None, "steps": 20})
    by_epochs = train(endless(), epochs=4, more={"steps_per_epoch": 5})
    assert_equal_weights(weights_of(by_epochs), weights_of(expected))
    with pytest.raises(looper.InputError, match=r"read only once, and epochs=3: give a function"):
        train(generator())
    assert train(generator(), epochs=1).step == 7
    trainer = make_trainer()
    with pytest.raises(looper.InputError, match="eval_data is a generator, which can be read only once"):
        trainer.fit((X, Y), epochs=1, eval_data=generator(), progress=False)
    once = generator()
    assert trainer.evaluate(once)["examples"] == 50
    with pytest.raises(looper.InputError, match="read only once"):
        trainer.evaluate(once)
    with pytest.raises(looper.InputError, match="the data ends after step 7, before steps=20"):
        train(generator(), more={"epochs": None, "steps": 20})


def test_what_cannot_be_continued_exactly_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"^the data is a generator, whose position cannot be saved: .*Give it state"):
        train(generator, workdir=tmp_path / "generator", epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Cursor(), workdir=tmp_path / "cursor", epochs=1)
        train(Batches(), workdir=tmp_path / "batches", epochs=1)


def test_evaluate_and_predict_take_the_same_data(tmp_path):
    trainer = make_trainer()
    expected, rows = trainer.evaluate((X, Y))["loss"], trainer.predict(X)
    given = {kind: make() for kind, make in BY_BATCH.items() if "cursor" not in kind and "endless" not in kind}
    given |= {kind: make(tmp_path) for kind, make in BY_EXAMPLE.items()}
    for kind, data in given.items():
        for _ in range(2):
            if isinstance(data, Batches):
                data.order = np.arange(50)
            results = trainer.evaluate(data)
            assert results["examples"] == 50, kind
            np.testing.assert_allclose(results["loss"], expected, rtol=1e-6, err_msg=kind)  # sums of other batches
            if isinstance(data, Batches):
                data.order = np.arange(50)
            np.testing.assert_allclose(trainer.predict(data), rows, rtol=0, atol=1e-6, err_msg=kind)


def test_errors_in_the_data_are_one_line():
    def breaks():
        yield X[:8], Y[:8]
        yield X[:8], Y[:8]
        raise OSError("the disk\nis gone")

    def changes(batch):
        yield X[:8], Y[:8]
        yield X[:8], Y[:8]
        yield batch

    def fails(make, message):
        with pytest.raises(looper.InputError, match=f"^{message}[^\n]*$"):
            train(make, epochs=1)

    fails(breaks, r"the data raised OSError: the disk \(steps? ")
    fails(lambda: changes((X[:8, :5], Y[:8])), r"the data yields a batch of float32\(8, 5\) where the first ones were")
    fails(lambda: changes(X[:8]), "the data yields batches of different structures")
    fails(lambda: iter([]), "the data is empty: it yielded 0 batches")
    fails(lambda: 7, "the data is a function that returned int: expected an iterable of batches")
    fails([(X[0], 1), (X[0, :5], 2)], "the examples of a batch have different shapes")
    with pytest.raises(looper.InputError, match="batch_size=8 is for arrays and examples: a PyDataset has"):
        train(Batches(), batch_size=8)


@functools.cache
def keras_validation_losses(fraction):
    theirs = model()
    theirs.set_weights(first_weights())
    theirs.compile(keras.optimizers.SGD(0.1), models.cross_entropy())
    fit = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    return theirs.fit(X, Y, validation_split=fraction, **fit).history["val_loss"]


# where the boundary is does not depend on the kind of data, nor how it is cut there on the boundary
@pytest.mark.parametrize(
    ("kind", "fraction"),
    [("arrays", 0.25), ("arrays", 0.3), ("map dataset", 0.3), ("HDF5", 0.3)],
)
def test_validation_split_is_that_of_keras(kind, fraction, tmp_path):
    data = (X, Y) if kind == "arrays" else BY_EXAMPLE[kind](tmp_path)
    trainer = make_trainer()
    history = trainer.fit(data, epochs=2, batch_size=BATCH, shuffle=False, validation_split=fraction, progress=False)
    # Keras' running mean is in float32
    np.testing.assert_allclose(history["eval/loss"], keras_validation_losses(fraction), rtol=1e-5)
    held_out = 50 - int(np.floor(50 * (1 - fraction)))
    assert trainer.history.rows[-1]["eval/examples"] == held_out


def test_validation_split_is_refused_where_it_has_no_meaning():
    def fails(message, data=(X, Y), **options):
        with pytest.raises(looper.InputError, match=message):
            make_trainer().fit(data, epochs=1, progress=False, **options)

    fails("validation_split=0.2 and eval_data: give one", validation_split=0.2, eval_data=(X, Y))
    fails("validation_split=1.5: expected a fraction", validation_split=1.5)
    fails(
        "validation_split=0.2 is for arrays and indexable data, and this is function", generator, validation_split=0.2
    )
    fails(
        "validation_split=0.2 is for arrays .* and this is .*Dataset",
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(5),
        validation_split=0.2,
    )
    fails("of 50 examples leaves nothing on one side", validation_split=0.99)


def test_evaluating_again_makes_no_new_functions():
    """`tf.data` keeps each Python function for good, so a pipeline per call would grow without end."""
    from tensorflow.python.eager import context  # private: TensorFlow 2.21 has no public count of functions

    trainer = make_trainer()
    data = {"arrays": (X, Y), "PyDataset": Batches(), "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)}

    def evaluate_all():
        for given in data.values():
            trainer.evaluate(given)
            trainer.evaluate(given, steps=2)
            trainer.predict(given)

    evaluate_all()
    before = len(context.context().list_function_names())
    for _ in range(5):
        evaluate_all()
    assert len(context.context().list_function_names()) == before


def test_arrays_that_were_written_to_are_evaluated_as_they_are_now():
    trainer = make_trainer()
    x, y = X.copy(), Y.copy()
    first = trainer.evaluate((x, y))["loss"]
    x[:] = x[::-1].copy()
    second = trainer.evaluate((x, y))["loss"]
    assert second != first
    assert second == make_trainer().evaluate((x, y))["loss"]


def test_the_beginning_of_the_data_is_evaluated_each_time():
    trainer = make_trainer()
    expected = trainer.evaluate((X[:16], Y[:16]), batch_size=8)
    for data in ((X, Y), Batches()):
        for _ in range(3):
            if isinstance(data, Batches):
                data.order = np.arange(50)
            assert trainer.evaluate(data, steps=2, batch_size=8 if isinstance(data, tuple) else None) == expected


ENDS = """
import keras, numpy as np, looper
numbers = np.random.default_rng(0)
def batches():
    while True:  # busy whenever there is room for a batch
        yield numbers.random((300, 12100), "f"), np.ones((300, 1), "f")
model = lambda: keras.Sequential([keras.Input((12100,)), keras.layers.Dense(1)])
def train(rate):
    trainer = looper.Trainer(model=model, optimizer=keras.optimizers.SGD(rate), loss="mse", execution="graph")
    trainer.fit(batches(), steps=60, progress=False)
train(1e-9)
print("trained", flush=True)
train(1e9)
"""


def test_python_ends_while_a_generator_is_read():
    """After training, and after an error in it: the process has both behind it, and ends with the error's status."""
    run = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stdout) == (1, "trained\n")
    assert "NonFiniteLossError" in run.stderr


def test_nested_lists_of_a_generator_are_one_array():
    def batches():
        for _ in range(3):
            yield np.ones((8, 1), "float32"), [[3.0]] * 8

    def run(**options):
        mine = line.trainer(**options)
        mine.fit(batches, epochs=1, progress=False)
        return line.weight(mine)

    assert run(accumulate=2) == pytest.approx(run(), rel=1e-6)


def windows(trainer):
    return [row["window"] for row in trainer.history.rows if "window" in row]


def test_how_many_batches_a_pydataset_has_is_asked_after_each_pass(tmp_path):
    """In one fit, in three of one trainer, and in a run that goes on from the middle of the second pass.

    Keras 3.15 goes by the first length where it grows.
    """
    fewer = make_trainer()
    fewer.fit(Changing(4, -1), epochs=3, progress=False)
    assert windows(fewer) == [4, 3, 2]
    whole = make_trainer()
    whole.fit(Changing(2, 1), epochs=3, progress=False)
    assert windows(whole) == [2, 3, 4]
    given, again = Changing(2, 1), make_trainer()
    for epochs in (1, 2, 3):
        again.fit(given, epochs=epochs, progress=False)
    assert windows(again) == [2, 3, 4]
    with pytest.raises(RuntimeError, match="stopped by the test"):
        make_trainer(workdir=tmp_path).fit(Changing(2, 1), epochs=3, progress=False, callbacks=[SaveAt(4)])
    gone_on = make_trainer(workdir=tmp_path)
    gone_on.fit(Changing(2, 1), epochs=3, progress=False)
    for other in (again, gone_on):
        assert other.step == 9
        for a, b in zip(other.model.weights, whole.model.weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_length_of_a_pydataset_is_asked_before_each_evaluation_as_in_keras():
    counted, evaluated = [], Changing(1, 0)

    def grow(epoch, logs=None):
        evaluated.batches = epoch + 2

    theirs = keras.callbacks.LambdaCallback(on_epoch_begin=grow)
    theirs.on_test_batch_end = lambda batch, logs=None: counted.append(batch)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), models.cross_entropy())
    model.fit(X, Y, epochs=3, validation_data=evaluated, verbose=0, callbacks=[theirs])
    mine = make_trainer()
    note = looper.callbacks.LambdaCallback(on_epoch_begin=grow)
    mine.fit((X, Y), epochs=3, eval_data=evaluated, callbacks=[note], progress=False)
    assert counted == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert mine.history["eval/examples"] == [2 * BATCH, 3 * BATCH, 4 * BATCH]
