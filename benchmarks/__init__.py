"""Measurements of looper. Each is a command that writes a file of `benchmarks/results`; `--help` shows its options.

    python -m benchmarks.environments         once: the environments of the peers, in the folder .peers
    python -m benchmarks.hot_step             the time of a step, against other ways to train: see benchmarks/peers
    python -m benchmarks.charts               their chart (pip install -e '.[bench]')
    python -m benchmarks.startup              the time to import looper, and to the first step
    python -m benchmarks.memory               the most memory resident, against the loop by hand
    python -m benchmarks.input_timing         what measuring the wait for batches inside the graph costs
    python -m benchmarks.memory_flat          whether memory grows from call to call
    python -m benchmarks.audit_cost           what the check at the start of `fit` takes
    python -m benchmarks.applications         a step of each of keras.applications, against one by hand
    python -m benchmarks.audit_applications   the audit of each of them
    python -m benchmarks.transfer             what each choice about a pretrained base does

They use no program or measurement that an earlier process left (`LOOPER_CACHE=off`), but where they say so.

Times need a machine with nothing else to do: threads that wait for each other, as PyTorch's do, suffer most otherwise.
"""

import os

os.environ.setdefault("LOOPER_CACHE", "off")
