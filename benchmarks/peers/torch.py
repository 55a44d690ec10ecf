"""PyTorch, a training loop by hand."""

import torch
from torch import nn

from benchmarks.peers import torch_models
from benchmarks.peers.line import Line, Settings, settings


class Training:
    """A model with all that a careful user makes for it.

    Args:
        given: what to train.
        device: where.
    """

    def __init__(self, given: Settings, device: torch.device) -> None:
        self.given, self.device = given, device
        self.model = torch_models.model(given.problem, given.dropout).to(device).train()
        self.optimizer = torch_models.optimizer(given.problem, self.model)
        self.loss = nn.CrossEntropyLoss()
        self.batches = torch_models.batches(given.problem, pinned=device.type == "cuda")

    def burst(self) -> float:
        """Trains a burst: its mean loss."""
        # added up on the device: reading each would wait for it
        total, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for _ in range(self.given.steps_per_burst):
            x, y = (tensor.to(self.device, non_blocking=True) for tensor in next(self.batches))
            self.optimizer.zero_grad()
            y = y.flatten()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.given.mixed):
                outputs = self.model(x).flatten(0, -2)
                loss = self.loss(outputs, y)
            loss.backward()
            if self.given.problem.network == "nanogpt":
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            total += loss.detach()
            correct += (outputs.argmax(-1) == y).float().mean()
        return float(total) / self.given.steps_per_burst


def serve(kind: type[Training]) -> None:
    """Trains bursts for as long as it is asked to."""
    given = settings()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    line = Line({"torch": torch.__version__}, "GPU" if device.type == "cuda" else "CPU")
    training = kind(given, device)
    while line.burst_done(training.burst()):
        pass
    line.close()


if __name__ == "__main__":
    serve(Training)
