"""What users write, for a type checker: mypy must accept each line, and refuse the ones that are marked.

A mark that is not needed is an error too (`warn_unused_ignores`), so that a misspelt option cannot pass unseen.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import looper
from looper.callbacks import Callback, EarlyStopping, Run


@dataclasses.dataclass
class Config:
    width: int = 64


class Digits(looper.Trainer):
    """A recipe that overrides everything."""

    Config = Config
    defaults = {"epochs": 3, "batch_size": 32}

    def build(self) -> None:
        self.body = keras.layers.Dense(self.config.width)
        self.model = keras.Sequential([keras.Input((64,)), self.body, keras.layers.Dense(10)])
        self.optimizer = keras.optimizers.AdamW(1e-3)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
        frozen: list[str] = looper.freeze(self.model, until=-1)
        looper.unfreeze(self.model, layers=frozen)
        looper.scale_learning_rate(self.optimizer, self.model, {"body": 0.1})

    def compute_loss(self, batch: Any, training: bool) -> tuple[tf.Tensor, dict[str, Any]]:
        x, y = batch
        logits = self.model(x, training=training)
        return self.loss(y, logits), {"logits": logits}

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        with tf.GradientTape() as tape:
            loss, logs = self.compute_loss(batch, training=True)
        self.minimize(loss, tape, optimizer=self.optimizer, variables=self.model.trainable_variables)
        return {"loss": loss, **logs}

    def train_data(self) -> Any:
        return looper.data.make_source([1.0, 2.0], batch_size=2, shuffle=True, seed=0)

    def callbacks(self) -> Sequence[Callback]:
        return [EarlyStopping("eval/loss", patience=3), looper.callbacks.Checkpoint(best="eval/accuracy")]


class WithOwnOptions(looper.Trainer):
    """A recipe with an option of its own, which hands the others on."""

    def __init__(self, depth: int = 2, **options: Any) -> None:
        self.depth = depth
        super().__init__(**options)


class Stop(Callback):
    """A callback that reads and stops a run."""

    every = looper.Every(epochs=1)

    def on_fit_begin(self, run: Run) -> None:
        run.check_monitor("loss")

    def on_step(self, step: int, logs: Mapping[str, float]) -> None:
        if self.run.workdir is not None and logs["loss"] < 0.1:
            self.run.stop("the loss is low enough")


def main(x: Any, y: Any) -> float:
    trainer = Digits(config=Config(width=32), workdir=Path("runs"), precision="mixed_bfloat16", ema=0.999, seed=1)
    history = trainer.fit(
        (x, y), epochs=3, eval_data=(x, y), eval_every=looper.Every(steps=10), callbacks=[Stop()], resume="weights"
    )
    trainer.fit(epochs=None, steps=20, save_every=None)
    logs: dict[str, float] = trainer.evaluate((x, y), batch_size=8)
    saved: Path = trainer.save()
    trainer.restore(saved)
    trainer.save_model("digits.keras")
    if trainer.ledger is not None:
        print(trainer.ledger.shares(), trainer.audit((x, y)).findings, trainer.check_replicas().verdict)
    print(trainer.step + trainer.epoch, trainer.is_chief, looper.__version__.split("."), trainer.predict(x))
    WithOwnOptions(depth=3, seed=2).fit((x, y), epochs=1)
    for outputs in trainer.predict_batches(x, batch_size=8):
        print(outputs)
    return history["loss"][-1] + logs["loss"]


def misspelt(x: Any, y: Any) -> None:
    """Each line is a mistake of its own."""
    looper.Trainer(optimiser="adam")  # type: ignore[call-arg]
    looper.Trainer(epochs=3)  # type: ignore[call-arg]
    looper.Trainer(precision="float8")  # type: ignore[arg-type]
    trainer = Digits(clipnorm=1.0)  # type: ignore[call-arg]
    trainer.fit((x, y), epoch=3)  # type: ignore[call-arg]
    trainer.fit((x, y), epochs="3")  # type: ignore[arg-type]
    trainer.fit(x, y, epochs=3)  # type: ignore[misc]
    trainer.fit((x, y), validation_data=(x, y))  # type: ignore[call-arg]
    trainer.evaluate(x, y)  # type: ignore[call-arg]
    trainer.evaluate((x, y), batchsize=3)  # type: ignore[call-arg]
    trainer.audit(x, y)  # type: ignore[call-arg]
    trainer.check_replicas(x, y)  # type: ignore[call-arg]
    trainer.predict(x, 32)  # type: ignore[call-arg]
    trainer.lodger  # type: ignore[attr-defined]  # noqa: B018
    trainer.ledger.shares()  # type: ignore[union-attr]
    looper.Every(step=3)  # type: ignore[call-arg]
    looper.callbacks.EarlyStopping(patients=3)  # type: ignore[call-arg]
    looper.freeze(trainer.model, untill=3)  # type: ignore[call-arg]
    looper.Trainr()  # type: ignore[attr-defined]
