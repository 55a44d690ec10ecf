"""Whose state is whose: a callback's belongs to its class and what it watches, never to its place."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from looper.base.lines import warn


class Identified(Protocol):
    """A callback, as its state is saved and given back."""

    def identity(self) -> str:
        """What its state belongs to: its class, and what tells it from others of the class, in parentheses."""

    def state(self) -> Mapping[str, Any]:
        """The state that must survive, as JSON and arrays."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""


def states(things: Sequence[Identified]) -> dict[str, Mapping[str, Any]]:
    """The states of things by their identities.

    A number tells those with the same apart: `EarlyStopping(eval/loss, min)#0`.
    """
    return {
        f"{identity}#{number}": thing.state()
        for identity, same in _groups(things).items()
        for number, thing in enumerate(same)
    }


def give(saved: Mapping[str, Mapping[str, Any]], things: Sequence[Identified]) -> None:
    """Gives things their states.

    Those with the same identity are matched in their order, if there are as many as were saved. A state that is left
    out is told in a warning, if there is one of its class that it may have been meant for.

    Args:
        saved: by the keys of `states`. Before looper 0.2 those were made of the class alone; such states are
            given where there is no doubt whose they are.
        things: whose they are.
    """
    by_identity: dict[str, list[Mapping[str, Any]]] = {}
    for key, state in saved.items():
        by_identity.setdefault(key.rpartition("#")[0], []).append(state)
    groups = _groups(things)
    for identity, same in groups.items():
        kind = _kind(identity)
        of_kind = [other for other in groups if _kind(other) == kind]
        found = by_identity.pop(identity if identity in by_identity or len(of_kind) > 1 else kind, [])
        if len(found) == len(same):
            for thing, state in zip(same, found, strict=True):
                thing.restore(state)
        elif any(found):
            _warn(f"{len(found)} of {identity}, and there are {len(same)}", same)
    for identity, found in by_identity.items():
        same = [thing for other, group in groups.items() if _kind(other) == _kind(identity) for thing in group]
        if same and any(found):
            _warn(identity, same)


def _groups(things: Sequence[Identified]) -> dict[str, list[Identified]]:
    groups: dict[str, list[Identified]] = {}
    for thing in things:
        groups.setdefault(thing.identity(), []).append(thing)
    return groups


def _kind(identity: str) -> str:
    return identity.partition("(")[0]


def _warn(saved: str, here: Sequence[Identified]) -> None:
    named = ", ".join(dict.fromkeys(thing.identity() for thing in here))
    warn(
        f"the state of {saved} in the checkpoint is left out: {named} of this run begins anew. Give the callbacks that "
        "the run began with, to go on with their state."
    )
