"""What `save_model` writes, and a checkpoint, load in a process without looper and predict the same."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import models

pytestmark = pytest.mark.xdist_group("export")

L = models.L
FORMS = (".keras", ".weights.h5", "")


def several() -> keras.Model:
    """Inputs in a dict, outputs in a dict."""
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    hidden = L.Concatenate()([L.Dense(8, activation="tanh", name="hidden")(a), b])
    return keras.Model({"a": a, "b": b}, {"first": L.Dense(3)(hidden), "second": L.Dense(1, dtype="float32")(hidden)})


def image_trainer(strategy):
    trainer = looper.Trainer(
        model=models.convolutional,
        optimizer=lambda: keras.optimizers.SGD(0.1),
        loss=models.cross_entropy,
        strategy=strategy,
        devices=2 if strategy == "mirrored" else None,
    )
    trainer.fit(models.data((6, 6, 1), examples=32), epochs=2, batch_size=8, progress=False)
    return trainer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Everything is written here and read by one other process: (expected, what it read, what it said)."""
    folder = tmp_path_factory.mktemp("exported")
    x, inputs = models.data((6, 6, 1), examples=32)[0], models.two_inputs_data(20)[0]
    np.save(folder / "x.npy", x)
    np.savez(folder / "inputs.npz", **inputs)
    trainers = {"one": image_trainer("one_device"), "two": image_trainer("mirrored")}
    expected = {name: trainer.predict(x) for name, trainer in trainers.items()}
    trainers["several"] = looper.Trainer(model=several, precision="mixed_bfloat16")
    expected["several"] = trainers["several"].predict(inputs)
    for name, trainer in trainers.items():
        for form in FORMS:
            trainer.save_model(folder / f"{name}{form}")
    trainers["one"].save(folder / "one_checkpoint")
    command = [sys.executable, "load_without_looper.py", str(folder)]
    run = subprocess.run(command, cwd=Path(models.__file__).parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    with np.load(folder / "results.npz") as results:
        return trainers, expected, dict(results), json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("form", ["keras", "weights", "saved", "serve", "serving_default"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_a_fresh_process_predicts_the_same(exported, name, form):
    _, expected, results, _ = exported
    np.testing.assert_allclose(results[f"{name}.{form}"], expected[name], atol=1e-5)  # float32, another batch size


def test_a_checkpoint_loads_without_looper(exported):
    _, expected, results, _ = exported
    np.testing.assert_allclose(results["one.checkpoint"], expected["one"], atol=1e-5)


def test_the_exported_statistics_are_the_mean_over_the_replicas(exported, tmp_path):
    two = exported[0]["two"]
    batch_norm = two.model.layers[1]
    parts = [p.numpy() for p in two.strategy.experimental_local_results(batch_norm.moving_mean.value)]
    assert not np.array_equal(*parts)
    two.save_model(tmp_path / "two.weights.h5")
    model = models.convolutional()
    model.load_weights(tmp_path / "two.weights.h5")
    np.testing.assert_allclose(model.layers[1].moving_mean.numpy(), np.mean(parts, 0), rtol=1e-6)  # float32
    after = [p.numpy() for p in two.strategy.experimental_local_results(batch_norm.moving_mean.value)]
    np.testing.assert_array_equal(after, parts)  # training goes on with each replica's own


@pytest.mark.parametrize("form", ["keras", "saved"])
@pytest.mark.parametrize("output", ["first", "second"])
def test_several_inputs_and_outputs_in_bfloat16(exported, form, output):
    _, expected, results, _ = exported
    # 0.02: bfloat16 has 8 bits, and a graph fuses other operations than Keras' eager call
    np.testing.assert_allclose(results[f"several.{form}.{output}"], np.float32(expected["several"][output]), atol=0.02)


def test_names_and_dtypes_of_the_signature(exported):
    said = exported[3]
    assert said["signatures"] == ["serve", "serving_default"]
    assert said["inputs"] == {"a": ["float32", None, 4], "b": ["float32", None, 2]}
    assert said["outputs"] == {"first": ["bfloat16", None, 3], "second": ["float32", None, 1]}
    assert said["policy"] == "mixed_bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_weights_can_be_written_twice(exported, tmp_path):
    for _ in range(2):
        exported[0]["one"].save_model(tmp_path / "a.weights.h5")
    assert tf.io.gfile.exists(str(tmp_path / "a.weights.h5"))
