"""The audit: what `training` value each layer call received in a training and in an evaluation step, and what is wrong.

report = trainer.audit((x, y))
print(report)                # the layers as a table, and the findings
report.ok, report.findings   # no finding of severity "error"; each with a path, a meaning and a remedy
report.json()
"""

from looper.audit.report import Report

__all__ = ["Report"]
