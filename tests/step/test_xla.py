"""Training in XLA programs: the same numbers as in the graph, nothing lost at a boundary, and a way out."""

import functools
import gc
import itertools
import signal
import threading
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.base import xla
from looper.data import make_source
from looper.data.feed import Feed
from looper.data.stacks import Stacks, of_iterator
from looper.saved import checkpoint
from looper.saved.variables import State
from looper.step import gradients
from looper.step.programs import Execution, StackedExecution, Step
from looper.step.rows import sum_repeated
from looper.step.trial import Modes
from tests.support import inside, models
from tests.support.recipes import Noisy
from tests.support.stopping import (
    SPEEDS,
    Stop,
    arrays,
    assert_same,
    dataset,
    everything,
    train,
)

L = keras.layers
MODES = ["xla_step", "xla_loop"]
same_baselines = pytest.mark.xdist_group("baselines of XLA")


def weighted_by_name():
    x, y = models.two_inputs_data(examples=16)
    return x, y, np.linspace(0.5, 2.0, 16).astype("float32")


def small(*shape, examples=16):
    return models.data(*shape, examples=examples)


def uneven():
    """The last batch of 8 is smaller, so that XLA compiles a second program."""
    return small(examples=20)


def words():
    random = np.random.default_rng(3)
    return random.integers(0, 20, (16, 5)), random.integers(0, 3, 16)


def embedding():
    """Its gradients are sparse."""
    return keras.Sequential([keras.Input((5,), dtype="int32"), L.Embedding(20, 4), L.Flatten(), L.Dense(3)])


def plain():
    return keras.Sequential([keras.Input((6,)), L.Dense(4, activation="relu"), L.Dense(3)])


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def dropping():
    """Draws random numbers, and is soon compiled."""
    return keras.Sequential([keras.Input((6,)), L.Dense(4, activation="relu"), L.Dropout(0.5), L.Dense(3)])


def with_dropout(**options):
    return looper.Trainer(model=dropping, optimizer=sgd, loss=models.cross_entropy, **options)


CASES = {
    "batch normalization, gradient accumulation of Keras, clipped by value": (
        models.dense,
        uneven,
        {
            "optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
            "clip_value": 0.01,
        },
    ),
    "convolution": (models.convolutional, lambda: small((6, 6, 1)), {"drop": True}),
    "two inputs by name, weighted, double precision, averages, AdamW": (
        models.two_inputs,
        weighted_by_name,
        {"drop": True, "precision": "float64", "ema": 0.9, "optimizer": lambda: keras.optimizers.AdamW(0.01)},
    ),
    "embedding, clipped": (embedding, words, {"clip_norm": 0.1}),
    "accumulation, clipped by norm": (plain, small, {"accumulate": 3, "clip_norm": 0.5}),
    "loss scale": (plain, small, {"precision": "mixed_float16"}),
}
"""What goes together without hiding a mistake is one case."""

IN_STEPS = ["batch normalization, gradient accumulation of Keras, clipped by value", "convolution"]
"""The others are compared so on two replicas."""

IN_LOOPS = [name for name in CASES if name != "convolution"]
"""A loop runs the program of a step: what has conditions, loops and state of its own is tried inside it."""


def without_dropout(make):
    """The same model with its dropout off: XLA draws other masks than the graph."""

    def model():
        made = make()
        for layer in made.layers:
            if isinstance(layer, L.Dropout):
                layer.rate = 0.0
        return made

    return model


