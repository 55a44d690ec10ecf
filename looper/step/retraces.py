"""Says, once for each cause, when steps that ran are compiled again: what changed, from what to what, and what to do.

Compiling takes from part of a second to minutes, and a loop that does it again and again looks like a slow one. What is
looked at: the structure of batches from one `fit`, `evaluate` or `predict` to the next; class weights; more settings in
turn than are held; TensorFlow tracing by itself; and in XLA modes batches of more than two sizes (the full one and the
last), each of which is a program of its own. Changes of what is trained are announced elsewhere. A recipe's own
`tf.function`s, and lengths within a batch under `execution="xla_step"`, are not seen.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from looper.base.lines import warn

WHAT = {"train": "training steps", "eval": "evaluation steps", "predict": "prediction steps"}

FEW = 2
"""Structures of batches that are nobody's mistake: other data has another one, or a last batch that is smaller."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The arguments that steps were compiled for.

    Attributes:
        kind: "train", "eval" or "predict".
        element_spec: of a batch.
        class_weight: pairs of class and weight.
        mode: that training steps were asked for; None for other steps.
        settings: anything else.
    """

    kind: str
    element_spec: Any
    class_weight: tuple[tuple[int, float], ...] = ()
    mode: str | None = None
    settings: Any = None


class Retraces:
    """Keeps what was compiled, and warns if something new is the old with a small difference.

    Example:
        >>> import warnings
        >>> retraces = Retraces()
        >>> retraces.compiled(Compiled("eval", tf.TensorSpec([8, 3])))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     for examples in (16, 32, 64):
        ...         retraces.compiled(Compiled("eval", tf.TensorSpec([examples, 3])))
        >>> [str(warning.message)[:87] for warning in caught]
        ['the evaluation steps are compiled again: batch was float32[8, 3], is now float32[16, 3]']
    """

    def __init__(self) -> None:
        self._before: list[Compiled] = []
        self._told: set[tuple[str, str]] = set()

    def clear(self) -> None:
        """Forgets what was compiled: the model or the like is another one now."""
        self._before.clear()

    def compiled(self, new: Compiled) -> None:
        """Steps are about to be compiled."""
        same = (new.kind, new.mode, new.settings)
        alike = [old for old in self._before if (old.kind, old.mode, old.settings) == same]
        self._before.append(new)
        spec = str(new.element_spec)
        structures = [o for o in alike if o.class_weight == new.class_weight and str(o.element_spec) != spec]
        weights = [old for old in alike if str(old.element_spec) == spec and old.class_weight != new.class_weight]
        if structures:
            self._changed(new.kind, structures[-1].element_spec, new.element_spec, len(structures))
        elif weights:
            was, now = dict(weights[-1].class_weight) or None, dict(new.class_weight) or None
            self._tell(
                new.kind,
                "class_weight",
                f"class_weight was {was}, is now {now}",
                "put weights that change into the data, as (x, y, sample_weight)",
            )

    def again(self, kind: str, most: int) -> None:
        """Steps are about to be compiled that had been, and were dropped because `most` others came after them."""
        self._tell(
            kind,
            "dropped",
            f"the last {most} settings are kept, and more than these are used in turn",
            "use fewer structures of batches and class weights, or another Trainer for some",
        )

    def traced_again(self, kind: str, old: Any, new: Any) -> None:
        """TensorFlow traced steps again that had run; `old` and `new` are what their batches were and are."""
        if str(old) != str(new):
            self._changed(kind, old, new, FEW)
            return
        self._tell(
            kind,
            "traced",
            f"their batches are still {_listed(new)}, but TensorFlow traced them anew",
            "call fit, evaluate and predict in the same tf.device, strategy and other scopes each time",
        )

    def sizes(self, kind: str, before: Iterable[int], new: int) -> None:
        """XLA met batches of a new size, after two others."""
        were = ", ".join(map(str, sorted(before, reverse=True)))
        self._tell(
            kind,
            "sizes",
            f"batches had {were} examples, one has {new} now, and XLA compiles a program for each size",
            "give batches of one size (only the last may differ), or execution='graph'",
        )

    def _changed(self, kind: str, old: Any, new: Any, count: int) -> None:
        before, after = _leaves(old), _leaves(new)
        if _alike(before, after) and (count >= FEW or not _opened(before, after)):
            path = next(path for path in after if str(after[path]) != str(before[path]))
            was, now = before[path], after[path]
            if was.dtype != now.dtype:
                remedy = f"cast it to one dtype, such as with dataset.map and tf.cast(..., tf.{was.dtype.name})"
            else:
                remedy = (
                    "give batches of one size, or leave the axis that varies open, such as with dataset.batch(n) "
                    "without drop_remainder"
                )
            self._tell(kind, "batch", f"{path} was {_shown(was)}, is now {_shown(now)}", remedy)
        elif count >= FEW:
            change = f"batches were {_listed(old)}, are now {_listed(new)}"
            self._tell(kind, "batch", change, "give batches of one structure, or another Trainer for the others")

    def _tell(self, kind: str, cause: str, change: str, remedy: str) -> None:
        if (kind, cause) in self._told:
            return
        self._told.add((kind, cause))
        warn(f"the {WHAT[kind]} are compiled again: {change}. To compile once, {remedy}.")


def _leaves(element_spec: Any) -> dict[str, Any]:
    """The specs of a batch's tensors by where they are, such as `batch[0]`."""
    found = keras.tree.flatten_with_path(element_spec)
    return {"batch" + "".join(f"[{key!r}]" for key in path): spec for path, spec in found}


def _alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two structures differ in nothing but sizes and dtypes of tensors."""
    ranks = ({path: getattr(spec.shape, "rank", None) for path, spec in specs.items()} for specs in (old, new))
    same_ranks = next(ranks) == next(ranks)
    return same_ranks and all(type(old[path]) is type(new[path]) for path in new)


def _opened(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether dtypes are the same, and sizes where both are fixed: a last batch is smaller, or is not any more."""
    pairs = [(old[path], new[path]) for path in new]
    return all(a.dtype == b.dtype and a.shape.is_compatible_with(b.shape) for a, b in pairs)


def _shown(spec: Any) -> str:
    """A spec as text.

    Example:
        >>> _shown(tf.TensorSpec([None, 3], tf.int32))
        'int32[None, 3]'
    """
    kind = "" if isinstance(spec, tf.TensorSpec) else f"{type(spec).__name__.removesuffix('Spec')} "
    return f"{kind}{spec.dtype.name}{'[...]' if spec.shape.rank is None else spec.shape.as_list()}"


def _listed(element_spec: Any) -> str:
    return ", ".join(f"{path} {_shown(spec)}" for path, spec in _leaves(element_spec).items())
