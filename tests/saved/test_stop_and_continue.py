"""A run that is stopped at any step and started again ends with the same bits as an undisturbed one."""

import json
import os
import random
import signal

import numpy as np
import pytest

import looper
from looper.run.loop import StopSignals
from looper.saved import checkpoint, files
from tests.support import models
from tests.support.stopping import (
    EPOCHS,
    Stop,
    arrays,
    assert_same,
    dataset,
    everything,
    make_trainer,
    train,
    unknown_length,
)

pytestmark = pytest.mark.xdist_group("stop and continue")


# any way to stop is any data's: each of them once
@pytest.mark.parametrize(
    ("make_data", "how"),
    [(arrays, signal.SIGINT), (arrays, signal.SIGTERM), (dataset, "exception"), (unknown_length, signal.SIGINT)],
)
def test_stop_and_continue(undisturbed, tmp_path, make_data, how):
    expected = undisturbed(make_data)
    assert expected[2] < EPOCHS * 7, "early stopping is part of this test"
    step = random.Random(str((make_data.__name__, how))).randrange(1, expected[2])
    with pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError)) as stopped:
        train(tmp_path, make_data, [Stop(step, how)])
    if how == signal.SIGTERM:
        assert stopped.value.code == 75
    saved = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    if how == "exception":
        assert saved[-1:] == [(step - 1) // 4 * 4] * (step > 4)  # save_every=Every(steps=4), not at the exception
    else:
        assert saved[-1] >= step
    assert_same(everything(train(tmp_path, make_data)), expected)


@pytest.mark.parametrize(("make_data", "steps"), [(arrays, (2, 6, 7, 8)), (dataset, (3, 7))])
def test_a_run_that_is_stopped_again_and_again(undisturbed, tmp_path, make_data, steps):
    """In the middle of a pass of seven steps, before its end, at it, and after it; one run."""
    expected = undisturbed(make_data)
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, make_data, [Stop(step, signal.SIGINT)], steps_per_execution=1)
        assert checkpoint.step_of(checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1]) == step
    assert_same(everything(train(tmp_path, make_data)), expected)


def test_two_replicas_keep_their_own_seeds_and_statistics(undisturbed, tmp_path):
    options = {"strategy": "mirrored", "devices": 2, "epochs": 3}
    expected = undisturbed(arrays, **options)
    seeds = [value for name, value in expected[0].items() if "seed_generator_state" in name]
    assert len(seeds) == 2
    assert (seeds[0] != seeds[1]).any()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, arrays, [Stop(9, signal.SIGINT)], **options)
    assert_same(everything(train(tmp_path, arrays, **options)), expected)


def test_a_larger_number_continues(tmp_path):
    """In another process, and in the same; a finished run is not trained again."""

    def fit(trainer, epochs):
        trainer.fit(arrays(), epochs=epochs, batch_size=8, progress=False)
        return everything(trainer)

    expected = fit(make_trainer(None), 4)
    fit(make_trainer(tmp_path), 2)
    assert_same(fit(make_trainer(tmp_path), 4), expected)
    assert_same(fit(make_trainer(tmp_path), 4), expected)
    same = make_trainer(None)
    fit(same, 2)
    assert_same(fit(same, 4), expected)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(undisturbed, tmp_path):
    expected = undisturbed(arrays)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, arrays, [Stop(13, signal.SIGINT)], steps_per_execution=1)
    newest = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1]
    file = newest / "state.data-00000-of-00001"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"damaged.*{newest.name}"):
        trainer = train(tmp_path, arrays)
    assert_same(everything(trainer), expected)


def test_a_second_interrupt_stops_at_once():
    """The first is noted, for the end of the execution."""
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nothing_in_a_checkpoint_is_unpickled(tmp_path):
    """An array of Python objects, such as an attacker would write, is a damaged file: no code in it runs."""
    path = make_trainer(None).save(tmp_path / "here")
    np.savez(path / "host.npz", array_0=np.array([Touches(tmp_path / "touched")], object))
    content = json.loads((path / "host.json").read_text())
    content["host"]["window"] = {"__array__": "array_0"}
    (path / "host.json").write_text(json.dumps(content))
    (path / files.MANIFEST).unlink()
    files.write_manifest(path)
    with pytest.raises(looper.InputError, match="the checkpoint is damaged"):
        make_trainer(None).restore(path)
    assert not (tmp_path / "touched").exists()


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_resume_weights_and_resume_false_keep_the_old_files(tmp_path):
    first = make_trainer(tmp_path)
    first.fit(arrays(), epochs=2, batch_size=8, progress=False)
    trained = [w.numpy() for w in first.model.weights]
    second = make_trainer(tmp_path)
    second.fit(arrays(), steps=1, batch_size=16, resume="weights", progress=False)
    assert second.step == 1
    assert models.norm_difference(second.model.weights[0].numpy(), trained[0]) < 0.2
    third = make_trainer(tmp_path)
    third.fit(arrays(), steps=1, batch_size=8, resume=False, progress=False)
    assert models.norm_difference(third.model.weights[0].numpy(), trained[0]) > 0.2
    kept = sorted(path.parent.name for path in (tmp_path / "previous").glob("*/checkpoints"))
    assert kept == ["1", "2"]


def test_save_and_restore_by_hand(tmp_path):
    data = arrays()
    first = make_trainer(None)
    first.fit(data, steps=9, batch_size=8, progress=False)
    path = first.save(tmp_path / "here")
    first.fit(data, steps=20, batch_size=8, progress=False)
    second = make_trainer(None)
    second.restore(path)
    assert second.step == 9
    second.fit(arrays(), steps=20, batch_size=8, progress=False)
    assert_same(everything(second)[:1] + ([],), everything(first)[:1] + ([],))
