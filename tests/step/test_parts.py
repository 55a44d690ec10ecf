"""Batches whose parts have different lengths: each part is divided by its own, or the run is refused in one line."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base import batches
from looper.data import make_source, zipped
from looper.data.stacks import Stacks, of_iterator
from looper.recipe import losses
from tests.support import inside

ONE = {"strategy": "one_device", "execution": "graph"}
TWO = {"strategy": "mirrored", "devices": 2, "execution": "graph"}
FOUR = TWO | {"accumulate": 2}
RANDOM = np.random.default_rng(0)
X, U = RANDOM.normal(size=(80, 3)), RANDOM.normal(size=(400, 3))
Y = X @ [1.0, 2.0, 3.0]
RATE = 0.05


def mean(values):
    return tf.reduce_mean(values)


def with_count(values):
    return tf.reduce_mean(values), tf.size(values)


FORMS = {
    "list": lambda near, far: [near, 0.5 * far],
    "scalar": lambda near, far: mean(near) + 0.5 * mean(far),
    "list of means with counts": lambda near, far: [with_count(near), with_count(0.5 * far)],
}


class Two(looper.Trainer):
    """Labelled examples pull the outputs to their labels, the others pull theirs to 0, half as much."""

    parts = ("labelled", "unlabelled")
    form = "list"

    def build(self):
        self.w = tf.Variable(np.ones(3))
        self.optimizer = keras.optimizers.SGD(RATE)
        self.optimizer.build([self.w])

    def errors(self, batch):
        (x, y), u = batch["labelled"], batch["unlabelled"]
        return tf.square(tf.linalg.matvec(x, self.w) - y), tf.square(tf.linalg.matvec(u, self.w))

    def compute_loss(self, batch, training):
        near, far = self.errors(batch)
        return FORMS[self.form](near, far), {"far": far}

    def predict_step(self, batch):
        return {"near": tf.linalg.matvec(batch["labelled"][0], self.w)}


class Own(Two):
    def train_step(self, batch):
        with tf.GradientTape(persistent=True) as tape:
            near, far = self.errors(batch)
            loss = FORMS[self.form](near, far)
        self.minimize(loss, tape)
        return {"loss": loss, "far": far}


def batches_of(*sizes):
    """Batches of so many labelled and unlabelled examples."""
    ends = np.cumsum([(0, 0), *sizes], 0)
    return [{"labelled": (X[a:c], Y[a:c]), "unlabelled": U[b:d]} for (a, b), (c, d) in itertools.pairwise(ends)]


def slopes(batch, w):
    (x, y), u = batch["labelled"], batch["unlabelled"]
    near, far = x @ w - y, u @ w
    loss = (near**2).mean() + 0.5 * (far**2).mean()
    return 2 * x.T @ near / len(x) + u.T @ far / len(u), loss, (far**2).mean()


def by_hand(all_batches):
    """Gradient descent in NumPy: the weights, and of each step the loss and the log."""
    w, logs = np.ones(3), []
    for batch in all_batches:
        slope, loss, far = slopes(batch, w)
        logs.append((loss, far))
        w = w - RATE * slope
    return w, np.array(logs).T


def trained(kind, data, form="list", **options):
    class Recipe(kind):
        pass

    Recipe.__name__, Recipe.form = kind.__name__, form
    trainer = Recipe(precision="float64", **options)
    trainer.fit(data, epochs=1, shuffle=False, progress=False, log_every=looper.Every(steps=1))
    return trainer


def check(trainer, all_batches):
    w, (loss, far) = by_hand(all_batches)
    for copy in trainer.strategy.experimental_local_results(trainer.w):
        np.testing.assert_allclose(copy.numpy(), w, atol=1e-9)
    np.testing.assert_allclose(trainer.history["loss"], loss, atol=1e-9)
    np.testing.assert_allclose(trainer.history["far"], far, atol=1e-9)


def numbers(trainer):
    """The weights: of each replica the same."""
    first, *others = (copy.numpy() for copy in trainer.strategy.experimental_local_results(trainer.w))
    assert all(np.array_equal(first, other) for other in others)
    return first


@pytest.mark.parametrize(
    ("kind", "form", "sizes", "options"),
    [
        (Two, "list", [(8, 32), (5, 16), (32, 8), (3, 7)], TWO),
        (Two, "list", [(8, 32), (5, 16), (1, 32), (32, 8)], ONE | {"accumulate": 2}),
        (Two, "list", [(8, 32), (5, 16), (2, 31)], FOUR),
        (Two, "list of means with counts", [(5, 16), (32, 8)], TWO),
        (Two, "scalar", [(8, 32), (32, 8)], FOUR),
        (Two, "scalar", [(5, 16), (1, 32)], ONE),
        (Two, "scalar", [(8, 32), (8, 16)], ONE | {"accumulate": 2, "execution": "xla_step"}),
        (Two, "list", [(5, 16)], TWO | {"execution": "xla_step"}),
        (Two, "list", [(8, 32), (8, 32), (5, 16)], ONE | {"execution": "xla_loop"}),
        (Two, "list", [(5, 16), (1, 32)], ONE | {"execution": "eager", "accumulate": 2}),
        (Own, "list", [(5, 16), (32, 8)], TWO),
        (Own, "scalar", [(8, 32), (2, 6)], TWO),
    ],
)
def test_each_part_is_divided_by_its_own_length(kind, form, sizes, options):
    """Against a loop in NumPy."""
    data = batches_of(*sizes)
    check(trained(kind, lambda: iter(data), form, **options), data)


@pytest.mark.parametrize("execution", ["graph", "xla_loop"])
def test_stacks_keep_the_size_of_each_part(execution):
    """What is zipped gives whole stacks, and its last batch has fewer labelled examples; a second epoch goes on."""
    data = zipped(labelled=(X[:21], Y[:21]), unlabelled=U[:50], batch_size={"labelled": 8, "unlabelled": 32})
    trainer = trained(Two, data, strategy="one_device", execution=execution, accumulate=2)
    assert isinstance(inside.feed(trainer).iterator, Stacks)
    stream = np.concatenate([U[:50]] * 2)
    expected = [
        {"labelled": (X[a:b], Y[a:b]), "unlabelled": stream[32 * i : 32 * i + 32]}
        for i, (a, b) in enumerate([(0, 8), (8, 16), (16, 21)])
    ]
    check(trainer, expected)


def test_positions_of_a_tuple_and_what_is_not_named():
    """Position 2 has a length of its own; the others have one together."""

    class Pulled(Two):
        parts = (2,)

        def errors(self, batch):
            return super().errors({"labelled": batch[:2], "unlabelled": batch[2]})

    data = batches_of((8, 32), (5, 16))
    trainer = trained(Pulled, lambda: iter([(*batch["labelled"], batch["unlabelled"]) for batch in data]), **TWO)
    np.testing.assert_allclose(numbers(trainer), by_hand(data)[0], atol=1e-9)


def test_ragged_and_sparse_parts():
    words = tf.RaggedTensor.from_row_lengths(tf.range(24.0), [1, 2, 3, 4, 5, 9])
    some, count = batches.cut(
        {"a": words, "b": tf.sparse.eye(10)}, lambda length: (length // 2, length), parts=["a", "b"]
    )
    assert int(count) == 3
    assert some["a"].row_lengths().numpy().tolist() == [4, 5, 9]
    assert tf.sparse.to_dense(some["b"]).shape == [5, 10]
    assert batches.why_not_cut((words, tf.sparse.eye(10))).startswith("the batch's parts have 6 and 10 examples")


class Undeclared(Two):
    parts = ()


def zip_of(sizes, known):
    """8 labelled and 32 unlabelled examples or the like, by `Dataset.zip`, of known or unknown sizes."""
    of = tf.data.Dataset.from_tensor_slices
    pairs = zip((of((X[:32], Y[:32])), of(U)), sizes, strict=True)
    labelled, unlabelled = (part.batch(size, drop_remainder=known) for part, size in pairs)
    return tf.data.Dataset.zip({"labelled": labelled, "unlabelled": unlabelled})


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "options", [TWO, ONE | {"accumulate": 2}, ONE | {"accumulate": 2, "execution": "xla_step"}], ids=str
)
def test_what_is_not_declared_is_refused_in_one_line(options, known):
    trainer = Undeclared(precision="float64", **options)
    with pytest.raises(looper.InputError, match=r"parts have 8 and 32 examples: declare them with parts = .*zipped"):
        trainer.fit(zip_of((8, 32), known), epochs=1, progress=False)
    np.testing.assert_array_equal(numbers(trainer), np.ones(3))


def test_what_belongs_to_the_whole_batch_is_refused():
    """Three weights, one for each class, are no examples."""

    class Weighted(Undeclared):
        def errors(self, batch):
            (x, y), _ = batch
            return tf.square(tf.linalg.matvec(x, self.w) - y), x

    data = lambda: iter([((X[:8], Y[:8]), np.ones(3))] * 2)  # noqa: E731
    with pytest.raises(looper.InputError, match="parts have 8 and 3 examples"):
        trained(Weighted, data, **TWO)


@pytest.mark.parametrize("known", [True, False])
def test_an_xla_loop_over_what_is_not_declared_goes_on_in_the_graph(known):
    """Which cuts nothing on one device."""
    with pytest.warns(UserWarning, match="parts have 8 and 32 examples"):
        trainer = trained(Undeclared, zip_of((8, 32), known), **ONE | {"execution": "xla_loop"})
    np.testing.assert_allclose(numbers(trainer), by_hand(batches_of(*[(8, 32)] * 4))[0], atol=1e-9)


def test_a_stack_of_what_is_not_declared_is_refused():
    """The first batch cannot show it here."""
    sizes = tf.data.Dataset.from_tensor_slices([3, 4])
    uneven = sizes.map(lambda n: (tf.zeros([n]), tf.zeros([3])))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"looper: the batch.*parts have 4 and 3 examples"):
        Stacks(of_iterator(iter(uneven), 2), 2).take(2)
    part = Stacks(of_iterator(iter(uneven), 2, parts=(0, 1)), 2).take(2)
    assert part.sizes == [(3, 3), (4, 3)]
    assert [leaf.shape[0] for leaf in part.batch(0)] == [3, 3]


SCALAR = "return the values, not their mean"


@pytest.mark.parametrize(
    ("kind", "sizes", "options"),
    [
        (Two, (5, 16), TWO),
        (Two, (2, 7), ONE | {"accumulate": 2}),
        (Two, (5, 16), ONE | {"accumulate": 2, "execution": "xla_step"}),
        (Two, (5, 16), ONE | {"accumulate": 2, "execution": "xla_loop"}),
        (Own, (5, 16), TWO),
    ],
    ids=str,
)
def test_a_scalar_over_parts_that_do_not_divide_evenly_is_refused(kind, sizes, options):
    with pytest.raises(looper.InputError, match=rf"loss is a scalar.*{sizes[0]} and {sizes[1]}.*{SCALAR}"):
        trained(kind, lambda: iter(batches_of(sizes, sizes)), "scalar", **options)


def test_where_sizes_are_known_a_scalar_is_refused_before_the_first_step():
    with pytest.raises(looper.InputError, match=rf"{SCALAR}, or a pair \(mean, number of examples\)\.$"):
        trained(Two, zip_of((5, 16), known=True), "scalar", **TWO)


def test_a_scalar_log_is_refused_and_a_number_is_not():
    class Logs(Two):
        def compute_loss(self, batch, training):
            near, far = self.errors(batch)
            return [near, 0.5 * far], {"temperature": 0.5, **self.more(near)}

    Logs.more = staticmethod(lambda near: {})
    data = batches_of((5, 16))
    assert trained(Logs, lambda: iter(data), **TWO).history["temperature"] == [0.5]
    Logs.more = staticmethod(lambda near: {"nearness": mean(near)})
    with pytest.raises(looper.InputError, match=f"nearness is a scalar.*{SCALAR}"):
        trained(Logs, lambda: iter(data), **TWO)
    with pytest.raises(looper.InputError, match=f"nearness is a scalar.*{SCALAR}"):
        Logs(precision="float64", **TWO).evaluate(lambda: iter(data))


@pytest.mark.parametrize("options", [TWO, FOUR])
def test_a_part_with_fewer_examples_than_replicas(options):
    """The batch goes to both replicas as it is, and counts on the first."""
    all_batches = batches_of((16, 4), (16, 1), (1, 8))
    for form in ("list", "list of means with counts"):  # a mean over none of a part would be NaN
        check(trained(Two, lambda: iter(all_batches), form, **options), all_batches)


def test_evaluation_and_prediction_divide_parts_too():
    data = batches_of((8, 32), (5, 16))
    trainer = Two(precision="float64", **TWO)
    found = trainer.evaluate(lambda: iter(data))
    x, y, u = X[:13], Y[:13], U[:48]
    far = ((u @ np.ones(3)) ** 2).mean()
    np.testing.assert_allclose(found["loss"], ((x @ np.ones(3) - y) ** 2).mean() + 0.5 * far, atol=1e-9)
    np.testing.assert_allclose(found["far"], far, atol=1e-9)
    assert found["examples"] == 13
    np.testing.assert_allclose(trainer.predict(lambda: iter(data))["near"], x @ np.ones(3), atol=1e-9)


def test_plain_evaluation_data_for_a_recipe_with_parts():
    class Plain(Two):
        def eval_step(self, batch):
            x, y = batch
            error = tf.square(tf.linalg.matvec(x, self.w) - y)
            return {"loss": error, "mean": tf.reduce_mean(error)}

    trainer = Plain(precision="float64", **TWO)
    expected = ((X[:13] @ np.ones(3) - Y[:13]) ** 2).mean()
    for value in (trainer.evaluate((X[:13], Y[:13]), batch_size=8)[name] for name in ("loss", "mean")):
        np.testing.assert_allclose(value, expected, atol=1e-9)


def test_audits_and_check_replicas_take_batches_with_parts():
    batch = batches_of((5, 16))[0]
    trainer = Two(precision="float64", **TWO)
    assert trainer.audit(batch).ok
    report = trainer.check_replicas(batch)
    assert (report.verdict, report.examples) == ("equal", 5)
    trainer.form = "scalar"
    with pytest.raises(looper.InputError, match=SCALAR):
        trainer.check_replicas(batch)
    refused = Undeclared(precision="float64", **TWO)
    with pytest.raises(looper.InputError, match="different numbers of examples"):
        refused.check_replicas(batch)


def test_losses_of_several_parts_by_a_model_add_up():
    """`super().compute_loss` divides by the examples of the part that it is given, with the model's regularization."""

    class Both(looper.Trainer):
        parts = ("a", "b")

        def compute_loss(self, batch, training):
            return 0.5 * super().compute_loss(batch["b"], training) + super().compute_loss(batch["a"], training)

    def model():
        dense = keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(0.1))
        return keras.Sequential([keras.Input((3,)), dense])

    def run(**options):
        sgd = lambda: keras.optimizers.SGD(0.05)  # noqa: E731
        trainer = Both(model=model, optimizer=sgd, loss="mse", precision="float64", **options)
        pairs = [
            {"a": (X[:5], Y[:5]), "b": (U[:16], U[:16, 0])},
            {"a": (X[5:13], Y[5:13]), "b": (U[16:22], U[16:22, 0])},
        ]
        history = trainer.fit(lambda: iter(pairs), epochs=1, progress=False, log_every=looper.Every(steps=1))
        return trainer.model.get_weights(), history["loss"], pairs

    weights, loss, pairs = run(**ONE)
    kernel, bias, expected = np.ones(3), 0.0, []
    for pair in pairs:
        slope, shift, total = 0.3 * kernel, 0.0, 0.15 * (kernel**2).sum()
        for factor, (x, y) in zip((1, 0.5), (pair["a"], pair["b"]), strict=True):
            error = x @ kernel + bias - y
            total += factor * (error**2).mean()
            slope, shift = slope + factor * 2 * x.T @ error / len(x), shift + factor * 2 * error.mean()
        kernel, bias = kernel - 0.05 * slope, bias - 0.05 * shift
        expected.append(total)
    np.testing.assert_allclose(loss, expected, atol=1e-9)
    np.testing.assert_allclose(weights[0][:, 0], kernel, atol=1e-9)
    for options in (TWO, ONE | {"accumulate": 2}):
        others, other_loss, _ = run(**options)
        np.testing.assert_allclose(other_loss, loss, atol=1e-9)
        for one, other in zip(weights, others, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)


