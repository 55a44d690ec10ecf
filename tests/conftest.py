"""Two logical CPUs before TensorFlow starts, so that every test can run on one device or on two replicas."""

import gc
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["LOOPER_CACHE"] = "off"  # a test knows nothing of the one before

import pytest
import tensorflow as tf

LEAN = Path(__file__).parent / "support" / "lean"  # processes that tests start find its `sitecustomize`
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(LEAN), os.environ.get("PYTHONPATH")]))

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

collect_ignore = ["support/load_without_looper.py"]  # a script for a process of its own, without looper

from tests.support import graphs  # noqa: E402  (devices come first)
from tests.support.stopping import everything, train  # noqa: E402

graphs.leave_small_ones()

THOROUGH = Path(__file__).parent / "thorough.txt"


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help=f"run what {THOROUGH.name} lists, too")


def pytest_collection_modifyitems(config, items):
    """Leaves out what only a thorough run is for. What is named on the command line runs."""
    if config.getoption("--thorough") or any("::" in argument for argument in config.args):
        return
    listed = {line for line in THOROUGH.read_text().splitlines() if line and not line.startswith("#")}
    left_out = [item for item in items if item.nodeid.partition("@")[0] in listed]
    tests = {item.nodeid.partition("[")[0] for item in items}  # none of a file that could not be imported
    known = {item.nodeid.partition("@")[0] for item in left_out}
    unknown = [test for test in listed - known if test.partition("[")[0] in tests]
    if unknown:
        raise pytest.UsageError(f"{THOROUGH.name} lists {min(unknown)}, and there is no such variant")
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The end of an undisturbed run of `tests.support.stopping`, trained once for each data and options."""
    kept = {}

    def get(make_data, **options):
        key = (make_data, *options.items())
        if key not in kept:
            kept[key] = everything(train(tmp_path_factory.mktemp("undisturbed"), make_data, **options))
        return kept[key]

    return get


@pytest.fixture(autouse=True)
def _deleted():
    """Deletes what tests have left before it gets old.

    TensorFlow 2.21 tunes each pipeline of tf.data in a thread, which looks ever less often, and deleting an iterator
    sometimes waits for its next look: about as long as the iterator has lived, up to a minute.
    """
    global collected
    yield
    now = time.monotonic()
    if now - collected[1] > 2:  # seconds: to look for garbage after each small test would take longer
        whole = now - collected[2] > 40  # what is old is much, and little of it is garbage
        gc.collect(2 if whole else 1)
        collected = {1: now, 2: now if whole else collected[2]}


collected = {1: 0.0, 2: 0.0}
"""When garbage was looked for among what is young, and among all."""
gc.freeze()  # what was imported is not looked through again and again
gc.set_threshold(50_000, 20, 1000)  # tracing makes many objects: by default, looking through them takes a tenth of it
