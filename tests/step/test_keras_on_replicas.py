"""What Keras 3.15 does under `tf.distribute.MirroredStrategy`, and what looper does: a test for each trap.

A test that fails because Keras does better now is good news: the workaround that it stands for may go.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper.workers.strategies import resolve
from tests.support import models

L = models.L
TWO = {"strategy": "mirrored", "devices": 2}
X, Y = models.data(examples=8)


@pytest.fixture(scope="module")
def mirrored():
    """The one strategy object for two replicas that this process may have."""
    return resolve("mirrored", 2)


def replica():
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def kerass_update(mirrored, make, gradients):
    """What a Keras optimizer makes of zeros in one step with a gradient on each replica."""
    with mirrored.scope():
        variable, optimizer = keras.Variable(np.zeros(2, "float32")), make()
        optimizer.build([variable])

    @tf.function
    def step():
        mirrored.run(lambda: optimizer.apply([tf.constant(gradients)[replica()]], [variable]))

    step()
    return variable.numpy(), optimizer


class Slope(looper.Trainer):
    """The gradient is the mean of the batch."""

    def build(self):
        self.slope = tf.Variable([0.0, 0.0])
        self.optimizer = self.config()

    def compute_loss(self, batch, training):
        return tf.reduce_sum(batch * self.slope, -1)


def loopers_update(make, gradients, **options):
    trainer = Slope(config=make, **TWO, **options)
    batch = 2 * np.array(gradients, "float32")  # whose mean is the gradients' sum
    history = trainer.fit(batch, steps=1, batch_size=2, shuffle=False, progress=False)
    return trainer.slope.numpy(), history


@pytest.mark.parametrize(
    ("option", "keras_does", "right"),
    [
        ({"clipnorm": 1.0}, [-1, -1], [-0.6, -0.8]),
        ({"global_clipnorm": 1.0}, [-1, -1], [-0.6, -0.8]),
        ({"clipvalue": 3.5}, [-3, -3.5], [-3, -3.5]),
    ],
)
def test_keras_clips_each_replicas_gradients_before_they_are_added_up(mirrored, option, keras_does, right):
    """[3, 0] and [0, 4] have the sum [3, 4], whose norm is 5."""

    def make():
        return keras.optimizers.SGD(1.0, **option)

    found, _ = kerass_update(mirrored, make, [[3.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(found, keras_does, rtol=1e-6)
    found, _ = loopers_update(make, [[3.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_kerass_clipvalue_bounds_parts_of_the_sum(mirrored):
    def make():
        return keras.optimizers.SGD(1.0, clipvalue=1.0)

    np.testing.assert_allclose(kerass_update(mirrored, make, [[3.0, 0.0], [3.0, 0.0]])[0], [-2, 0])
    np.testing.assert_allclose(loopers_update(make, [[3.0, 0.0], [3.0, 0.0]])[0], [-1, 0])


def test_keras_looks_for_infinities_on_the_first_replica_only(mirrored):
    def make():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=8.0)

    gradients = [[1.0, 1.0], [np.inf, 1.0]]
    found, optimizer = kerass_update(mirrored, make, gradients)
    assert found[0] == -np.inf
    assert optimizer.dynamic_scale.numpy() == 8.0
    found, history = loopers_update(make, gradients)
    np.testing.assert_array_equal(found, [0.0, 0.0])
    assert (history["skipped_steps"], history["loss_scale"]) == ([1], [4.0])


def compiled(mirrored, model=None, optimizer=None, **options):
    with mirrored.scope():
        made = model() if model else models.dense(norm=False)
        made.compile(optimizer() if optimizer else keras.optimizers.SGD(0.1), models.cross_entropy(), **options)
    return made


def trainer(model=None, optimizer=None, **options):
    return looper.Trainer(
        model=model or (lambda: models.dense(norm=False)),
        optimizer=optimizer or (lambda: keras.optimizers.SGD(0.1)),
        loss=models.cross_entropy,
        **TWO,
        **options,
    )


@pytest.mark.parametrize(
    "option", [{"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}]
)
def test_keras_cannot_accumulate_or_overwrite_averages(mirrored, option):
    """A `merge_call` in a `tf.cond`. tests/step/test_what_people_bring_on_replicas.py has looper's numbers."""

    def make():
        return keras.optimizers.SGD(0.1, **option)

    with pytest.raises(RuntimeError, match="merge_call"):
        compiled(mirrored, optimizer=make).fit(X, Y, batch_size=4, verbose=0)
    made = trainer(optimizer=make)
    made.fit((X, Y), epochs=2, batch_size=4, progress=False)
    assert made.optimizer.iterations.numpy() == (2 if "gradient_accumulation_steps" in option else 4)


