"""Which devices of which machines a trainer runs on, and what its workers tell each other."""

from looper.distribute.strategies import cluster_of, needs_devices_early, resolve
from looper.distribute.workers import Clock, Workers

__all__ = ["Clock", "Workers", "cluster_of", "needs_devices_early", "resolve"]
