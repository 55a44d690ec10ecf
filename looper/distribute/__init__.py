"""Strategies: which devices of this machine a trainer runs on."""

from looper.distribute.strategies import resolve

__all__ = ["resolve"]