def run(execution, make_model, data, optimizer=sgd, drop=False, **options):
    """Two passes in batches of 8. Returns the trainer, the logs and the model's variables."""
    trainer = looper.Trainer(
        model=without_dropout(make_model) if drop else make_model,
        optimizer=optimizer,
        loss=models.cross_entropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")],
        execution=execution,
        **options,
    )
    every_step = looper.Every(steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that XLA cannot
        trainer.fit(data, epochs=2, batch_size=8, log_every=every_step, progress=False)  # evaluation is in the graph
    rows = [{k: v for k, v in row.items() if k not in SPEEDS} for row in trainer.history.rows]
    return trainer, rows, [v.numpy() for v in trainer.model.variables if "seed" not in v.path]


@functools.cache
def in_the_graph(case):
    """The logs and variables of a case, trained once for all modes."""
    make_model, make_data, options = CASES[case]
    return run("graph", make_model, make_data(), **options)[1:]


def as_in_the_graph(case, mode, **more):
    """Trains a case in a mode, and compares. Returns the trainer."""
    make_model, make_data, options = CASES[case]
    rows, variables = in_the_graph(case)
    trainer, found, ends = run(mode, make_model, make_data(), **options, **more)
    # float16 rounds at 5e-4, and XLA fuses what the graph rounds in between
    tolerance = 5e-3 if options.get("precision") == "mixed_float16" else 1e-5
    assert [row.keys() for row in found] == [row.keys() for row in rows]
    for mine, theirs in zip(found, rows, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    for mine, theirs in zip(ends, variables, strict=True):
        assert models.norm_difference(mine, theirs) < tolerance
    assert inside.mode(trainer) == mode
    return trainer


@same_baselines
@pytest.mark.parametrize(
    ("case", "mode"), [(case, "xla_step") for case in IN_STEPS] + [(case, "xla_loop") for case in IN_LOOPS]
)
def test_same_numbers_as_in_the_graph(case, mode):
    as_in_the_graph(case, mode)


def test_stopped_in_the_middle_of_a_stack_and_continued(tmp_path):
    """And dropout does not depend on where a stack is cut: the rest runs three steps at a time."""
    options = {"execution": "xla_loop", "epochs": 2, "model": dropping, "optimizer": sgd}
    whole = everything(train(tmp_path / "whole", arrays, **options))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", arrays, [Stop(3, signal.SIGINT)], **options)
    assert checkpoint.list_checkpoints(tmp_path / "parts" / "checkpoints")
    assert_same(everything(train(tmp_path / "parts", arrays, **options, steps_per_execution=3)), whole)


@pytest.mark.parametrize("make_data", [arrays, dataset])
def test_several_fits_in_one_process_equal_one(make_data):
    twice, once = (with_dropout(execution="xla_loop") for _ in range(2))
    data, size = make_data(), 8 if make_data is arrays else None
    for steps in (2, 6):
        twice.fit(data, steps=steps, batch_size=size, progress=False)
    once.fit(make_data(), steps=6, batch_size=size, progress=False)
    for mine, theirs in zip(twice.model.variables, once.model.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # how large a stack is to be is known of arrays at once; of a dataset when it is read, so it begins in the graph
    first_in_graph = make_data is dataset
    assert [e.traces for e in inside.executions(twice)] == [1] * (1 + first_in_graph)


def test_another_mode_does_not_continue_a_run(tmp_path):
    seen(Batches(execution="xla_step", workdir=tmp_path), numbers(2), epochs=1)
    with pytest.raises(looper.InputError, match="execution"):
        seen(Batches(execution="xla_loop", workdir=tmp_path), numbers(2), epochs=1)


def noisy_run(execution):
    trainer = Noisy(execution=execution)
    trainer.fit(arrays(), epochs=2, batch_size=8, progress=False)
    return everything(trainer)


noisy_in_the_graph = functools.cache(functools.partial(noisy_run, "graph"))


@same_baselines
@pytest.mark.parametrize("mode", MODES)
def test_what_xla_cannot_compile_is_named_and_nothing_is_lost(mode):
    with pytest.warns(UserWarning, match=f"execution='{mode}': XLA cannot compile the operations? .*AsString.*'graph'"):
        found = noisy_run(mode)
    assert_same(found, noisy_in_the_graph())


def test_a_step_that_xla_refuses_on_two_replicas_has_changed_nothing():
    """Only forward and backward are XLA programs there: the count of the steps, say, does not wait for them."""

    class Refused(looper.Trainer):
        def compute_loss(self, batch, training):
            text = tf.strings.as_string(batch[1])
            return super().compute_loss(batch, training) + 0.0 * tf.cast(tf.strings.length(text)[0], tf.float32)

    def fit(execution):
        two = {"strategy": "mirrored", "devices": 2, "execution": execution}
        more = {"accumulate": 2, "ema": 0.9}  # which count, too
        trainer = Refused(model=plain, optimizer="nadam", loss=models.cross_entropy, **two, **more)
        trainer.fit(small(), epochs=1, batch_size=8, progress=False)
        return everything(trainer)

    expected = fit("graph")
    with pytest.warns(UserWarning, match="execution='xla_step': XLA cannot compile the operation AsString"):
        assert_same(fit("xla_step"), expected)


@pytest.mark.parametrize(("mode", "many"), [("xla_step", 1), ("xla_loop", 4)])
def test_no_batch_is_lost_to_a_step_that_xla_refuses(mode, many, monkeypatch):
    """The logs are means over `many` steps, which are one execution."""
    tried, why_not = [], Modes._try
    monkeypatch.setattr(Modes, "_try", lambda self, *of: tried.append(of) or why_not(self, *of))

    class Refused(Batches):
        def compute_loss(self, batch, training):
            text = tf.strings.as_string(batch[0, 0])
            return super().compute_loss(batch, training) + 0.0 * tf.strings.to_number(text)

    def generated():
        yield from (np.full([2, 3], i, "float32") for i in range(12))

    large = np.repeat(np.arange(24.0, dtype="float32") // 2, 20_000).reshape(24, 20_000)  # not stacked in the graph
    expected = np.arange(12.0).reshape(-1, many).mean(1).tolist()
    datasets = [numbers(12), generated] if mode == "xla_loop" else [numbers(12).filter(lambda x: x[0, 0] >= 0)]
    for data, options in [
        *((data, {}) for data in datasets),
        (large[:, :3], {"batch_size": 2, "shuffle": False}),
        (large, {"batch_size": 2, "shuffle": False}),
    ]:
        trainer = Refused(execution=mode, steps_per_execution=many)
        tried.clear()
        with pytest.warns(UserWarning, match=f"execution='{mode}': XLA cannot compile") as said:
            assert seen(trainer, data, many, epochs=1, **options) == expected
        assert [warning.filename for warning in said] == [__file__]  # the line with `fit`
        assert seen(trainer, data, many, epochs=2, **options) == expected * 2
        assert len(tried) == 1


def test_a_step_in_xla_is_not_run_to_try_it(monkeypatch):
    """A state that is put back has to be held twice."""
    monkeypatch.setattr(State, "restore", None)
    trainer = Batches(execution="xla_step")
    assert seen(trainer, numbers(3), epochs=1) == [0, 1, 2]
    assert inside.modes_compiled(trainer) == ["xla_step"]


def test_the_step_that_compiles_is_startup_and_not_part_of_the_speed():
    trainer = Batches(execution="xla_step")
    seen(trainer, numbers(4), every=4, epochs=1)
    seconds = trainer.ledger.seconds
    [speed] = trainer.history["steps_per_second"]
    assert 3 / speed <= sum(seconds.values()) - seconds["startup"]  # compiling takes many times as long


def test_a_short_rest_of_a_pass_is_not_what_modes_are_timed_on():
    """One call for each step would be counted."""
    feed = Feed(make_source(np.arange(45.0), batch_size=8, shuffle=False, seed=0))
    options = {"make": None, "replicas": 1, "own_step": False, "from_chief": float, "step": 0, "between": None}
    assert Modes(feed=feed, **options)._stacks(6).take(6).count == 5  # the last of six is smaller
    feed.iterator.take(5)
    feed.advance(5)
    part = Modes(feed=feed, **options)._stacks(6).take(6)
    assert part.count == 6
    assert part.batch(5).numpy().tolist() == list(range(40, 45))


def test_a_mirrored_strategy_of_one_device_draws_the_same():
    """It traces in a thread of its own."""
    mode = "xla_loop"

    def fit(**strategy):
        trainer = with_dropout(execution=mode, **strategy)
        trainer.fit(arrays(), steps=5, batch_size=8, progress=False)
        assert inside.mode(trainer) == mode
        return trainer

    mirrored = fit(strategy=tf.distribute.MirroredStrategy(["CPU:0"]))
    assert_same(everything(mirrored), everything(fit()))


def test_what_was_held_to_try_a_mode_is_let_go():
    held = []

    class Look(looper.callbacks.Callback):
        every = looper.Every(steps=5)

        def on_step(self, step, logs):
            gc.collect()
            held.extend(thing for thing in gc.get_objects() if isinstance(thing, Modes) and thing._held)

    seen(Batches(execution="xla_loop"), np.zeros([20, 3], "float32"), steps=10, batch_size=2, callbacks=[Look()])
    assert held == []


def test_batches_that_cannot_be_stacked_are_trained_in_the_graph():
    lengths = [3, 5, 4]
    data = tf.data.Dataset.from_generator(
        lambda: ((np.ones((2, n, 6), "float32"), np.zeros((2, n), "int32")) for n in lengths),
        output_signature=(tf.TensorSpec([None, None, 6]), tf.TensorSpec([None, None], tf.int32)),
    )
    model = keras.Sequential([keras.Input((None, 6)), L.Dense(3)])
    trainer = looper.Trainer(model=model, optimizer="sgd", loss=models.cross_entropy, execution="xla_loop")
    with pytest.warns(UserWarning, match="differ in more than the number of examples; training goes on with 'graph'"):
        trainer.fit(data, steps=3, progress=False)
    assert trainer.step == 3


def test_loops_on_several_replicas_are_refused():
    with pytest.raises(looper.InputError, match=r"execution='xla_loop' is for one device, as .* and there are 2"):
        looper.Trainer(strategy="mirrored", devices=2, execution="xla_loop")


@same_baselines
@pytest.mark.parametrize(
    "case",
    [
        "two inputs by name, weighted, double precision, averages, AdamW",
        "loss scale",
    ],
)
def test_same_numbers_as_in_the_graph_on_two_replicas(case):
    """Those of one device: losses, accumulation and precision are of the XLA programs, updates of the graph."""
    trainer = as_in_the_graph(case, "xla_step", strategy="mirrored", devices=2)
    (in_xla,) = inside.executions_in(trainer, "xla_step")
    library = inside.graph(in_xla, inside.feed(trainer).source.element_spec).library
    assert any(function.attr["_XlaMustCompile"].b for function in library.function)


def test_replicas_in_xla_draw_different_masks(tmp_path):
    class Masks(looper.Trainer):
        def build(self):
            self.model = keras.Sequential([keras.Input((8,)), L.Dropout(0.5), L.Dense(1)])
            self.optimizer = keras.optimizers.SGD(0.0)
            self.masks = [
                tf.Variable(
                    tf.zeros([4, 8]),
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.NONE,
                )
            ]

        def compute_loss(self, batch, training):
            self.masks[0].assign(self.model.layers[0](tf.ones([4, 8]), training=training))
            return self.model(batch, training=training)

    trainer = Masks(strategy="mirrored", devices=2, execution="xla_step")
    trainer.fit(np.ones((8, 8), "float32"), steps=1, batch_size=8, progress=False)
    first, second = (v.numpy() for v in trainer.strategy.experimental_local_results(trainer.masks[0]))
    assert set(np.unique(first)) == set(np.unique(second)) == {0.0, 2.0}
    assert (first != second).any()


def test_what_replicas_exchange_in_the_forward_pass_is_left_to_the_graph():
    def model():
        return keras.Sequential([keras.Input((6,)), L.BatchNormalization(synchronized=True), L.Dense(3)])

    trainer = looper.Trainer(
        model=model, optimizer="sgd", loss=models.cross_entropy, strategy="mirrored", devices=2, execution="xla_step"
    )
    with pytest.warns(UserWarning, match="XLA cannot have what replicas exchange in the forward pass: .*'graph'"):
        trainer.fit(models.data(), epochs=1, batch_size=8, progress=False)
    assert trainer.epoch == 1


def test_an_own_step_on_several_replicas_is_left_to_the_graph():
    class Own(looper.Trainer):
        def build(self):
            self.model, self.optimizer = models.dense(norm=False), keras.optimizers.SGD(0.1)

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = models.cross_entropy()(batch[1], self.model(batch[0], training=True))
            self.apply_gradients(zip(self.gradients(loss, tape), self.model.trainable_variables, strict=True))
            return {"loss": loss}

    trainer = Own(strategy="mirrored", devices=2, execution="xla_step")
    with pytest.warns(UserWarning, match="calls gradients and apply_gradients: it reduces over the 2 replicas"):
        trainer.fit(models.data(), epochs=1, batch_size=8, progress=False)


def algorithms(function, *arguments):
    """The algorithms that a program draws with: 2 is ThreeFry, 3 TensorFlow's choice."""
    operations = function.get_concrete_function(*arguments).graph.get_operations()
    places = {"StatelessRandomUniformV2": 3, "StatelessRandomNormalV2": 3, "StatelessTruncatedNormalV2": 3}
    return {int(tf.get_static_value(op.inputs[places[op.type]])) for op in operations if op.type in places}


@pytest.mark.parametrize("kind", [L.Dropout, L.SpatialDropout1D, L.GaussianNoise, L.AlphaDropout])
def test_random_numbers_in_xla_are_drawn_with_threefry(kind):
    x, layer = tf.ones([4, 3, 2]), kind(0.5, seed=1)
    layer.build(x.shape)
    before = [getattr(module, name) for module, name, _ in xla.SAMPLERS]
    program = xla.program(lambda x: layer(x, training=True))
    assert not np.array_equal(program(x), x)
    assert algorithms(program, x) == {2}
    assert algorithms(tf.function(lambda x: layer(x, training=True)), x) == {3}
    assert [getattr(module, name) for module, name, _ in xla.SAMPLERS] == before


@pytest.mark.parametrize("joined", [0, 10, 1000])
def test_the_norm_of_gradients_in_xla_is_that_of_the_graph(joined, monkeypatch):
    """It is added up in another order there, of small tensors together."""
    monkeypatch.setattr(gradients, "JOINED", joined)
    random = np.random.default_rng(0)
    shapes = [(), (1,), (7,), (3, 7), (5, 1), (2, 3, 4, 7), (0, 7)]
    dtypes = ["float32", "float32", "bfloat16", "float16", "float32", "float64", "float32"]
    found = [tf.constant(random.normal(size=s), d) for s, d in zip(shapes, dtypes, strict=True)]
    rows = tf.IndexedSlices(tf.ones([3, 4]), tf.constant([5, 0, 5]), tf.constant([8, 4]))  # row 5 occurs twice

    def norm(*tensors):
        return gradients.global_norm([*tensors, sum_repeated(rows)])

    unknown = [tf.TensorSpec([None] * len(f.shape), f.dtype) for f in found]
    ways = tf.function(norm), xla.program(norm), xla.program(norm, unknown)
    good = found[3]
    for bad in (None, float("inf"), float("nan")):
        if bad is not None:
            found[3] = tf.tensor_scatter_nd_update(good, [[1, 2]], tf.constant([bad], "float16"))
        by_numpy = np.sqrt(sum(np.sum(f.numpy().astype("float64") ** 2) for f in found) + 4 * (1 + 2**2))
        all_found = [way(*found).numpy() for way in ways]
        assert {each.dtype for each in all_found} == {np.dtype("float64")}
        # of float32 and smaller ones, sums of up to 21 squares are float32
        np.testing.assert_allclose(all_found, [by_numpy] * 3, rtol=1e-6)


def test_dropout_in_xla_drops_its_share():
    layer = L.Dropout(0.3, seed=0)
    layer.build((400, 500))
    dropped = xla.program(lambda x: layer(x, training=True))(tf.ones([400, 500])).numpy() == 0
    assert dropped.mean() == pytest.approx(0.3, abs=0.005)  # 200,000 draws: a standard deviation of 0.001


def test_other_threads_draw_as_they_did_while_a_program_is_traced():
    found = {}

    def elsewhere():
        found["eager"] = tf.random.stateless_uniform([2], [1, 2]).numpy()
        found["graph"] = tf.function(lambda: tf.random.stateless_uniform([2], [1, 2]))().numpy()

    expected = tf.random.stateless_uniform([2], [1, 2]).numpy()
    with xla.fast_random():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        np.testing.assert_array_equal(tf.random.stateless_uniform([2], [1, 2]).numpy(), expected)
    np.testing.assert_array_equal(found["eager"], expected)
    np.testing.assert_array_equal(found["graph"], expected)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("first", [0, 3])
def test_stacks_give_the_batches_that_the_iterator_gives(size, first, at_once):
    x, y = models.data(examples=45)
    source = make_source((x, y), batch_size=8, shuffle=True, seed=0, name="data")
    expected = list(itertools.islice(source.open(1, 0), first, first + 20 + 2 * size + 2))
    iterator = source.open(1, first)
    stacks, found = Stacks(source.open_stacks(1, first, size) if at_once else of_iterator(iterator, size), size), []
    while len(found) < 20:
        part = stacks.take(3)
        found += [part.batch(i) for i in range(part.start, part.start + part.count)]
    for mine, theirs in zip(found, expected, strict=False):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    ahead = stacks.ahead()
    stacks.settle()
    if not at_once:
        np.testing.assert_array_equal(next(iterator)[0], expected[len(found) + len(ahead)][0])


@pytest.mark.parametrize("mode", ["graph", "xla_loop"])
def test_any_number_of_steps_of_a_stack_is_one_trace(mode):
    source = make_source(models.data(examples=45), batch_size=8, shuffle=False, seed=0, name="data")

    def step(batch):
        return tf.stack([tf.cast(tf.shape(batch[0])[0], tf.float32), 0.0, tf.reduce_sum(batch[0])])

    spec, size = source.element_spec, 4 if mode == "xla_loop" else None
    named = Step(step, ["a"], tf.float32)
    execute = StackedExecution(named, mode=mode, element_spec=spec, size=size)
    plain = Execution(named, mode="graph", counted=True)
    stacks, iterator = Stacks(of_iterator(source.open(0, 0), 4), 4), source.open(0, 0)
    for steps in (1, 4, 3, 9, 2, 1):
        np.testing.assert_allclose(execute(stacks, steps)[0], plain(iterator, steps)[0], rtol=1e-5)  # orders of sums
    assert execute.traces == 1


def test_one_program_serves_any_part_of_a_stack():
    """XLA compiles a program for each value of an argument that it must know: none of these may be one."""
    stack = tf.ones([4, 8, 6]), tf.zeros([4, 8], tf.int32)
    source = make_source(models.data(examples=32), batch_size=8, shuffle=False, seed=0, name="data")
    trainer = looper.Trainer(model=models.dense(0.5), optimizer="adam", loss=models.cross_entropy())
    trainer.fit(models.data(examples=8), steps=1, progress=False)
    program = inside.execution_of(trainer, "train", source, "xla_loop", 4)._function
    ir = [
        program.experimental_get_compiler_ir(
            stack, tf.constant(i), tf.constant(n), tf.constant([0, 0, 0], tf.int64), tf.constant(False)
        )("hlo")
        for i, n in [(0, 4), (1, 2)]
    ]
    assert ir[0] == ir[1]


class Batches(looper.Trainer):
    """Notes the first number of each batch that it is trained on."""

    def build(self):
        self.model = keras.Sequential([keras.Input((1,)), L.Dense(1)])
        self.optimizer = keras.optimizers.SGD(0.0)

    def compute_loss(self, batch, training):
        first = tf.cast(tf.reshape(batch, [-1])[0], tf.float32)
        return tf.reduce_mean(self.model(tf.cast(batch[:, :1], tf.float32), training=training)) * 0.0 + first


def seen(trainer, data, every=1, **options):
    """The first number of each batch, or the means of `every` of them."""
    trainer.fit(data, log_every=looper.Every(steps=every), progress=False, **options)
    return trainer.history["loss"]


def numbers(count, dtype=tf.float32):
    return tf.data.Dataset.range(count).map(lambda i: tf.cast(tf.fill([2, 3], i), dtype))


def test_a_checkpoint_of_a_checkpoint_in_the_middle_of_a_stack(tmp_path):
    """In bfloat16, which NumPy does not have by itself."""
    data = numbers(100, tf.bfloat16).repeat()
    first = Batches(execution="xla_loop")
    assert seen(first, data, steps=5) == [0, 1, 2, 3, 4]
    first.save(tmp_path / "a")
    second = Batches(execution="xla_loop")
    second.restore(tmp_path / "a")
    second.save(tmp_path / "b")
    for path in ("a", "b"):
        trainer = Batches(execution="xla_loop")
        trainer.restore(tmp_path / path)
        assert seen(trainer, data, steps=80) == list(range(5, 80))


class CompileAnew(looper.callbacks.Callback):
    """Has the steps compiled anew after one step, or after each."""

    every = looper.Every(steps=1)

    def __init__(self, *steps):
        self.steps = steps

    def on_change(self, step):
        return not self.steps or step in self.steps


@pytest.mark.filterwarnings("ignore:execution='xla_loop'. batches of shape")
@pytest.mark.parametrize(
    ("shapes", "mode"), [("the same", "xla_loop"), ("different", "xla_loop"), ("different", "xla_step")]
)
def test_steps_compiled_anew_lose_no_batch(tmp_path, mode, shapes):
    def data():
        if shapes == "the same":
            return numbers(6)
        return tf.data.Dataset.range(6).map(lambda i: tf.fill([2, 3 + i % 2], tf.cast(i, tf.float32)))

    def fit(callbacks=()):
        trainer, every = Batches(execution=mode, workdir=tmp_path), looper.Every(steps=2)
        return seen(trainer, data(), epochs=1, save_every=every, callbacks=[CompileAnew(), *callbacks])

    with pytest.raises(KeyboardInterrupt):
        fit([Stop(2, signal.SIGINT)])
    assert fit() == list(range(6))


def test_data_of_unknown_length_stays_in_xla_after_the_end_of_a_pass():
    trainer = Batches(execution="xla_loop")
    data = numbers(12).filter(lambda x: x[0, 0] % 2 == 0)
    assert seen(trainer, data, epochs=1) == [0, 2, 4, 6, 8, 10]
    assert seen(trainer, data, epochs=3, callbacks=[CompileAnew(12)]) == [0, 2, 4, 6, 8, 10] * 3
    assert inside.feed(trainer).stack == 1  # as it logs each step


def test_data_of_unknown_length_is_stopped_in_the_middle_of_a_stack_and_continued(tmp_path):
    """Stacks are of 3 steps and passes of 7: after step 9 the second batch of a stack was trained on, not the third."""

    def fit(*callbacks):
        data = numbers(14).filter(lambda x: x[0, 0] % 2 == 0)
        trainer = Batches(execution="xla_loop", workdir=tmp_path)
        return seen(trainer, data, every=3, epochs=3, callbacks=callbacks)

    class Ninth(looper.callbacks.Callback):
        every = looper.At((9,))

    with pytest.raises(KeyboardInterrupt):
        fit(Ninth(), Stop(9, signal.SIGINT))
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == ["step_00000009"]
    numbers_of_steps = np.tile(np.arange(0.0, 14, 2), 3)
    logged = [3, 6, 7, 10, 13, 14, 17, 20]  # each third step of a pass, and its last one
    assert fit() == pytest.approx([part.mean() for part in np.split(numbers_of_steps, logged)], rel=1e-6)


def test_random_numbers_without_a_seed_are_left_to_the_graph():
    class Recipe(Batches):
        def compute_loss(self, batch, training):
            return super().compute_loss(batch + tf.random.uniform([]), training)

    with pytest.warns(UserWarning, match="no seed reaches RandomUniform in XLA: draw with keras.random"):
        Recipe(execution="xla_step").fit(numbers(3), epochs=1, progress=False)


def test_slow_data_is_trained_before_a_stack_is_full():
    def batches():
        for i in range(70):
            time.sleep(0.02)  # what is slow about this data: a whole stack takes 1.3 seconds
            yield np.full((2, 3), i, "float32")

    iterator = iter(tf.data.Dataset.from_generator(batches, output_signature=tf.TensorSpec([2, 3])))
    stacks = Stacks(of_iterator(iterator, 64), 64)
    parts = list(iter(lambda: stacks.take(64), None))
    assert 0 < parts[0].count < 64
    found = [float(part.batch(i)[0, 0]) for part in parts for i in range(part.start, part.start + part.count)]
    assert found == list(range(70))


def test_a_failure_to_read_is_said_in_one_line_and_the_run_can_go_on():
    fails = [True]

    def batches():
        for i in range(12):
            if i == 7 and fails:
                fails.clear()
                raise OSError("the disk is away")
            yield np.full((2, 3), i, "float32")

    trainer = Batches(execution="xla_loop")
    with pytest.raises(looper.InputError, match="the disk is away"):
        trainer.fit(batches, epochs=1, progress=False)
    done = trainer.step
    assert seen(trainer, batches, epochs=1) == list(range(done, 12))


@pytest.mark.parametrize(("kind", "shuffle"), [("arrays", True), ("dataset", False)])
def test_no_batch_is_lost_between_stacks_and_single_batches(kind, shuffle):
    """Any order of changes between them, looks ahead and saves, over several passes."""
    numbers = np.arange(103)

    def feed():
        if kind == "arrays":
            return Feed(make_source(numbers, batch_size=10, shuffle=shuffle, seed=3, name="data"))
        data = tf.data.Dataset.from_tensor_slices(numbers)
        data = data.shuffle(103, seed=5) if shuffle else data
        return Feed(make_source(data.batch(10), batch_size=None, shuffle=True, seed=3, name="data"))

    def read(feed, count):
        """Up to `count` batches, as an execution takes them."""
        count = min(filter(None, (count, feed.left, feed.at_hand)))
        iterator, found = feed.iterator, []
        while len(found) < count:
            if feed.stack is None:
                found.append(next(iterator).numpy().tolist())
            else:
                part = iterator.take(count - len(found))
                found += [part.batch(i).numpy().tolist() for i in range(part.start, part.start + part.count)]
        feed.advance(count)
        if feed.left == 0:
            feed.next_pass()
        return found

    plain, expected = feed(), []
    while plain.number < 3:
        expected += read(plain, 1)
    for seed in range(4):
        random, mixed, found = np.random.default_rng(seed), feed(), []
        while mixed.number < 3:
            match random.integers(6):
                case 0:
                    mixed.stack = int(random.integers(1, 8))
                case 1:
                    mixed.stack = None
                case 2:
                    mixed.peek()
                case 3:
                    mixed.state()
                case 4 if mixed.stack is None:
                    mixed.peek()
                    next(mixed.iterator, None)
                    mixed.again()
            found += read(mixed, int(random.integers(1, 7)))
        assert found == expected


def test_a_checkpoint_after_a_failure_to_read_ahead_loses_nothing():
    def number(i):
        return tf.strings.to_number(tf.where(i == 115, "bad", tf.strings.as_string(i)))

    def feed():
        data = tf.data.Dataset.range(400).map(number).batch(10)
        return Feed(make_source(data, batch_size=None, shuffle=True, seed=3, name="data"))

    first = feed()
    first.stack = 8
    assert first.iterator.take(8).count == 8
    first.advance(8)
    state, iterator = first.state(), first.saved_iterator  # batch 11 could not be read meanwhile
    assert iterator is None
    second = feed()
    second.restore(state, None)
    assert second.peek().numpy()[0] == 80
