"""`looper audit RECIPE`: what each layer received as `training`."""

from looper.commands.recipe import make


def audit(argv: list[str]) -> int:
    """Runs the command with the words after it. Returns the exit code: 1 if there is an error."""
    made = make("audit", [arg for arg in argv if arg != "--json"])
    if made is None:
        return 0
    trainer, _, fit_options = made
    report = trainer.audit(batch_size=fit_options.batch_size)
    print(report.json() if "--json" in argv else report)
    return 0 if report.ok else 1