def test_a_list_of_losses_is_the_sum_of_their_means():
    terms = losses.as_terms("loss", [tf.constant([1.0, 3.0]), (tf.constant([5.0]), 2.0), tf.constant(1.0)], 4)
    assert [float(term.total / term.divisor) for term in terms] == [2.0, 5.0, 1.0]
    assert {term.group for term in terms} == {None}


def test_nothing_is_looked_at_where_sizes_are_known_or_nothing_is_cut():
    def checks(trainer, data):
        trainer.fit(data, epochs=1, progress=False)
        [execution] = inside.executions(trainer, "train")
        return inside.operations(trainer, execution)["Assert"]

    fixed = tf.data.Dataset.from_tensor_slices((X[:32], Y[:32])).batch(8, drop_remainder=True)
    varying = tf.data.Dataset.from_tensor_slices((X[:32], Y[:32])).batch(8)

    def make(**options):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        return looper.Trainer(model=model, optimizer="sgd", loss="mse", **options)

    assert checks(make(accumulate=2, **ONE), fixed) == 0
    assert checks(make(**ONE), varying) == 0
    assert checks(make(accumulate=2, **ONE), varying) > 0


def test_the_shortest_part_must_have_an_example_for_each_replica():
    source = make_source(zipped(a=X, b=U, batch_size={"a": 8, "b": 1}), batch_size=None, shuffle=True, seed=0)
    assert (source.smallest_batch, source.largest_batch) == (1, 1)


@pytest.mark.parametrize("parts", ["labelled", [1.5], None])
def test_what_names_no_parts_is_one_line(parts):
    class Wrong(Two):
        pass

    Wrong.parts = parts
    with pytest.raises(
        looper.InputError, match=r"parts=.*: expected names of parts, such as \('labelled', 'unlabelled'\)"
    ):
        Wrong()
