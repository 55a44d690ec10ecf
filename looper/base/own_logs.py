"""The names of what looper itself logs, beside losses, metrics and what a recipe returns."""

OWN_LOGS = frozenset(
    {
        "step",
        "epoch",
        "window",
        "examples",
        "skipped_steps",
        "input_wait",
        "steps_per_second",
        "examples_per_second",
        "learning_rate",
        "loss_scale",
        "gradient_norm",
    }
)


def is_own(name: str) -> bool:
    """Whether looper logs something of this name, for one of several optimizers, too.

    Example:
        >>> is_own("gradient_norm/critic"), is_own("my/step")
        (True, False)
    """
    return name.split("/")[0] in OWN_LOGS
