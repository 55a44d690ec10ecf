"""The audit: what `training` value each layer call received in a training and in an evaluation step, and what is wrong.

report = trainer.audit((x, y))
print(report)                # the layers as a table, and the findings
report.ok, report.findings   # no finding of severity "error"; each with a path, a meaning and a remedy
report.json()
"""

from looper.audit.examine import check, examine, replica_batch_of
from looper.audit.examined import Examined
from looper.audit.facts import Facts, Finding
from looper.audit.flag_checks import tensor_flag
from looper.audit.record import Recorder, random_state_put_back
from looper.audit.report import Report, counted, listed
from looper.audit.tree import Tree

__all__ = [
    "Examined",
    "Facts",
    "Finding",
    "Recorder",
    "Report",
    "Tree",
    "check",
    "counted",
    "examine",
    "listed",
    "random_state_put_back",
    "replica_batch_of",
    "tensor_flag",
]