def test_keras_fit_fails_with_several_steps_per_execution(mirrored):
    with pytest.raises(tf.errors.InvalidArgumentError, match="must feed a value for placeholder"):
        compiled(mirrored, steps_per_execution=2).fit(X, Y, batch_size=2, verbose=0)
    history = trainer(steps_per_execution=2).fit((X, Y), epochs=1, batch_size=2, progress=False)
    assert np.isfinite(history["loss"]).all()


def test_an_optimizer_must_be_built_before_a_loop_in_the_graph_is_traced(mirrored):
    """looper builds it, and says it of one that `minimize` is given."""

    def loop(built):
        with mirrored.scope():
            variable, optimizer = keras.Variable([1.0]), keras.optimizers.SGD(0.1, momentum=0.9)
            if built:
                optimizer.build([variable])

        @tf.function
        def steps(count):
            for _ in tf.range(count):
                mirrored.run(lambda: optimizer.apply([tf.constant([1.0])], [variable]))

        steps(tf.constant(2))
        return variable.numpy()

    # two replicas' gradients of 1: 0.2, and then 0.2 + 0.9 * 0.2
    np.testing.assert_allclose(loop(True), [0.42], rtol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must feed a value for placeholder"):
        loop(False)

    class Late(looper.Trainer):
        def build(self):
            self.model = models.dense(norm=False)
            self.second = keras.optimizers.SGD(0.1, momentum=0.9)

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.model(batch[0], training=True))
            self.minimize(loss, tape, self.second)
            return {"loss": loss}

    trainer = Late(**TWO)  # looper builds it before the step is compiled
    trainer.fit((X, Y), epochs=1, batch_size=4, progress=False)
    assert int(trainer.second.iterations.numpy()) == trainer.step


def test_keras_draws_the_same_dropout_mask_on_each_replica(mirrored):
    ones = tf.ones([64])

    def masks(dropout):
        drawn = tf.function(lambda: mirrored.run(lambda: dropout(ones, training=True)))()
        return [part.numpy() for part in mirrored.experimental_local_results(drawn)]

    with mirrored.scope():
        dropout = L.Dropout(0.5, seed=1)
    first, second = masks(dropout)
    np.testing.assert_array_equal(first, second)

    class Holder(looper.Trainer):
        def build(self):
            self.dropout = L.Dropout(0.5, seed=1)

    own = masks(Holder(**TWO).dropout)
    np.testing.assert_array_equal(own[0], first)  # the first replica's are Keras'
    assert (own[1] != own[0]).any()


def normalized():
    return keras.Sequential([keras.Input((6,)), L.BatchNormalization(momentum=0.5), L.Dense(3)])


