"""Checkpoints that an older looper wrote go on as they did then: see `tests/support/golden.py`."""

import shutil

import pytest

from tests.support import golden

HERE = [name for name in golden.CASES if name != "workers"]  # a scenario of the workers' tests


# where the phase, the replicas' seeds or callbacks matter, a workdir's run goes another way than `restore`
@pytest.mark.parametrize(
    ("name", "way"),
    [(name, "restore") for name in HERE]
    + [(name, "workdir") for name in ("xla_loop", "unfrozen", "lazy", "two_of_a_kind")],
)
@pytest.mark.filterwarnings("ignore:.*state of .*EarlyStopping")
def test_an_old_checkpoint_goes_on(name, way, tmp_path):
    case = golden.CASES[name]
    if way == "workdir":
        shutil.copytree(golden.checkpoint(name), tmp_path / "checkpoints" / golden.checkpoint(name).name)
    trainer = case.trainer(tmp_path if way == "workdir" else None)
    if way == "restore":
        trainer.restore(golden.checkpoint(name))
    golden.check(name, case.run(trainer))
