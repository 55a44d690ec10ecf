"""How long a step takes on more replicas: a model with few constants, fitted to measurements, or made of assumptions.

    step = compute + start + hops + transfer
    compute   one replica's forward, backward and update
    start     of a reduction, whatever its size
    hops      2 (n - 1) messages one after another, each of which takes a while however small it is
    transfer  2 (n - 1) / n times the bytes, over the slowest link of the ring, unless it is overlapped with compute

The last two are those of a ring all-reduce (Patarasuk and Yuan, 2009). looper reduces everything at once, after the
backward pass, so that its overlap is 0.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

FORMULA = "step = compute + start + 2 (n - 1) hop + 2 (n - 1) / n bytes / bandwidth (1 - overlap)"


@dataclasses.dataclass(frozen=True)
class Links:
    """What a reduction costs.

    Attributes:
        bandwidth: of the slowest link of the ring, bytes per second.
        start, hop: seconds.
        overlap: the share of the transfer that computing hides, 0 to 1.
    """

    bandwidth: float
    start: float = 0.0
    hop: float = 0.0
    overlap: float = 0.0


def step_seconds(compute: float, size: float, replicas: int, links: Links) -> dict[str, float]:
    """The terms of a step, in seconds.

    Args:
        compute: seconds of it.
        size: of what is reduced, in bytes.
        replicas: that take part.
        links: between them.

    Example:
        >>> step_seconds(0.5, 100, 4, Links(bandwidth=300, start=0.25, hop=0.125))
        {'compute': 0.5, 'start': 0.25, 'hops': 0.75, 'transfer': 0.5}
    """
    if replicas == 1:
        return {"compute": compute, "start": 0.0, "hops": 0.0, "transfer": 0.0}
    sent = size * 2 * (replicas - 1) / replicas
    return {
        "compute": compute,
        "start": links.start,
        "hops": links.hop * 2 * (replicas - 1),
        "transfer": sent / links.bandwidth * (1 - links.overlap),
    }


def weak_scaling(compute: float, size: float, replicas: int, links: Links) -> dict[str, float | str]:
    """What a step takes if each replica has as many examples as one alone, and what keeps it from taking as long.

    Example:
        >>> weak_scaling(0.5, 100, 2, Links(bandwidth=200))
        {'seconds per step': 1.0, 'efficiency': 0.5, 'bound by': 'transfer'}
    """
    terms = step_seconds(compute, size, replicas, links)
    total = sum(terms.values())
    costs = {name: seconds for name, seconds in terms.items() if name != "compute"}
    return {"seconds per step": total, "efficiency": compute / total, "bound by": max(costs, key=costs.get)}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measured step of replicas that share one machine.

    Attributes:
        model: which was trained; each has its own compute.
        kind: of the strategy, each has links of its own: "mirrored" or "multi_worker".
        replicas, batch: of all together.
        size: of what was reduced, in bytes; 0 if nothing was.
        seconds: of a step.
    """

    model: str
    kind: str
    replicas: int
    batch: int
    size: int
    seconds: float

    def terms(self) -> dict[str, float]:
        """What the fitted constants are multiplied by.

        Replicas of one machine share its cores: each adds what it costs without examples, and the batch takes as long
        as on one.
        """
        found = {f"{self.model}: seconds per replica": self.replicas, f"{self.model}: seconds per example": self.batch}
        if self.size:
            sent = self.size * 2 * (self.replicas - 1) / self.replicas
            found |= {f"{self.kind}: seconds per reduction": 1, f"{self.kind}: seconds per byte": sent}
        return found


def fit(points: Sequence[Measured]) -> dict[str, float]:
    """The constants, none negative, that come nearest to the measurements: least squares of relative errors.

    A constant that would be negative is left out, as 0, and the others are fitted again.

    Example:
        >>> found = fit([Measured("m", "mirrored", n, 6, 0, 2.0 * n + 3.0) for n in (1, 2, 3)])
        >>> {name: round(value, 9) for name, value in found.items()}
        {'m: seconds per replica': 2.0, 'm: seconds per example': 0.5}
    """
    names = list(dict.fromkeys(name for point in points for name in point.terms()))
    kept, found = names, np.zeros(0)
    while kept:
        rows = np.array([[point.terms().get(name, 0.0) / point.seconds for name in kept] for point in points])
        scale = np.abs(rows).max(axis=0)  # bytes are many, replicas few
        found = np.linalg.lstsq(rows / scale, np.ones(len(points)), rcond=None)[0] / scale
        if (found >= 0).all():
            break
        kept = [name for name, value in zip(kept, found * scale, strict=True) if value > (found * scale).min()]
    return dict.fromkeys(names, 0.0) | dict(zip(kept, map(float, found), strict=True))


def predicted(point: Measured, constants: Mapping[str, float]) -> float:
    """The model's seconds for a measured step."""
    return sum(constants[name] * factor for name, factor in point.terms().items())


ASSUMED = {
    "replicas in a node": 8,
    "NVLink, bytes/s": 450e9,
    "network of a node, bytes/s": 50e9,  # one card of 400 Gb/s: a ring passes each node once
    "NVLink, seconds per hop": 2e-6,
    "network, seconds per hop": 5e-6,
    "seconds to start a reduction": 20e-6,
}
"""H100 machines."""

WORKLOADS = {
    "ResNet-50, 256 images per GPU": {"compute": 0.080, "bytes": 102e6},
    "GPT-2 small, 16 x 1024 tokens per GPU": {"compute": 0.110, "bytes": 498e6},
}
"""Seconds of compute that are assumed, and bytes of float32 gradients."""


def predictions(counts: Sequence[int] = (8, 64, 512), overlaps: Sequence[float] = (0.0, 0.9)) -> dict:
    """What GPUs should give by the assumptions: looper's overlap is 0; the other shows what overlapping would."""
    result: dict = {}
    for name, work in WORKLOADS.items():
        for replicas in counts:
            inside = replicas <= ASSUMED["replicas in a node"]
            link = "NVLink" if inside else "network"
            for overlap in overlaps:
                links = Links(
                    ASSUMED["NVLink, bytes/s" if inside else "network of a node, bytes/s"],
                    ASSUMED["seconds to start a reduction"],
                    ASSUMED[f"{link}, seconds per hop"],
                    overlap,
                )
                case = f"{replicas} GPUs, {overlap:.0%} of the transfer overlapped"
                result.setdefault(name, {})[case] = weak_scaling(work["compute"], work["bytes"], replicas, links)
    return result