def test_keras_saves_the_first_replicas_batch_statistics(mirrored, tmp_path):
    x = np.concatenate([np.zeros((4, 6)), np.full((4, 6), 8.0)]).astype("float32")
    model = compiled(mirrored, normalized)
    model.fit(x, Y, batch_size=8, shuffle=False, verbose=0)
    parts = mirrored.experimental_local_results(model.layers[0].moving_mean.value)
    assert [float(part[0]) for part in parts] == [0.0, 4.0]  # half of what each has seen
    model.save(tmp_path / "keras.keras")
    assert keras.saving.load_model(tmp_path / "keras.keras").layers[0].moving_mean.numpy()[0] == 0.0

    made = trainer(normalized)
    made.fit((x, Y), epochs=1, batch_size=8, shuffle=False, progress=False)
    made.save_model(tmp_path / "looper.keras")
    assert keras.saving.load_model(tmp_path / "looper.keras").layers[0].moving_mean.numpy()[0] == 2.0


def test_kerass_losses_are_scaled_for_replicas_and_model_losses_are_not(mirrored):
    """Both are added up: a mean is right where every replica has as many examples, and a penalty counts twice."""

    def model():
        return keras.Sequential([keras.Input((2,)), L.Dense(1, use_bias=False, kernel_regularizer="l2")])

    x, y = np.ones((3, 2), "float32"), np.zeros((3, 1), "float32")
    with mirrored.scope():
        theirs, loss = model(), keras.losses.MeanSquaredError()

    @tf.function
    def both():
        def on_replica():
            inputs, targets = (tf.constant(part) for part in (x[:2], y[:2]))
            fit = loss(targets, theirs(inputs, training=True))
            return fit, tf.add_n(theirs.losses)

        found = mirrored.run(on_replica)
        return [mirrored.reduce("sum", part, axis=None) for part in found]

    fit, penalty = (float(part) for part in both())
    kernel = theirs.layers[0].kernel.numpy()
    assert fit == pytest.approx(kernel.sum() ** 2, rel=1e-5)
    assert penalty == pytest.approx(2 * 0.01 * (kernel**2).sum(), rel=1e-5)

    mine = looper.Trainer(model=model, optimizer=lambda: keras.optimizers.SGD(1.0), loss="mse", **TWO)
    before = mine.model.layers[0].kernel.numpy()
    history = mine.fit((x, y), steps=1, batch_size=3, progress=False)  # 1 and 2 examples
    assert history["loss"][0] == pytest.approx(before.sum() ** 2 + 0.01 * (before**2).sum(), rel=1e-5)
    expected = before - 2 * before.sum() - 0.02 * before
    np.testing.assert_allclose(mine.model.layers[0].kernel.numpy(), expected, rtol=1e-5)


def test_a_metrics_result_on_a_replica_is_the_replicas_own(mirrored):
    with mirrored.scope():
        metric = keras.metrics.Mean()

    @tf.function
    def on_replicas():
        def update():
            metric.update_state(tf.cast(replica(), tf.float32))
            return metric.result()

        return mirrored.run(update), metric.result()

    local, whole = on_replicas()
    assert [float(part) for part in mirrored.experimental_local_results(local)] == [0.0, 1.0]
    assert float(whole) == 0.5

    made = trainer(metrics=lambda: [keras.metrics.SparseCategoricalAccuracy("accuracy")])
    results = made.evaluate((X, Y), batch_size=8)
    assert results["accuracy"] == pytest.approx(np.mean(made.predict(X).argmax(-1) == Y))


def test_iterators_of_distributed_datasets_cannot_be_saved_and_loopers_can(mirrored, tmp_path):
    def batches():
        return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(8, seed=1).batch(2)

    iterator = iter(mirrored.experimental_distribute_dataset(batches()))
    next(iterator)
    with pytest.raises(ValueError, match="expecting iterator to be a trackable object"):
        tf.train.Checkpoint(iterator=iterator)

    whole = trainer()
    expected = whole.fit(batches(), steps=4, log_every=looper.Every(steps=1), progress=False)["loss"]
    first = trainer()
    first.fit(batches(), steps=2, progress=False)
    first.save(tmp_path / "saved")
    second = trainer()
    second.restore(tmp_path / "saved")
    rest = second.fit(batches(), steps=4, log_every=looper.Every(steps=1), progress=False)["loss"]
    assert rest == expected[2:]
