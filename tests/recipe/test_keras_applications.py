"""Architectures of `keras.applications`: a step and an evaluation equal a loop by hand, and the audit finds nothing.

One that is small, with batch normalization, dropout, depthwise convolution and branches. The commands
`python -m benchmarks.applications` and `python -m benchmarks.audit_applications` do the same for all of them.
"""

import keras

from benchmarks import applications, audit_applications


def test_a_step_and_an_evaluation_equal_a_hand_written_loop():
    keras.backend.clear_session()
    comparison = applications.compare("MobileNetV3Small")
    # float64; what is left comes of batch normalization over four examples of 1x1 pixels, which magnifies rounding
    assert max(comparison.loss, comparison.evaluation, comparison.weights, comparison.update) < 1e-5
    assert comparison.statistics_moved == comparison.statistics
    assert comparison.changed_in_evaluation == 0


def test_no_false_finding():
    keras.backend.clear_session()
    row = audit_applications.audit("MobileNetV3Small")
    assert row["flags_right"] == row["mode_sensitive"] > 30
    assert row["moved_in_training"] == row["batch_normalizations"]
    assert row["moved_in_evaluation"] == 0
    assert row["findings"] == {}
