"""Several workers train as one: the same numbers, one that writes and decides, and nothing that differs unnoticed."""

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from looper.base.ledger import Ledger
from looper.run.callback_view import Now
from looper.run.loop import Loop
from tests.support import golden, processes, scenarios

pytestmark = pytest.mark.xdist_group("workers")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each scenario of `tests.support.scenarios` returned, on worker 0 and on worker 1."""
    folder = tmp_path_factory.mktemp("workers")
    codes = processes.together(2, ["-m", "tests.support.scenarios", str(folder)], folder)
    assert codes == [0, 0], processes.output(folder, 0) + processes.output(folder, 1)
    results = [json.loads((folder / f"result_{rank}.json").read_text()) for rank in (0, 1)]
    for result in results:
        for name, value in result.items():
            assert isinstance(value, dict), f"{name}: {value}"
    return {name: (results[0][name], results[1][name]) for name in results[0]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What this process finds alone, where two are compared with it."""
    folder = tmp_path_factory.mktemp("alone")
    compared = [
        scenarios.training_evaluation_prediction,
        scenarios.metrics_of_any_kind,
        scenarios.shares_of_the_data,
    ]
    return {scenario.__name__: scenario(folder, 0) for scenario in compared}


@pytest.mark.parametrize("name", ["training_evaluation_prediction", "shares_of_the_data"])
def test_equals_one_process(found, alone, name):
    """The second: each worker loads its share of the data only, in parts of other sizes, and is stopped in between."""
    one = alone[name]
    for two in found[name]:
        for ours, theirs in zip(two["weights"], one["weights"], strict=True):
            # float32: the bound on the norm of a tensor
            assert np.linalg.norm(np.subtract(ours, theirs)) <= 1e-5 * np.linalg.norm(theirs)
        for log, values in one["logs"].items():
            np.testing.assert_allclose(two["logs"][log], values, rtol=2e-5, err_msg=log)  # float32 sums in other order
        for log, value in one["evaluation"].items():
            assert two["evaluation"][log] == pytest.approx(value, rel=2e-5), log
        predicted = [result.get("prediction", []) for result in (two, one)]
        np.testing.assert_allclose(*predicted, rtol=1e-4, atol=1e-5)  # after 20 such steps
    assert found[name][0] == found[name][1], "all workers see the same numbers"


def test_a_step_is_one_collective_and_all_metrics_are_two(found):
    """Gradients and logs together; the metrics, once in an execution, one for each of their two dtypes."""
    assert [result["collectives"] for result in found["metrics_of_any_kind"]] == [3, 3]


def test_metrics_are_those_of_one_process(found, alone):
    one = alone["metrics_of_any_kind"]["logs"]
    assert one["from_five"] == [5 + 2 * 8] * 3  # steps of a window, examples of a batch
    for result in found["metrics_of_any_kind"]:
        assert result["logs"] == one


def test_xla_on_each_worker_equals_the_graph(found):
    zero, one = found["modes_of_execution"]
    assert zero == one, "also of what auto has chosen"
    assert zero["xla_step"]["mode"] == "xla_step"
    assert zero["auto"]["mode"] in ("graph", "xla_step")
    for ours, theirs in zip(zero["xla_step"]["weights"], zero["graph"]["weights"], strict=True):
        # float32: the bound on the norm of a tensor
        assert np.linalg.norm(np.subtract(ours, theirs)) <= 1e-5 * np.linalg.norm(theirs)
    assert "xla_loop' is for one device" in zero["loop"]


def test_goes_on_with_the_same_bits(found):
    for rank, result in enumerate(found["stopping_and_continuing"]):
        assert result["same"] and result["same_statistics"], f"worker {rank}"
        assert result["began"] == 12
        assert "rank_1" in result["files"]
    zero, one = found["stopping_and_continuing"]
    assert zero["statistics"] != one["statistics"], "each worker keeps its own batch statistics while it trains"


def test_an_old_checkpoint_goes_on(found):
    assert found["an_older_loopers_run"] == ({"step": golden.STEPS}, {"step": golden.STEPS})


def test_only_the_chief_writes(found):
    zero, one = found["the_chief_writes"]
    assert zero["model"] and zero["rows"] == 25  # 20 steps, three evaluations and two epochs
    assert not one["model"]


