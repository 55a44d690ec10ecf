"""Whatever is given ends in the numbers of a plain reference, or in one of looper's own errors: never in a hang, never
in a traceback of TensorFlow's.

`LOOPER_FUZZ=500` tries that many; by default there are six, the same ones each time.
"""

import os
import warnings

import hypothesis
import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

import looper
from looper.base.errors import InputError, NonFiniteLossError, StepError
from tests.support import models

L = models.L
TRIED = int(os.environ.get("LOOPER_FUZZ", "6"))
OWN = (InputError, NonFiniteLossError, StepError)

floats = st.sampled_from(["float32", "float64", "float16"])
integers = st.sampled_from(["int32", "int64", "uint8", "bool"])
leaf = st.tuples(st.sampled_from([(3,), (2, 2), (1,), ()]), floats | integers)
structures = st.one_of(
    leaf,
    st.dictionaries(st.sampled_from(["a", "b", "c"]), leaf, min_size=1, max_size=3),
    st.lists(leaf, min_size=1, max_size=3).map(tuple),
)


@st.composite
def cases(draw):
    """What a user may give, right or wrong; `wrong` names what cannot work."""
    case = {
        "inputs": draw(structures),
        "examples": draw(st.integers(0, 13)),
        "batch_size": draw(st.integers(1, 9)),
        "kind": draw(st.sampled_from(["arrays", "dataset", "unknown length", "generator", "empty batch"])),
        "targets": draw(st.sampled_from(["classes", "column", "one_hot", "values"])),
        "weights": draw(st.sampled_from([None, "some", "zeros", "column"])),
        "class_weight": draw(st.sampled_from([None, {0: 2.0}, {0: 1, 1: 0.5, 2: 3}])),
        "nan": draw(st.sampled_from([False] * 7 + [True])),
        "short_targets": draw(st.sampled_from([False] * 7 + [True])),
        "loss": draw(st.sampled_from(["match", "match", "match", "mse", "sum", "mean_with_sample_weight"])),
        "metrics": draw(st.sampled_from([[], [], [], ["accuracy"], ["mae"], {"out": "mse"}])),
        "options": {
            "accumulate": draw(st.integers(1, 3)),
            "clip_norm": draw(st.sampled_from([None, 0.01, 10.0])),
            "precision": draw(st.sampled_from(["float32", "float64"])),
            "steps_per_execution": draw(st.sampled_from([1, 3, "auto"])),
            "execution": draw(st.sampled_from(["graph", "graph", "graph", "eager"])),
            "strategy": draw(st.sampled_from(["one_device", "one_device", "mirrored"])),
        },
        "length": draw(st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"steps": 1}, {"steps": 5}])),
    }
    case["options"]["devices"] = 2 if case["options"]["strategy"] == "mirrored" else None
    return case


