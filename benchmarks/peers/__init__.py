"""Those that looper is compared with, and looper itself: each trains in a process of its own, in bursts, on command.

A peer is a module here, started as `python -m benchmarks.peers.MODULE` in its environment, which
`benchmarks.environments` makes. It speaks the lines of `line.py`. `process.py` is the other end.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to train.

    Attributes:
        title: as shown.
        environment: of `benchmarks.environments`; None is the running one.
        module: here, if it is not called as the peer.
        execution: looper's mode, if the task leaves it open.
    """

    title: str
    environment: str | None = None
    module: str | None = None
    execution: str | None = None


PEERS = {
    "looper": Peer("looper"),
    "hand_step": Peer("hand-written step, one a call"),
    "hand_loop": Peer("hand-written in-graph loop"),
    "hand_xla_step": Peer("hand-written XLA step, looped in the graph"),
    "hand_xla_loop": Peer("hand-written XLA loop"),
    "keras_fit": Peer("Keras fit: bar, TensorBoard"),
    "keras_fit_best": Peer("Keras fit, best steps_per_execution"),
    "orbit": Peer("Orbit: in-graph loop, summaries", "orbit"),
    "torch": Peer("PyTorch by hand", "torch"),
    "torch_compile": Peer("PyTorch by hand, torch.compile", "torch"),
    "lightning": Peer("Lightning: bar, logger", "torch"),
    "jax_step": Peer("JAX by hand, one step a call", "jax"),
    "jax_scan": Peer("JAX by hand, lax.scan", "jax"),
}
ON_REPLICAS = {
    "looper": PEERS["looper"],
    "looper_auto": Peer("looper in the mode that it chooses", module="looper", execution="auto"),
    "hand_split": Peer("hand-written, replicas slice the batch"),
    "hand_unreduced": Peer("the same without the reduction"),
    "hand_distributed": Peer("hand-written, experimental_distribute_dataset"),
    "keras_fit": PEERS["keras_fit"],
}
"""Those that train on several replicas, and on several workers."""