def test_keras_callbacks_that_write_are_called_by_the_chief(found):
    zero, one = found["callbacks_of_keras"]
    assert zero["wrote"] and not one["wrote"]
    assert zero["ended"] == one["ended"] == 14  # two epochs of 7 steps


def test_a_clock_that_goes_otherwise_changes_nothing(found):
    zero, one = found["decisions_by_a_clock"]
    assert zero == one
    assert len(zero["ticks"]) > 3 and len(zero["rows"]) > 2, "the clock did decide"


def test_early_stopping_ends_all(found):
    assert [result["ended"] for result in found["early_stopping"]] == [10, 10]


def test_the_chief_decides(found):
    assert [result["ended"] for result in found["a_decision_of_one_worker"]] == [8, 8]


def test_all_workers_get_what_the_chiefs_callbacks_log(found):
    chief, other = found["logs_of_callbacks"]
    assert chief == other
    assert chief["ended"] == 3 and chief["alone"] == [1.0] * 3 and chief["rank"] == [10.0, 20.0, 30.0]
    assert "on several workers a callback declares what it logs" in chief["undeclared"]


def test_a_signal_of_any_worker_counts_and_all_else_of_the_chief():
    """What worker 1 makes of what both tell each other, without processes."""

    class Two:
        size = 2

        def gather(self, mine):
            return np.array([[100.0, 0.5, 0, False, True, 3], mine], np.float64)

    now, told = Now(0, 0), []
    now.stop("its own")
    worker = SimpleNamespace(
        _run=SimpleNamespace(now=now),
        _workers=Two(),
        _signals=SimpleNamespace(received=signal.SIGTERM),
        _ledger=Ledger(),
        _clock=SimpleNamespace(tell=told.append),
        _saved=["one", "two"],
    )
    assert Loop._agree(worker, 2.0) == 0.5
    assert worker._signal == signal.SIGTERM
    assert told == [100.0]
    assert now.stop_reason is None and now.save_asked
    assert worker._published == 2  # checkpoints that both know to be written


def test_a_signal_to_one_worker_ends_all(found):
    zero, one = found["a_signal_to_one_worker"]
    assert zero == one
    assert zero["code"] == 75 and zero["saved"] == [f"step_{zero['step']:08d}"]


def test_what_differs_is_told_to_all(found):
    for name, said in {
        "other_options": "options.clip_norm is 1, on worker 1 it is 2",
        "another_fit": "fit.steps is 20, on worker 1 it is 21",
        "another_workdir": "does not see what worker 0 writes there",
        "shares_of_other_lengths": "the shares have 5, 4 batches",
        "callbacks_of_keras": "BackupAndRestore puts back the weights of one worker",
        "batches_too_small": "fewer than the 2 replicas",
    }.items():
        for rank, result in enumerate(found[name]):
            assert said in (result["error"] or ""), f"{name} on worker {rank}: {result['error']}"
    assert all("options.ema" in (result["averaged"] or "") for result in found["other_options"])


def test_noise_on_gradients_is_the_same_on_all_workers(found):
    zero, one = found["gradients_with_noise"]
    assert zero == one and zero["weights"]


def test_what_a_rank_does_otherwise_is_told_to_all(found):
    for rank, result in enumerate(found["what_differs_unnoticed"]):
        assert "options.workdir is true, on worker 1 it is false" in result["workdir"], rank
        assert "evaluation data" in result["evaluation"], rank
        assert "callbacks" in result["callbacks"], rank
        assert "shuffle() has no seed" in result["dataset"], rank


def test_each_replica_keeps_its_seeds_when_weights_are_taken_over(found):
    zero, one = found["weights_of_another_run"]
    assert zero["seeds"] and zero["seeds"] != one["seeds"]
    assert zero["after"] != one["after"]


def test_another_model_fails_where_it_is_made(found):
    """The last scenario: TensorFlow's collectives do not work any more after it."""
    zero, one = found["another_model"]
    errors = f"{zero['error']} {one['error']}"
    assert "the workers build different models" in errors
    assert "Shape mismatch in the collective" in errors and "[6,4]" in errors and "[6,3]" in errors


def test_dropout_masks_differ_and_repeat(found):
    zero, one = found["dropout_masks"]
    assert zero == one
    first, again = zero["masks"]
    assert first == again, "the seed decides"
    assert first[0] != first[1], "each replica drops other units"
