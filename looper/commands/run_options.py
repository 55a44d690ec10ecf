"""The options of `looper run` itself. Free of TensorFlow, for a quick command line."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to do with a recipe besides training it."""

    smoke: bool = False
    """Try the recipe in seconds, and keep nothing. A step, an evaluation, a checkpoint, and a step more from there."""
