"""One architecture of every family of `keras.applications`: statistics move in training alone, and nothing is found.

`python -m benchmarks.audit_applications` does the same for all of them.
"""

import keras
import pytest

from benchmarks import audit_applications
from benchmarks.applications import SMALLEST


@pytest.mark.parametrize("family", SMALLEST)
def test_no_false_finding(family):
    keras.backend.clear_session()
    row = audit_applications.audit(SMALLEST[family])
    assert row["flags_right"] == row["mode_sensitive"]
    assert row["moved_in_training"] == row["batch_normalizations"]
    assert row["moved_in_evaluation"] == 0
    assert row["findings"] == {}
