"""`looper audit RECIPE`: what each layer received as `training`."""

from looper.commands.recipe import load


def audit(argv: list[str]) -> int:
    """Runs the command with the words after it. Returns the exit code: 1 if there is an error."""
    loaded = load("audit", [arg for arg in argv if arg != "--json"])
    if loaded is None:
        return 0
    recipe, config, trainer_options, fit_options, _ = loaded
    report = recipe(config=config, **vars(trainer_options)).audit(batch_size=fit_options.batch_size)
    print(report.json() if "--json" in argv else report)
    return 0 if report.ok else 1
