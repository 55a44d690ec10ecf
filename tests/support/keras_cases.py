"""Models, data, losses, metrics and optimizers as people give them to Keras, and a run of each under both."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import looper
from tests.support import models

L = models.L
EPOCHS, BATCH, EXAMPLES = 2, 16, 50  # the last batch has 2


def momentum() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


@dataclasses.dataclass
class Case:
    model: Callable[[], keras.Model]
    data: Callable[[], tuple]
    loss: Any = "sparse_categorical_crossentropy"
    optimizer: Callable[[], Any] = momentum
    compile: dict = dataclasses.field(default_factory=dict)
    class_weight: dict | None = None
    skip: tuple[str, ...] = ()  # logs that differ on purpose, for the reason beside the case


class StepLosses(keras.callbacks.Callback):
    """Keras reports running means; with the example counts they give back each step's loss."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen, self.total = 0, 0.0

    def on_train_batch_end(self, batch, logs=None):
        count = min(BATCH, EXAMPLES - batch * BATCH)
        self.seen += count
        self.losses.append((logs["loss"] * self.seen - self.total) / count)
        self.total = logs["loss"] * self.seen


def classes() -> tuple:
    return models.data(examples=EXAMPLES)


def weights_of_examples() -> np.ndarray:
    return np.linspace(0.1, 3, EXAMPLES).astype("float32")


def softmax_dense(**options) -> keras.Model:
    layers = [L.Dense(8, activation="tanh", **options), L.Dropout(0.2), L.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input((6,)), *layers])


def tokens() -> tuple:
    random = np.random.default_rng(1)
    x = random.integers(1, 9, (EXAMPLES, 7)).astype("int32")
    x[np.arange(7) >= random.integers(2, 8, EXAMPLES)[:, None]] = 0
    return x, random.integers(0, 3, EXAMPLES).astype("int32")


def tagged(weighted: bool = False) -> tuple:
    x, _ = tokens()
    y = np.random.default_rng(2).integers(0, 3, x.shape).astype("int32")
    weights = np.random.default_rng(3).uniform(0.5, 2, x.shape).astype("float32")
    return (x, y, weights) if weighted else (x, y)


def gru(sequences: bool = False, masked: bool = True) -> keras.Model:
    layers = [L.Embedding(9, 5, mask_zero=masked), L.GRU(6, return_sequences=sequences)]
    return keras.Sequential([keras.Input((7,), dtype="int32"), *layers, L.Dense(3, activation="softmax")])


def two_outputs(structure: str = "dict") -> keras.Model:
    x = keras.Input((6,))
    body = L.Dense(8, activation="tanh")(x)
    kind, size = L.Dense(3, activation="softmax", name="kind")(body), L.Dense(2, name="size")(body)
    return keras.Model(x, {"kind": kind, "size": size} if structure == "dict" else [kind, size])


def two_targets(structure: str = "dict", weights: str = "") -> tuple:
    x, y = classes()
    size = x[:, :2] * 2 + 1
    targets = {"kind": y, "size": size} if structure == "dict" else (y, size)
    if not weights:
        return x, targets
    each = weights_of_examples()
    return x, targets, {"one": each, "each": {"kind": each, "size": each[::-1].copy()}}[weights]


class Penalized(L.Layer):
    """Adds a loss of its own, and holds a metric of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = keras.metrics.Mean(name="activity")

    def call(self, x):
        self.add_loss(0.1 * tf.reduce_mean(tf.square(x)))
        self.seen.update_state(tf.reduce_mean(x, -1))
        return x


def regularized() -> keras.Model:
    dense = L.Dense(8, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer=keras.regularizers.L2(0.1))
    return keras.Sequential([keras.Input((6,)), dense, L.Dense(3, activation="softmax")])


def constrained() -> keras.Model:
    return softmax_dense(kernel_constraint="max_norm", bias_constraint="non_neg")


def shared_and_nested() -> keras.Model:
    shared = L.Dense(4, activation="tanh")
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(), L.Dropout(0.3), L.Dense(4)])
    a = keras.Input((6,))
    left, right = shared(a), shared(-a)
    joined = L.Concatenate()([inner(left), right])
    return keras.Model(a, L.Dense(3, activation="softmax")(joined))


class Subclassed(keras.Model):
    """Built by its first batch; a list of outputs that have no names."""

    def __init__(self):
        super().__init__()
        self.body = L.Dense(8, activation="tanh")
        self.heads = [L.Dense(3, activation="softmax"), L.Dense(2)]

    def call(self, x, training=False):
        body = self.body(x)
        return [head(body) for head in self.heads]


def unsupervised() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), L.Dense(4), Penalized()])


def one_hot() -> tuple:
    x, y = classes()
    return x, np.eye(3, dtype="float32")[y]


def binary() -> tuple:
    x, y = classes()
    return x, (y > 0).astype("float32")[:, None]


def sgd(**options) -> Callable[[], Any]:
    return lambda: keras.optimizers.SGD(0.05, **options)


def groups() -> Any:
    """A learning rate for the last layer's variables, another for the rest."""
    optimizers = keras.optimizers.SGD(0.01, name="body"), keras.optimizers.Adam(0.02, name="head")
    return keras.optimizers.MultiOptimizer(lambda v: optimizers[1] if v.shape[-1] == 3 else optimizers[0])


