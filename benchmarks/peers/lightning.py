"""Lightning's Trainer as people call it: with the progress bar and a TensorBoard logger."""

import logging
import tempfile

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from benchmarks.peers import torch_models
from benchmarks.peers.line import Line, Settings, settings


class Classifier(lightning.LightningModule):
    """The problem as a LightningModule."""

    def __init__(self, given: Settings) -> None:
        super().__init__()
        self.given = given
        self.model = torch_models.model(given.problem, given.dropout)
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch, index):
        x, y = batch
        outputs, y = self.model(x).flatten(0, -2), y.flatten()
        loss = self.loss(outputs, y)
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", (outputs.argmax(-1) == y).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch_models.optimizer(self.given.problem, self.model)


class Batches(torch.utils.data.IterableDataset):
    """The problem's batches, without end."""

    def __init__(self, given: Settings) -> None:
        self.given = given

    def __iter__(self):
        return torch_models.batches(self.given.problem)


class Bursts(lightning.pytorch.callbacks.Callback):
    """Waits for a command after each burst."""

    def __init__(self, line: Line, steps: int) -> None:
        self.line, self.steps = line, steps
        self.total: torch.Tensor | float = 0.0

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.total = self.total + outputs["loss"].detach()
        if trainer.global_step % self.steps == 0:
            trainer.should_stop = not self.line.burst_done(float(self.total) / self.steps)
            self.total = 0.0


def main() -> None:
    given = settings()
    on_gpu = torch.cuda.is_available()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    versions = {"torch": torch.__version__, "lightning": lightning.__version__}
    line = Line(versions, "GPU" if on_gpu else "CPU")
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=-1,
            devices=1,
            precision="bf16-mixed" if given.mixed else "32-true",
            logger=TensorBoardLogger(folder),
            log_every_n_steps=given.steps_per_log,
            gradient_clip_val=1.0 if given.problem.network == "nanogpt" else None,
            callbacks=[Bursts(line, given.steps_per_burst)],
        )
        loader = torch.utils.data.DataLoader(Batches(given), batch_size=None, pin_memory=on_gpu)
        trainer.fit(Classifier(given), loader)
    line.close()


if __name__ == "__main__":
    main()
