"""One architecture of every family of `keras.applications`: a step and an evaluation equal a loop written by hand.

`python -m benchmarks.applications` does the same for all of them.
"""

import keras
import pytest

from benchmarks import applications
from benchmarks.applications import SMALLEST


def test_the_list_is_complete():
    families = {getattr(keras.applications, name).__module__.split(".")[-1] for name in applications.ARCHITECTURES}
    assert families == set(SMALLEST)


@pytest.mark.parametrize("family", SMALLEST)
def test_a_step_and_an_evaluation_equal_a_hand_written_loop(family):
    keras.backend.clear_session()
    comparison = applications.compare(SMALLEST[family])
    # float64; what is left comes of batch normalization over four examples of 1x1 pixels, which magnifies rounding
    assert max(comparison.loss, comparison.evaluation, comparison.weights, comparison.update) < 1e-5
    assert comparison.statistics_moved == comparison.statistics
    assert comparison.changed_in_evaluation == 0
