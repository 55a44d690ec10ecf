"""As `hand_split`, but each replica applies its own gradients: what is left out is the time of the reduction."""

from benchmarks.peers.hand_replicas import OnReplicas
from benchmarks.peers.hand_written import serve
from benchmarks.peers.line import Settings


class Unreduced(OnReplicas):
    """Trains another model on each replica, which nobody wants but to see how long it takes."""

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars


if __name__ == "__main__":
    serve(Unreduced)