def without_biases() -> Any:
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def ignoring(**options) -> Any:
    return keras.losses.SparseCategoricalCrossentropy(ignore_class=1, **options)


NAMES = ["accuracy", keras.metrics.sparse_top_k_categorical_accuracy]
DICT_METRICS = {"kind": ["accuracy"], "size": ["mae", keras.metrics.RootMeanSquaredError]}

CASES = {
    "strings": Case(softmax_dense, classes, compile={"metrics": NAMES}),
    "one_hot_targets": Case(softmax_dense, one_hot, "crossentropy", compile={"metrics": ["acc"]}),
    "binary": Case(
        lambda: keras.Sequential([keras.Input((6,)), L.Dense(1, activation="sigmoid")]),
        binary,
        "crossentropy",
        compile={"metrics": ["accuracy", "AUC"]},
    ),
    # targets of shape (n,) beside outputs of shape (n, 1): a function compares them one by one, as a loss object does
    "binary_in_one_axis": Case(
        lambda: keras.Sequential([keras.Input((6,)), L.Dense(1, activation="sigmoid")]),
        lambda: (classes()[0], (classes()[1] > 0).astype("float32")),
        "binary_crossentropy",
        compile={"metrics": ["accuracy", "mae"]},
    ),
    "loss_function": Case(
        lambda: keras.Sequential([keras.Input((6,)), L.Dense(3)]),
        one_hot,
        lambda y, p: tf.reduce_mean((y - p) ** 2, -1),
    ),
    "metric_vector": Case(
        softmax_dense, one_hot, "categorical_crossentropy", compile={"metrics": [keras.metrics.F1Score(name="f1")]}
    ),
    "gru_masked": Case(gru, tokens),
    # a masked loss is averaged over valid elements: Keras averages an evaluation's batches by their examples
    "gru_masked_sequences": Case(lambda: gru(True), tagged, skip=("loss",)),
    "temporal_weights": Case(
        lambda: gru(True, masked=False), lambda: tagged(True), compile={"weighted_metrics": ["accuracy"]}
    ),
    "masked_temporal_weights": Case(lambda: gru(True), lambda: tagged(True), skip=("loss",)),
    "lstm_dropout": Case(
        lambda: keras.Sequential(
            [
                keras.Input((7,), dtype="int32"),
                L.Embedding(9, 5),
                L.LSTM(6, dropout=0.2),
                L.Dense(3, activation="softmax"),
            ]
        ),
        tokens,
    ),
    # the valid elements of an evaluation are averaged at once, as under a mask
    "ignored_class": Case(softmax_dense, classes, ignoring, skip=("loss",)),
    "sample_weight": Case(
        softmax_dense,
        lambda: (*classes(), weights_of_examples()),
        compile={"metrics": ["accuracy"], "weighted_metrics": ["accuracy", "sparse_categorical_crossentropy"]},
    ),
    "class_weight": Case(softmax_dense, classes, class_weight={0: 3.0, 1: 1.0, 2: 0.5}),
    "class_weight_one_hot": Case(
        softmax_dense, one_hot, "categorical_crossentropy", class_weight={0: 1.0, 1: 4.0, 2: 0.1}
    ),
    "dict_outputs": Case(
        two_outputs,
        two_targets,
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        compile={"loss_weights": {"kind": 0.3, "size": 2.0}, "metrics": {"kind": ["accuracy"], "size": ["mae"]}},
    ),
    "list_outputs": Case(
        lambda: two_outputs("list"),
        lambda: two_targets("list"),
        ["sparse_categorical_crossentropy", "mse"],
        compile={"loss_weights": [0.3, 2.0], "metrics": [["accuracy"], ["mae", "mse"]]},
    ),
    "list_outputs_by_name": Case(
        lambda: two_outputs("list"), two_targets, {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    ),
    "one_weight_for_both_outputs": Case(
        lambda: two_outputs("list"),
        lambda: two_targets("list", "one"),
        ["sparse_categorical_crossentropy", "mse"],
        compile={"weighted_metrics": [["accuracy"], ["mae"]]},
    ),
    "a_weight_for_each_output": Case(
        two_outputs, lambda: two_targets("dict", "each"), {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    ),
    "an_output_without_a_loss": Case(
        lambda: two_outputs("list"),
        lambda: (classes()[0], classes()[0][:, :2]),
        [None, "mse"],
    ),
    "subclassed_list_outputs": Case(
        Subclassed, lambda: two_targets("list"), ["sparse_categorical_crossentropy", "mse"], skip=("names",)
    ),
    "regularized": Case(regularized, classes),
    "add_loss_and_a_layers_metric": Case(
        lambda: keras.Sequential([keras.Input((6,)), Penalized(), L.Dense(3, activation="softmax")]), classes
    ),
    "constrained": Case(constrained, classes),
    "shared_and_nested": Case(shared_and_nested, classes),
    "schedule": Case(
        softmax_dense, classes, optimizer=lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 7))
    ),
    "clipnorm": Case(softmax_dense, classes, optimizer=sgd(clipnorm=0.1)),
    "global_clipnorm": Case(softmax_dense, classes, optimizer=sgd(global_clipnorm=0.1)),
    "clipvalue": Case(softmax_dense, classes, optimizer=sgd(clipvalue=0.01)),
    "ema": Case(softmax_dense, classes, optimizer=sgd(use_ema=True, ema_momentum=0.8)),
    "ema_overwriting": Case(
        softmax_dense, classes, optimizer=sgd(use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3)
    ),
    "accumulation": Case(
        softmax_dense, classes, optimizer=lambda: keras.optimizers.Adam(gradient_accumulation_steps=3)
    ),
    "accumulation_schedule_ema": Case(
        softmax_dense,
        classes,
        optimizer=lambda: keras.optimizers.AdamW(
            keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5), gradient_accumulation_steps=2, use_ema=True
        ),
    ),
    "accumulation_of_sparse_gradients": Case(gru, tokens, optimizer=sgd(gradient_accumulation_steps=2)),
    "loss_scale_factor": Case(softmax_dense, classes, optimizer=sgd(loss_scale_factor=64.0, global_clipnorm=0.1)),
    "loss_scale_optimizer": Case(
        softmax_dense, classes, optimizer=lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05))
    ),
    "weight_decay_with_exclusions": Case(softmax_dense, classes, optimizer=without_biases),
    "groups_of_learning_rates": Case(softmax_dense, classes, optimizer=groups),
}
OPTIMIZERS = {
    "SGD": {"nesterov": True, "momentum": 0.9},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adadelta": {},
    "Adagrad": {},
    "Adamax": {},
    "Adafactor": {},
    "Nadam": {},
    "Ftrl": {"l1_regularization_strength": 0.01},
    "Lion": {},
    "Lamb": {},
    "Muon": {},
}
CASES |= {
    f"optimizer_{name}": Case(
        softmax_dense, classes, optimizer=lambda name=name, o=o: getattr(keras.optimizers, name)(0.01, **o)
    )
    for name, o in OPTIMIZERS.items()
}


