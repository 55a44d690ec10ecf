"""Run by tests/saved/test_export.py in a process of its own: loads what looper wrote, without looper."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import tensorflow as tf


def serve(saved: Any, signature: str, inputs: dict) -> dict[str, np.ndarray]:
    outputs = saved.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def from_checkpoint(path: Path) -> keras.Model:
    model = models.convolutional()
    reader = tf.train.load_checkpoint(str(path / "state"))
    for name in reader.get_variable_to_shape_map():
        if found := re.match(r"variables/model\.S(\d+)\.S\w+/", name):
            model.variables[int(found[1])].assign(reader.get_tensor(name))
    return model


def from_weights(model: keras.Model, path: Path) -> keras.Model:
    model.load_weights(path)
    return model


def main(folder: Path) -> None:
    assert "looper" not in sys.modules
    sys.modules["looper"] = None  # importing it is an error from here on
    x = np.load(folder / "x.npy")
    inputs = dict(np.load(folder / "inputs.npz"))
    results: dict[str, np.ndarray] = {}
    for name in ("one", "two"):
        results[f"{name}.keras"] = keras.models.load_model(folder / f"{name}.keras")(x).numpy()
        weights = from_weights(models.convolutional(), folder / f"{name}.weights.h5")
        results[f"{name}.weights"] = weights(x).numpy()
        saved = tf.saved_model.load(folder / name)  # its functions do not keep its variables alive
        results[f"{name}.saved"] = saved.serve(x).numpy()
        for signature in ("serve", "serving_default"):
            [argument] = saved.signatures[signature].structured_input_signature[1]  # an input without a name of its own
            [results[f"{name}.{signature}"]] = serve(saved, signature, {argument: x}).values()
    results["one.checkpoint"] = from_checkpoint(folder / "one_checkpoint")(x).numpy()
    loaded = keras.models.load_model(folder / "several.keras")
    results |= {f"several.keras.{k}": np.float32(v) for k, v in loaded(inputs).items()}
    saved = tf.saved_model.load(folder / "several")
    served = serve(saved, "serving_default", inputs)
    results |= {f"several.saved.{k}": np.float32(v) for k, v in served.items()}
    np.savez(folder / "results.npz", **results)
    call = saved.signatures["serving_default"]
    several = {
        "signatures": sorted(saved.signatures),
        "inputs": {k: [v.dtype.name, *v.shape] for k, v in call.structured_input_signature[1].items()},
        "outputs": {k: [v.dtype.name, *v.shape] for k, v in call.structured_outputs.items()},
        "policy": loaded.get_layer("hidden").dtype_policy.name,
    }
    print(json.dumps(several))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
