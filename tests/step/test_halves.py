"""The halves of `minimize`, and an update that waits: against the same numbers by hand."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import inside, models

X, Y = models.data(examples=24, dtype="float64")[0], np.random.default_rng(3).normal(size=(24, 2))
TWO = {"strategy": "mirrored", "devices": 2, "execution": "graph"}
ONE = {"strategy": "one_device", "execution": "graph"}
WAYS = {
    "one device": ONE,
    "two replicas": TWO,
    "micro-batches": ONE | {"accumulate": 2},
    "two replicas, micro-batches": TWO | {"accumulate": 2},
    "two replicas, xla_step": TWO | {"execution": "xla_step"},
    "two replicas, micro-batches, xla_step": TWO | {"execution": "xla_step", "accumulate": 2},
    "xla_loop": ONE | {"execution": "xla_loop"},
}


def one_layer():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, kernel_initializer="ones")])


class OneMinimize(looper.Trainer):
    def build(self):
        self.model, self.optimizer = one_layer(), keras.optimizers.SGD(0.0625, momentum=0.5)
        self.target = tf.Variable(tf.ones([6, 2], tf.float64), trainable=False)

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = tf.square(self.model(batch[0], training=True) - batch[1])
        self.minimize(loss, tape)
        return {"loss": loss, "largest": (tf.reduce_max(loss, -1), tf.ones_like(loss[:, 0]))}


class Follows(OneMinimize):
    """A target that follows the weights, in the place for it."""

    def after_update(self):
        self.target.assign(0.9 * self.target + 0.1 * self.model.weights[0])


class FollowsAtOnce(OneMinimize):
    """The same in the step itself, behind its update."""

    def train_step(self, batch):
        logs = super().train_step(batch)
        self.target.assign(0.9 * self.target + 0.1 * self.model.weights[0])
        return logs


class Halves(OneMinimize):
    """The same update by its two halves, with the gradients turned round twice in between."""

    def train_step(self, batch):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.square(self.model(batch[0], training=True) - batch[1])
        found = [-g for g in self.gradients(loss, tape, variables)]
        self.apply_gradients((-g, v) for g, v in zip(found, variables, strict=True))
        return {"loss": loss}


def trained(kind, data=(X, Y), **options):
    trainer = kind(precision="float64", **options)
    history = trainer.fit(data, epochs=2, batch_size=12, shuffle=False, log_every=looper.Every(steps=1), progress=False)
    return trainer, history


def copies(trainer, variable):
    found = trainer.strategy.experimental_local_results(
        variable.value if isinstance(variable, keras.Variable) else variable
    )
    return [copy.numpy() for copy in found]


@functools.cache
def by_hand():
    """Momentum in NumPy: kernel, bias, their target, losses."""
    kernel, bias, target = np.ones((6, 2)), np.zeros(2), np.ones((6, 2))
    speeds, losses = [0.0, 0.0], []
    for start in (0, 12, 0, 12):
        x, y = X[start : start + 12], Y[start : start + 12]
        error = x @ kernel + bias - y
        losses.append((error**2).mean())
        slope = 2 * error / error.size
        speeds = [0.5 * v - 0.0625 * g for v, g in zip(speeds, (x.T @ slope, slope.sum(0)), strict=True)]
        kernel, bias = kernel + speeds[0], bias + speeds[1]
        target = 0.9 * target + 0.1 * kernel
    return kernel, bias, target, losses


def check(trainer, history, target=False):
    kernel, bias, follows, losses = by_hand()
    for copy in copies(trainer, trainer.model.weights[0]):
        np.testing.assert_allclose(copy, kernel, atol=1e-12)
    np.testing.assert_allclose(copies(trainer, trainer.model.weights[1])[0], bias, atol=1e-12)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-12)
    for copy in copies(trainer, trainer.target) if target else ():
        np.testing.assert_allclose(copy, follows, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_one_minimize_waits_where_that_changes_nothing(way):
    """`after_update` comes after it in every mode, also where the update waits."""
    trainer, history = trained(Follows, **WAYS[way])
    check(trainer, history, target=True)


class Default(OneMinimize):
    train_step = looper.Trainer.train_step

    def compute_loss(self, batch, training):
        return tf.square(self.model(batch[0], training=training) - batch[1])


class Through(Default):
    def train_step(self, batch):
        return super().train_step(batch)


def test_an_update_that_waits_is_one_reduction():
    """As many collectives as the default step has; behind an update at once, logs are one of their own."""
    counts = []
    for kind in (Default, Through, OneMinimize, FollowsAtOnce):
        trainer, _ = trained(kind, **TWO)
        [execution] = inside.executions(trainer, "train")
        counts.append(inside.operations(trainer, execution)["CollectiveReduceV2"])
    assert counts[0] == counts[1] == counts[2] < counts[3]


def test_super_train_step_is_compiled_with_xla_on_replicas():
    trainer, history = trained(Through, **WAYS["two replicas, micro-batches, xla_step"])
    check(trainer, history)
    assert inside.executions_in(trainer, "xla_step")


@pytest.mark.parametrize("way", ["one device", "two replicas", "xla_loop"])
def test_what_reads_the_weights_after_minimize_sees_them_updated(way):
    trainer, history = trained(FollowsAtOnce, **WAYS[way])
    check(trainer, history, target=True)


def test_gradients_without_their_variables_are_one_line():
    class Alone(OneMinimize):
        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = tf.square(self.model(batch[0], training=True) - batch[1])
            self.apply_gradients(self.gradients(loss, tape))
            return {"loss": loss}

    with pytest.raises(looper.InputError, match=r"takes pairs .*: apply_gradients\(zip\(gradients, variables\)\)\.$"):
        trained(Alone, **ONE)


@pytest.mark.parametrize("way", ["one device", "two replicas", "xla_loop"])
def test_the_two_halves_are_one_minimize(way):
    trainer, history = trained(Halves, **WAYS[way])
    check(trainer, history)
    assert history["gradient_norm"][0] == pytest.approx(trained(OneMinimize, **ONE)[1]["gradient_norm"][0], rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(FollowsAtOnce, r"looks at .*kernel after minimize, at test_halves.py:\d+"), (Halves, "gradients and apply_grad")],
)
def test_micro_batches_that_would_be_wrong_are_refused(kind, said):
    with pytest.raises(looper.InputError, match=rf"accumulate=2: train_step .*{said}.*after_update"):
        trained(kind, **WAYS["micro-batches"])


class ReadsIterations(OneMinimize):
    def train_step(self, batch):
        logs = super().train_step(batch)
        return logs | {"updates": tf.cast(self.optimizer.iterations, tf.float64), "rate": self.optimizer.learning_rate}


def test_what_an_update_counts_is_read_after_it():
    """The learning rate alone would not keep an update from waiting."""
    for way in ("one device", "two replicas"):
        assert trained(ReadsIterations, **WAYS[way])[1]["updates"] == [1, 2, 3, 4]
    with pytest.raises(looper.InputError, match=r"accumulate=2: train_step looks at .*iteration after minimize"):
        trained(ReadsIterations, **WAYS["micro-batches"])


class ByStructure(OneMinimize):
    """One update for a pair, two for a triple."""

    def build(self):
        super().build()
        self.second, self.unbuilt = keras.optimizers.SGD(0.0625), keras.optimizers.SGD(0.0625)
        self.second.build(self.model.trainable_variables[1:])

    def train_step(self, batch):
        kernel, bias = self.model.trainable_variables
        with tf.GradientTape(persistent=True) as tape:
            loss = tf.square(self.model(batch[0], training=True) - batch[1])
        if len(batch) == 3:
            self.minimize(loss, tape, self.second, [bias])
        self.minimize(loss, tape, self.unbuilt, [kernel])
        return {"loss": loss}


def test_a_step_is_looked_at_for_each_structure_of_batches():
    trainer, _ = trained(ByStructure, **ONE)
    before = copies(trainer, trainer.model.weights[1])[0]
    trainer.fit((X, Y, np.ones(24)), epochs=4, batch_size=12, progress=False)
    assert (copies(trainer, trainer.model.weights[1])[0] != before).all()


@pytest.mark.parametrize("way", ["one device", "micro-batches"])
def test_what_is_wrong_with_a_step_is_said_as_it_is(way):
    class Misspelt(OneMinimize):
        def train_step(self, batch):
            return {"loss": self.modle(batch[0])}

    expected = AttributeError if way == "one device" else looper.InputError
    with pytest.raises(expected, match="has no attribute 'modle'"):
        trained(Misspelt, **WAYS[way])


class DrawsShared(OneMinimize):
    def train_step(self, batch):
        noise = keras.random.normal([6], seed=self.shared_random, dtype="float64")
        return super().train_step((batch[0] + noise, batch[1]))


def test_shared_draws_keep_no_update_from_waiting():
    trained(DrawsShared, **WAYS["micro-batches"])


class FrozenBeforeItIsBuilt(OneMinimize):
    def build(self):
        super().build()
        self.slow = keras.Sequential([keras.layers.Dense(2)])
        self.slow.trainable = False
        self.slow.build((None, 6))

    def train_step(self, batch):
        for slow, weight in zip(self.slow.weights, self.model.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * weight)
        return super().train_step(batch)


def test_a_target_that_was_built_frozen_is_no_statistic():
    with pytest.raises(looper.InputError, match=r"accumulate=2: train_step changes .*kernel, at"):
        trained(FrozenBeforeItIsBuilt, **WAYS["micro-batches"])


class Counts(OneMinimize):
    def train_step(self, batch):
        self.target.assign_add(tf.ones_like(self.target))
        return super().train_step(batch)


class CountsSometimes(OneMinimize):
    def train_step(self, batch):
        def count():
            return self.target.assign_add(tf.ones_like(self.target))[0, 0]

        tf.cond(self.step % 2 == 0, count, lambda: self.target[0, 0])
        return super().train_step(batch)


class LooksInACondition(OneMinimize):
    def train_step(self, batch):
        weight = tf.cond(self.step % 2 == 0, lambda: self.target[0, 0], lambda: self.target[1, 1])
        return super().train_step(batch) | {"weight": weight}


@pytest.mark.parametrize("kind", [Counts, CountsSometimes])
def test_a_counter_before_minimize_is_not_counted_for_each_micro_batch(kind):
    with pytest.raises(looper.InputError, match=r"accumulate=2: train_step changes Variable, at test_halves.py:\d+"):
        trained(kind, **WAYS["micro-batches"])


def test_what_is_only_looked_at_keeps_no_update_from_waiting():
    check(*trained(LooksInACondition, **WAYS["micro-batches"]))
    trainer, history = trained(LooksInACondition, **TWO)
    check(trainer, history)
    trainer, _ = trained(Counts, **TWO)
    assert copies(trainer, trainer.target)[1][0, 0] == 5.0


def test_xla_on_replicas_says_once_why_it_is_the_graph():
    with pytest.warns(UserWarning, match="execution='xla_step': train_step calls gradients and apply_gradients.*graph"):
        trainer, history = trained(Halves, **WAYS["two replicas, xla_step"])
    check(trainer, history)


class Inside(OneMinimize):
    where = "cond"

    def train_step(self, batch):
        loss = tf.constant(0.0)

        def update(*_):
            with tf.GradientTape() as tape:
                loss = tf.square(self.model(batch[0], training=True) - batch[1])
            self.minimize(loss, tape)
            return tf.constant(1)

        if self.where == "cond":
            tf.cond(tf.reduce_sum(batch[0]) > 0, update, lambda: tf.constant(0))
        elif self.where == "while":
            tf.while_loop(lambda i: i < 2, update, (0,))
        else:
            tf.function(update)()
        return {"loss": loss}


@pytest.mark.parametrize("where", ["cond", "while", "function"])
@pytest.mark.parametrize("way", ["one device", "two replicas"])
def test_an_update_inside_the_recipes_own_graph_is_one_line(where, way):
    Inside.where = where
    with pytest.raises(looper.InputError, match=r"minimize\(\) is called inside a tf.cond.*in a Python loop"):
        trained(Inside, **WAYS[way])


class Noise(OneMinimize):
    def transform_gradients(self, gradients, variables):
        return [g + keras.random.normal(g.shape, seed=self.shared_random, dtype=g.dtype) for g in gradients]


class NoiseBetween(OneMinimize):
    def train_step(self, batch):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.square(self.model(batch[0], training=True) - batch[1])
        noise = [keras.random.normal(v.shape, seed=self.shared_random, dtype=v.dtype) for v in variables]
        found = self.gradients(loss, tape, variables)
        self.apply_gradients((g + n, v) for g, n, v in zip(found, noise, variables, strict=True))
        return {"loss": loss, "noise": noise[0][0, 0]}


@pytest.mark.parametrize("kind", [Noise, NoiseBetween])
def test_noise_on_gradients_is_the_same_on_all_replicas(kind, tmp_path):
    alone, told = trained(kind, **ONE)
    trainer, history = trained(kind, workdir=tmp_path / "whole", **TWO)
    if kind is NoiseBetween:  # the mean of what both have drawn
        np.testing.assert_allclose(history["noise"], told["noise"], rtol=1e-12)
    one, other = copies(trainer, trainer.model.weights[0])
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, copies(alone, alone.model.weights[0])[0], atol=1e-12)
    assert np.abs(one - by_hand()[0]).max() > 1e-3
    assert len(set(history["loss"])) == 4
    for steps in (2, 4):
        stopped = kind(precision="float64", workdir=tmp_path / "stopped", **TWO)
        stopped.fit((X, Y), steps=steps, batch_size=12, shuffle=False, progress=False)
    np.testing.assert_array_equal(copies(stopped, stopped.model.weights[0])[0], one)


class Clips(OneMinimize):
    """Hides what is not finite before it applies it."""

    def train_step(self, batch):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.square(self.model(batch[0], training=True) - batch[1])
        found = self.gradients(loss, tape, variables)
        finite = [tf.where(tf.math.is_finite(g), g, tf.zeros_like(g)) for g in found]
        self.apply_gradients(zip(finite, variables, strict=True))
        return {"loss": loss}

    def after_update(self):
        self.target.assign_add(tf.ones_like(self.target))


@pytest.mark.parametrize("way", ["one device", "two replicas", "xla_loop"])
def test_a_clip_in_between_hides_no_infinity(way):
    """Nor does `after_update` run after the skipped step."""
    x = X.copy()
    x[3] = np.inf
    trainer = Clips(precision="float64", **WAYS[way])
    skip = looper.callbacks.NanGuard(action="skip")
    trainer.fit((x, Y), epochs=1, batch_size=12, shuffle=False, callbacks=[skip], progress=False)
    assert trainer.history["skipped_steps"] == [1]
    assert copies(trainer, trainer.target)[0][0, 0] == 2.0
    assert np.isfinite(copies(trainer, trainer.model.weights[0])[0]).all()


class Twice(OneMinimize):
    def build(self):
        super().build()
        self.second = keras.optimizers.SGD(0.01)

    def train_step(self, batch):
        with tf.GradientTape(persistent=True) as tape:
            outputs = self.model(batch[0], training=True)
            loss = tf.square(outputs - tf.cast(batch[1], outputs.dtype))
        self.minimize(loss, tape, variables=self.model.trainable_variables[:1])
        self.minimize(loss, tape, self.second, self.model.trainable_variables[1:])
        return {"loss": loss}


@pytest.mark.parametrize("way", ["one device", "two replicas"])
def test_the_loss_scale_moves_once_a_step(way):
    x = X.astype("float32")
    x[3] = np.inf
    trainer = Twice(precision="mixed_float16", **WAYS[way])
    trainer.fit((x, Y.astype("float32")), epochs=1, batch_size=12, shuffle=False, progress=False)
    assert trainer.history["loss_scale"][-1] == 2.0**14  # one of the two steps was bad; each had two updates


def test_optimizers_that_were_forgotten_are_built_for_what_they_get():
    trainer, _ = trained(Twice, **TWO)
    assert [len(optimizer.variables) for optimizer in (trainer.optimizer, trainer.second)] == [4, 2]


def test_a_variable_without_a_gradient_is_none_and_left_alone():
    class Half(OneMinimize):
        def train_step(self, batch):
            kernel, bias = self.model.trainable_variables
            with tf.GradientTape() as tape:
                loss = tf.square(batch[0] @ tf.convert_to_tensor(kernel) - batch[1])
            found = self.gradients(loss, tape, [bias, kernel])
            assert found[0] is None
            self.apply_gradients(zip(found, [bias, kernel], strict=True))
            return {"loss": loss}

    for way in ("one device", "two replicas"):
        trainer, _ = trained(Half, **WAYS[way])
        assert not copies(trainer, trainer.model.weights[1])[0].any()
        assert (copies(trainer, trainer.model.weights[0])[0] != 1).all()


class Gathers(OneMinimize):
    """Logs how many rows it gathers, and their sum, in two ways."""

    def train_step(self, batch):
        rows = self.all_gather(batch[1])
        self.target.assign(tf.pad(rows, [[0, 6 - tf.shape(rows)[0]], [0, 0]]))
        added = self.all_reduce(tf.reduce_sum(batch[1]))
        return super().train_step(batch) | {"rows": tf.cast(tf.shape(rows)[0], tf.float64), "sum": added}


@pytest.mark.parametrize("way", ["one device", "two replicas"])
def test_rows_are_gathered_once_in_the_batchs_order(way):
    """The last batch has one example, which both replicas are given."""
    trainer = Gathers(precision="float64", **WAYS[way])
    data = (X[:13], Y[:13])
    history = trainer.fit(data, epochs=1, batch_size=6, shuffle=False, progress=False)
    assert history["rows"] == [pytest.approx((6 * 6 + 6 * 6 + 1) / 13)]  # of one call, in which sizes differ
    sums = [Y[:6].sum(), Y[6:12].sum(), Y[12].sum()]
    np.testing.assert_allclose(history["sum"], np.average(sums, weights=[6, 6, 1]), atol=1e-12)
    for copy in copies(trainer, trainer.target):
        np.testing.assert_array_equal(copy, np.concatenate([Y[12:13], np.zeros((5, 2))]))


class Contrasts(OneMinimize):
    """Each output is compared with all of the batch, so that a gradient goes through what was gathered."""

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            outputs = self.model(batch[0], training=True)
            every = self.all_gather(outputs)
            loss = tf.reduce_mean(tf.square(outputs[:, None] - every[None] - 1.0), [1, 2])
        self.minimize(loss, tape)
        return {"loss": loss}


def test_gradients_go_through_what_is_gathered():
    (one, told), (two, found) = (
        (
            trainer := Contrasts(precision="float64", **WAYS[way]),
            trainer.fit((X[:13], Y[:13]), epochs=2, batch_size=6, shuffle=False, progress=False),
        )
        for way in ("one device", "two replicas")
    )
    np.testing.assert_allclose(found["loss"], told["loss"], rtol=1e-12)
    for copy in copies(two, two.model.weights[0]):
        np.testing.assert_allclose(copy, copies(one, one.model.weights[0])[0], atol=1e-12)


def test_a_loss_that_gathers_is_evaluated():
    class InLoss(Default):
        def compute_loss(self, batch, training):
            return tf.square(self.model(batch[0], training=training) - tf.reduce_mean(self.all_gather(batch[1]), 0))

    trainer = InLoss(precision="float64", **TWO)
    outputs = X[:12] @ np.ones((6, 2))
    found = trainer.evaluate((X[:12], Y[:12]), batch_size=12)
    assert found["loss"] == pytest.approx(((outputs - Y[:12].mean(0)) ** 2).mean(), rel=1e-12)


def test_micro_batches_gather_nothing():
    class InLoss(Default):
        def compute_loss(self, batch, training):
            return tf.square(self.all_gather(self.model(batch[0], training=training)) - self.all_gather(batch[1]))

    with pytest.raises(looper.InputError, match=r"all_gather\(\) is called in a step of micro-batches.*accumulate out"):
        trained(InLoss, **WAYS["two replicas, micro-batches"])