def made(thing: Any) -> Any:
    """A fresh copy of what stands in a case: losses and metrics have states and names of their own."""
    if isinstance(thing, dict):
        return {key: made(item) for key, item in thing.items()}
    if isinstance(thing, list):
        return [made(item) for item in thing]
    if thing is ignoring or isinstance(thing, type):
        return thing()
    return type(thing).from_config(thing.get_config()) if isinstance(thing, keras.Metric) else thing


def compare_variables(ours, theirs):
    theirs = [v for v in theirs if "metric" not in v.path]
    ours = [v for v in ours if "metric" not in v.path]
    for mine, other in zip(ours, theirs, strict=True):
        if "seed" in other.name:
            assert (mine.numpy() == other.numpy()).all()
        elif np.linalg.norm(other.numpy()) > 1e-5:  # a bias under batch normalization is rounding noise
            assert models.norm_difference(mine.numpy(), other.numpy()) < 1e-5, other.path
        else:
            assert np.linalg.norm(mine.numpy()) < 2e-5, other.path


def compare_logs(history, expected, skip):
    if "names" in skip:  # Keras calls unnamed outputs by their losses
        return
    for key in (key for key in expected if key.startswith("val_") and key.removeprefix("val_") not in skip):
        if key.endswith("_loss") and key != "val_loss":
            continue  # see test_losses_of_outputs_are_means_over_examples...
        name = key.replace("val_", "eval/", 1)
        theirs = np.array(expected[key])
        if theirs.ndim > 1:
            mine = np.stack([history[f"{name}/{i}"] for i in range(theirs.shape[1])], axis=1)
        else:
            mine = history[name]
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6, err_msg=key)
    ours = {name for name in history.names() if name.startswith("eval/")}
    names = {name.rpartition("/")[0] if name.rpartition("/")[2].isdigit() else name for name in ours}
    assert names - {"eval/examples"} == {k.replace("val_", "eval/", 1) for k in expected if k.startswith("val_")}


def run_both(case: Case, examples: int, optimizer: Callable[[], Any]) -> tuple[dict, Any, Any, Any]:
    data = tf.nest.map_structure(lambda a: a[:examples], case.data())
    batches = tf.data.Dataset.from_tensor_slices(data).batch(BATCH)
    keras.utils.set_random_seed(3)
    theirs = case.model()
    theirs.compile(optimizer(), made(case.loss), **made(case.compile))
    expected = theirs.fit(batches, epochs=1, validation_data=batches, verbose=0).history
    ours = looper.Trainer(model=case.model, optimizer=optimizer, loss=made(case.loss), seed=3, **made(case.compile))
    return expected, ours.fit(batches, epochs=1, eval_data=batches, progress=False), theirs, ours
