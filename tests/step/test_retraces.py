"""What is compiled again although it need not be is said once, with what changed; ordinary runs say nothing."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from looper import callbacks
from looper.data import stacks
from looper.step import cache
from tests.support import inside, models


def small():
    """Compiled many times here."""
    return models.dense(norm=False)


def trainer(**options):
    return looper.Trainer(
        model=small, optimizer=lambda: keras.optimizers.SGD(0.1), loss=models.cross_entropy, **options
    )


def batches(size, examples=64, **options):
    return tf.data.Dataset.from_tensor_slices(models.data(examples=examples)).batch(size, **options)


def fixed(size):
    """Batches whose number of examples is part of their shape."""
    return batches(size, drop_remainder=True)


def of_sizes(*sizes):
    """Batches of these numbers of examples, in this order."""
    x, y = models.data(examples=max(sizes))
    spec = (tf.TensorSpec([None, *x.shape[1:]], x.dtype), tf.TensorSpec([None], y.dtype))
    data = tf.data.Dataset.from_generator(lambda: ((x[:n], y[:n]) for n in sizes), output_signature=spec)
    return data.apply(tf.data.experimental.assert_cardinality(len(sizes)))


@pytest.fixture
def told():
    """The messages about compiling again; other warnings are left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in caught if "compiled again" in str(w.message)]


def test_evaluation_of_batches_of_other_static_shapes(told):
    mine = trainer()
    mine.evaluate(fixed(8))
    assert told() == []
    for size in (16, 32, 8, 4):
        mine.evaluate(fixed(size))
    assert told() == [
        "the evaluation steps are compiled again: batch[0] was float32[8, 6], is now float32[16, 6]. To compile once, "
        "give batches of one size, or leave the axis that varies open, such as with dataset.batch(n) without "
        "drop_remainder."
    ]


def test_training_on_another_dtype(told):
    mine = trainer()
    x, y = models.data(examples=32)
    mine.fit((x, y), epochs=1, batch_size=8, progress=False)
    for epochs in (2, 3):
        mine.fit((x, y.astype("int64" if epochs == 2 else "int16")), epochs=epochs, batch_size=8, progress=False)
    [message] = told()
    assert message == (
        f"the training steps are compiled again: batch[1] was {y.dtype}[8], is now int64[8]. To compile once, "
        f"cast it to one dtype, such as with dataset.map and tf.cast(..., tf.{y.dtype})."
    )


def test_prediction_in_a_loop(told):
    mine = trainer()
    x = models.data(examples=64)[0]
    for size in (8, 16, 32):
        mine.predict(tf.data.Dataset.from_tensor_slices(x).batch(size, drop_remainder=True))
    [message] = told()
    assert message.startswith("the prediction steps are compiled again: ")
    assert "batch was float32[8, 6], is now float32[16, 6]" in message


def test_other_structures_are_other_data_until_there_are_many(told):
    mine = trainer()
    x, y = models.data(examples=16)
    weight = np.ones(16, "float32")
    mine.evaluate((x, y), batch_size=8)
    mine.evaluate((x, y, weight), batch_size=8)
    assert told() == []

    class Any(looper.Trainer):
        def build(self):
            self.model = models.dense()
            self.optimizer = keras.optimizers.SGD(0.1)

        def eval_step(self, batch):
            return {"mean": tf.reduce_mean(tf.nest.flatten(batch)[0])}

    other = Any()
    for data in ((x, y), (x, y, weight), (x, {"y": y}), (x, {"z": y})):
        other.evaluate(data, batch_size=8)
    [message] = told()
    assert "are now batch[0] float32[8, 6], batch[1]['y'] " in message


def test_class_weights_that_change(told):
    mine = trainer()
    x, y = models.data(examples=16)
    for epoch, weights in enumerate((None, {0: 2.0}, {0: 3.0}), start=1):
        mine.fit((x, y), epochs=epoch, batch_size=8, class_weight=weights, progress=False)
    assert told() == [
        "the training steps are compiled again: class_weight was None, is now {0: 2.0}. To compile once, put weights "
        "that change into the data, as (x, y, sample_weight)."
    ]


