"""PyTorch, the training loop by hand with the forward and backward pass compiled."""

import torch

from benchmarks.peers.line import Settings
from benchmarks.peers.torch import Training, serve


class Compiled(Training):
    """The loop over a model in `torch.compile`. On a CPU it needs a compiler of C++.

    Args:
        given: what to train.
        device: where.
    """

    def __init__(self, given: Settings, device: torch.device) -> None:
        super().__init__(given, device)
        self.model = torch.compile(self.model)


if __name__ == "__main__":
    serve(Compiled)