def make_data(case):
    random = np.random.default_rng(5)
    count = case["examples"]

    def array(spec):
        shape, dtype = spec
        values = random.uniform(0, 2, (count, *shape)).astype(dtype)
        if case["nan"] and count and values.dtype.kind == "f":
            values[count // 2] = np.nan
        return values

    x = _map(array, case["inputs"])
    classes = random.integers(0, 3, max(count - (case["short_targets"] and case["kind"] == "arrays"), 0))
    y = {
        "classes": classes,
        "column": classes[:, None],
        "one_hot": np.eye(3, dtype="float32")[classes],
        "values": random.normal(size=(len(classes), 3)),
    }[case["targets"]]
    if case["weights"] is None:
        return x, y
    weights = np.linspace(0, 2, count).astype("float32") * (case["weights"] != "zeros")
    return x, y, weights[:, None] if case["weights"] == "column" else weights


def _map(function, structure):
    if isinstance(structure, dict):
        return {key: _map(function, item) for key, item in structure.items()}
    if isinstance(structure, tuple) and not (len(structure) == 2 and isinstance(structure[1], str)):
        return tuple(_map(function, item) for item in structure)
    return function(structure)


def make_model(case):
    inputs = _map(lambda spec: keras.Input(spec[0], dtype=spec[1] if spec[1] != "float64" else None), case["inputs"])
    flat = [L.Flatten()(tf_cast(x)) if x.shape[1:] else L.Reshape((1,))(tf_cast(x)) for x in keras.tree.flatten(inputs)]
    joined = L.Concatenate()(flat) if len(flat) > 1 else flat[0]
    return keras.Model(inputs, L.Dense(3, activation="softmax", name="out")(joined))


def tf_cast(x):
    return keras.ops.cast(x, keras.config.floatx())


def make_loss(case):
    if case["loss"] == "mse":
        return keras.losses.MeanSquaredError()
    reduction = case["loss"] if case["loss"] != "match" else "sum_over_batch_size"
    if case["targets"] in ("classes", "column"):
        return keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    if case["targets"] == "one_hot":
        return keras.losses.CategoricalCrossentropy(reduction=reduction)
    return keras.losses.MeanSquaredError(reduction=reduction)


def as_given(case, data):
    if case["kind"] == "arrays":
        return data
    if case["kind"] in ("generator", "empty batch"):
        return lambda: batches_of(case, data)
    dataset = tf.data.Dataset.from_tensor_slices(data)
    if case["kind"] == "unknown length":
        dataset = dataset.filter(lambda *_: True)
    return dataset.batch(case["batch_size"])


def batches_of(case, data):
    """NumPy batches; of the kind "empty batch", the second one has no examples."""
    for start in range(0, case["examples"], case["batch_size"]):
        if start == case["batch_size"] and case["kind"] == "empty batch":
            yield tf.nest.map_structure(lambda a: a[:0], data)
        yield tf.nest.map_structure(lambda a: a[start : start + case["batch_size"]], data)  # noqa: B023


def train(case, data):
    """With looper: the weights and the evaluation after it."""
    trainer = looper.Trainer(
        model=lambda: make_model(case),
        optimizer=lambda: keras.optimizers.SGD(0.1),
        loss=lambda: make_loss(case),
        metrics=case["metrics"],
        **case["options"],
    )
    options = {"batch_size": case["batch_size"], "shuffle": False} if case["kind"] == "arrays" else {}
    given = as_given(case, data)
    trainer.fit(given, **case["length"], class_weight=case["class_weight"], progress=False, **options)
    options.pop("shuffle", None)
    return [w.numpy() for w in trainer.model.weights], trainer.evaluate(given, **options), trainer.step


def train_by_hand(case, data):
    """Keras' objects in a plain eager loop, one device, no micro-batches."""
    floatx = "float64" if case["options"]["precision"] == "float64" else "float32"
    policy = keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    try:
        keras.utils.set_random_seed(0)
        model, loss, optimizer = make_model(case), make_loss(case), keras.optimizers.SGD(0.1)
        examples, size = case["examples"], case["batch_size"]
        data = tf.nest.map_structure(lambda a: tf.constant(a.astype(floatx) if a.dtype == "float64" else a), data)
        batches = [
            tf.nest.map_structure(lambda a: a[i : i + size], data)  # noqa: B023
            for i in range(0, examples, size)
        ]
        steps = case["length"].get("steps") or case["length"]["epochs"] * len(batches)
        for step in range(steps):
            x, y, weights = (*batches[step % len(batches)], None)[:3]
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True), weighted(case, y, weights))
            gradients = tape.gradient(value, model.trainable_variables)
            if case["options"]["clip_norm"]:
                gradients, _ = tf.clip_by_global_norm(gradients, case["options"]["clip_norm"])
            optimizer.apply(gradients, model.trainable_variables)
        return [w.numpy() for w in model.weights], steps
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)


def weighted(case, y, weights):
    if case["class_weight"] is None:
        return weights
    labels = tf.argmax(y, -1).numpy() if len(y.shape) > 1 and y.shape[-1] > 1 else np.ravel(y)
    per_class = np.array([case["class_weight"].get(round(label), 1.0) for label in labels], "float32")
    if weights is None:
        return tf.constant(per_class)
    return tf.cast(weights, tf.float32) * (per_class[:, None] if len(weights.shape) > 1 else per_class)


@hypothesis.settings(
    max_examples=TRIED,
    deadline=None,  # a compilation takes what it takes
    derandomize="LOOPER_FUZZ" not in os.environ,
    database=None,
    phases=[hypothesis.Phase.generate],  # shrinking costs minutes of compilations
    report_multiple_bugs=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(cases())
def test_a_reference_s_numbers_or_our_own_error(case):
    data = make_data(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            weights, results, steps = train(case, data)
        except OWN as error:
            assert "\n" not in str(error), str(error)
            assert may_fail(case) or fails_by_hand(case, data), f"nothing is wrong, but: {error}"
            hypothesis.event("an error of ours")
            return
        expected, expected_steps = train_by_hand(case, data)
    hypothesis.event("numbers compared")
    assert steps == expected_steps
    assert results["examples"] == case["examples"]
    for mine, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4, atol=2e-5)  # float32, and float16 inputs


def may_fail(case):
    """Whether something in the case is wrong that the plain loop does not notice, so that an error is right."""
    return (
        case["examples"] == 0
        or (case["kind"] == "empty batch" and case["examples"] > case["batch_size"])
        or case["nan"]
        or (case["kind"] == "arrays" and case["short_targets"])
        or (case["options"]["strategy"] == "mirrored" and min(case["examples"], case["batch_size"]) < 2)
        or (case["kind"] != "arrays" and "steps" in case["length"])  # it may end before them
        or (case["metrics"] in (["mae"], {"out": "mse"}) and case["targets"] in ("classes", "column"))
    )


def fails_by_hand(case, data):
    try:
        train_by_hand(case, data)
    except (ValueError, TypeError, tf.errors.OpError):
        return True
    return False
