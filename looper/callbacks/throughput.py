"""Measure how long steps wait for data."""

from looper.run.callback import Callback


class Throughput(Callback):
    """Adds `input_wait` to the logs: the share of the wall time that steps waited for their batches, from 0 to 1.

    It stands beside `steps_per_second` and `examples_per_second`, which are always logged, and `trainer.ledger` counts
    it as input. The clock is read in the compiled steps, and nothing is read by the host between boundaries. That slows
    very short steps; `python -m benchmarks.input_timing` shows by how much. (Steps over stacks of batches, such as over
    small batches of arrays, wait before they run, which costs nothing to measure.) Near 0 the data keeps up; near 1 the
    run is as fast as its data (try `dataset.prefetch`, `num_parallel_calls`). On a GPU, whose work is queued, this is
    an upper bound on how long it was idle for lack of data.

    Example:
        >>> Throughput().every is None
        True
    """

    needs = ("input_wait",)