def test_more_settings_in_turn_than_are_kept(told, monkeypatch):
    monkeypatch.setattr(cache, "MOST", 3)
    mine = trainer()
    x, y = models.data(examples=16)
    for epoch in range(4 + 1):
        weight = {0: 1.0 + epoch % 4}
        mine.fit((x, y), epochs=epoch + 1, batch_size=16, class_weight=weight, progress=False)
    assert [message for message in told() if "the last 3 settings are kept" in message] == told()[1:]
    assert len(told()) == 2


def test_what_tensorflow_traces_again_by_itself(told, monkeypatch):
    """Steps that are given an iterator of another spec; and, for a reason of TensorFlow's own, of the same."""
    monkeypatch.setattr(stacks, "GRAPH_STACK_BYTES", 0)  # an iterator of batches, and no stacks
    mine = trainer()
    mine.fit(fixed(8), epochs=1, progress=False)
    [execution] = inside.executions(mine, "train")
    assert execution.traces == 1
    execution(iter(fixed(16)), 1)
    assert execution.traces == 2
    [message] = told()
    assert "batch[0] was float32[8, 6], is now float32[16, 6]" in message
    tf.config.run_functions_eagerly(True)  # runs what is traced as Python, each time
    try:
        execution(iter(fixed(16)), 1)
    finally:
        tf.config.run_functions_eagerly(False)
    assert "their batches are still batch[0] float32[16, 6], batch[1] int32[16]" in told()[1]


@pytest.mark.parametrize("execution", ["xla_step", "xla_loop"])
def test_batches_of_many_sizes_in_xla(execution, told):
    mine = trainer(execution=execution)
    mine.fit(of_sizes(16, 16, 8), epochs=2, progress=False)
    assert told() == [], "a full size and a last one"
    mine.fit(of_sizes(16, 12, 16, 8, 4), epochs=3, progress=False)
    assert told() == [
        "the training steps are compiled again: batches had 16, 8 examples, one has 12 now, and XLA compiles a program "
        "for each size. To compile once, give batches of one size (only the last may differ), or execution='graph'."
    ]


def test_batches_of_many_sizes_in_the_graph_are_nothing_to_tell(told):
    trainer().fit(of_sizes(16, 12, 16, 8, 4), epochs=2, progress=False)
    assert told() == []


@pytest.mark.parametrize("execution", ["graph", "xla_step", "xla_loop", "eager"])
def test_ordinary_runs_say_nothing(execution, tmp_path, capsys):
    """An uneven last batch, evaluation, continued fits, prediction, layers unfrozen: no warning, nothing printed."""

    def model():
        layers = [keras.Input((6,)), keras.layers.Dense(8, name="first"), keras.layers.Dense(3, name="last")]
        made = keras.Sequential(layers)
        looper.freeze(made.get_layer("first"))
        return made

    mine = looper.Trainer(
        model=model, optimizer="sgd", loss=models.cross_entropy, workdir=tmp_path, execution=execution
    )
    x, y = models.data(examples=38)
    options = {"batch_size": 16, "eval_data": (x[:33], y[:33]), "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine.fit((x, y), epochs=1, **options)
        unfreeze = callbacks.Unfreeze(at=looper.Every(epochs=2), layers=["first"])
        mine.fit((x, y), epochs=3, callbacks=[unfreeze], **options)
        mine.evaluate((x, y), batch_size=16)
        mine.evaluate((x[:32], y[:32]), batch_size=16)
        mine.evaluate((x[:5], y[:5]), batch_size=3)
        mine.predict(x)
        mine.predict(x[:7], batch_size=2)
        mine.fit((x, y), epochs=4, **options)
    assert capsys.readouterr() == ("", "looper: unfrozen after step 6: first\n"), "what is announced anyway"


def test_a_new_model_begins_anew(told):
    mine = trainer()
    mine.evaluate(fixed(8))
    mine.model = models.dense()
    mine.evaluate(fixed(16))
    assert told() == []
