"""Evaluate the weights as they are beside their averages."""

from looper.run.callback import Callback


class EmaEvaluation(Callback):
    """Adds a second evaluation to each: that of the weights as they are, as `eval/raw_loss` and so on.

    With the Trainer's `ema`, evaluations are of the averaged weights. Side by side the two tell whether averaging
    helps, and whether its decay suits the length of the run.

    Raises:
        InputError: when `fit` begins, if the Trainer has no `ema` or nothing is evaluated.

    Example:
        >>> EmaEvaluation().every is None
        True
    """

    needs = ("raw_evaluation",)
