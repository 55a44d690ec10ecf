"""Which devices of which machines a trainer runs on, and what its workers tell each other."""

from looper.distribute.peers import is_of_collectives, said_of_collectives
from looper.distribute.strategies import cluster_of, needs_devices_early, resolve
from looper.distribute.workers import Clock, Workers

__all__ = [
    "Clock",
    "Workers",
    "cluster_of",
    "is_of_collectives",
    "needs_devices_early",
    "resolve",
    "said_of_collectives",
]
