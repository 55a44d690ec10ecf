"""Write text, character by character: the transformer of nanoGPT, on modules of Python's standard library.

    looper run recipes/language_model.py
    looper run recipes/language_model.py --generate "def "             # the trained model goes on from there
    looper run recipes/language_model.py --text input.txt --preset nanogpt-cpu

The architecture is that of nanoGPT (Karpathy, 2022), a GPT-2, without dropout on the attention: layers normalize
first, no layer has a bias, and the embedding of the characters is the last layer, too. It ends with the loss on the
last tenth of the text, in nats per character, beside that of a table of pairs: how often each character followed each
other one in the rest of the text.
"""

import dataclasses
import sysconfig
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import looper

L, ops = keras.layers, keras.ops

MODULES = "argparse ast calendar configparser datetime difflib doctest enum inspect locale mailbox optparse pdb pickle"
MODULES += " pickletools plistlib pydoc random shutil socket ssl statistics subprocess tarfile threading typing zipfile"


class LanguageModel(looper.Trainer):
    """Train a small GPT on characters."""

    @dataclasses.dataclass
    class Config:
        layers: int = 4
        """Blocks of attention and a dense network."""
        heads: int = 4
        """Heads of the attention."""
        width: int = 128
        """Numbers that stand for a character."""
        context: int = 64
        """Characters that the model looks back on."""
        dropout: float = 0.0
        """Rate of all dropout layers."""
        learning_rate: float = 2e-3
        """Peak learning rate of AdamW, reached after the warm-up; a cosine then takes it to a tenth."""
        warmup: int = 100
        """Steps of the warm-up."""
        text: Path | None = None
        """File to train on. None: modules of the standard library."""
        generate: str = dataclasses.field(default="", compare=False)  # does not tell one run from another
        """Text to go on from when training is done."""

    defaults = {
        "steps": 1000,
        "batch_size": 32,
        "clip_norm": 1.0,
        "eval_every": looper.Every(steps=250),
        "workdir": "runs/language_model",
    }
    presets = {
        "nanogpt-cpu": {
            "steps": 2000,
            "batch_size": 12,
            "learning_rate": 1e-3,
            "workdir": "runs/language_model_nanogpt",
        }
    }

    def build(self):
        config = self.config
        text = read(config.text)
        self.letters = sorted(set(text))
        numbers = {letter: number for number, letter in enumerate(self.letters)}
        self._text = tf.constant([numbers[letter] for letter in text], tf.int32)
        self.train_length = len(text) * 9 // 10
        self.model = Transformer(len(self.letters), config)
        self.model(np.zeros((1, config.context), "int32"), training=False)
        rate = looper.CosineDecay(self, config.learning_rate, warmup=config.warmup, alpha=0.1)
        self.optimizer = keras.optimizers.AdamW(rate, weight_decay=0.1, beta_2=0.99)
        vectors = [v for v in self.model.trainable_variables if len(v.shape) < 2]
        self.optimizer.exclude_from_weight_decay(var_list=vectors)  # decay is for matrices
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train_data(self):
        return np.arange(self.train_length - self.config.context)  # where a window begins

    def eval_data(self):
        return np.arange(self.train_length, len(self._text) - self.config.context, self.config.context)

    def compute_loss(self, batch, training):
        windows = tf.gather(self._text, tf.cast(batch, tf.int32)[:, None] + tf.range(self.config.context + 1))
        return super().compute_loss((windows[:, :-1], windows[:, 1:]), training)

    def predict_step(self, batch):
        """Goes on from texts, `[texts, context]` of numbers of letters, for 300 letters more."""
        length, context = 300, self.config.context

        def write(i, texts):
            logits = self.model(texts[:, i : i + context], training=False)[:, -1]
            letters = tf.random.stateless_categorical(logits / 0.8, 1, [0, i], tf.int32)
            return i + 1, tf.where(tf.range(context + length) == i + context, letters, texts)

        texts = tf.pad(batch, [[0, 0], [0, length]])
        return tf.while_loop(lambda i, _: i < length, write, [0, texts])[1]

    def go_on_from(self, prompt):
        """A text that begins with `prompt`."""
        before = prompt.rjust(self.config.context, "\n")[-self.config.context :]
        known = {letter: number for number, letter in enumerate(self.letters)}
        [numbers] = self.predict(np.array([[known.get(letter, 0) for letter in before]], "int32"), batch_size=1)
        return prompt + "".join(self.letters[number] for number in numbers[self.config.context :])

    def callbacks(self):
        samples = looper.callbacks.Text(lambda run: f"```\n{self.go_on_from('def ')}\n```", self.defaults["eval_every"])
        return [samples, looper.callbacks.LambdaCallback(on_fit_end=self.report)]

    def report(self):
        if self.config.generate:
            print(self.go_on_from(self.config.generate))
        if "eval/loss" not in self.history:
            return  # training was cut short
        loss, pairs = self.history["eval/loss"][-1], loss_of_pairs(self._text.numpy(), self.train_length)
        print(f"loss {loss:.3f} on the last tenth, in nats per character; of a table of pairs {pairs:.3f}")


class Transformer(keras.Model):
    """From numbers of letters `[texts, length]` to logits `[texts, length, letters]`."""

    def __init__(self, letters, config):
        super().__init__()
        self.letters = L.Embedding(letters, config.width, normal())
        self.places = L.Embedding(config.context, config.width, normal())
        self.dropout = L.Dropout(config.dropout) if config.dropout else L.Identity()
        self.blocks = [Block(config) for _ in range(config.layers)]
        self.norm = L.LayerNormalization(center=False, epsilon=1e-5)

    def call(self, x, training):
        x = self.letters(x) + self.places(ops.arange(ops.shape(x)[1]))
        x = self.dropout(x, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        return ops.matmul(self.norm(x), ops.transpose(self.letters.embeddings))


class Block(L.Layer):
    """Attention to what came before, and a dense network; each is added to its input."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        small = 0.02 / (2 * config.layers) ** 0.5  # of what is added up, layer by layer
        self.norms = [L.LayerNormalization(center=False, epsilon=1e-5) for _ in range(2)]
        self.query_key_value = L.Dense(3 * config.width, use_bias=False, kernel_initializer=normal())
        self.mixed = L.Dense(config.width, use_bias=False, kernel_initializer=normal(small))
        self.wide = L.Dense(4 * config.width, "gelu", use_bias=False, kernel_initializer=normal())
        self.narrow = L.Dense(config.width, use_bias=False, kernel_initializer=normal(small))
        self.dropout = L.Dropout(config.dropout) if config.dropout else L.Identity()

    def call(self, x, training):
        texts, length, width = ops.shape(x)
        heads = ops.reshape(self.query_key_value(self.norms[0](x)), (texts, length, 3, self.heads, width // self.heads))
        attended = ops.dot_product_attention(*ops.unstack(heads, 3, axis=2), is_causal=True)
        attended = ops.reshape(attended, (texts, length, width))
        x = x + self.dropout(self.mixed(attended), training=training)
        return x + self.dropout(self.narrow(self.wide(self.norms[1](x))), training=training)


def normal(deviation=0.02):
    """A new one for each layer: one object draws the same numbers each time."""
    return keras.initializers.RandomNormal(stddev=deviation)


def loss_of_pairs(text, train_length):
    """The loss of a table of how often each pair of characters occurs in the text to train on, plus one."""
    letters = text.max() + 1
    table = np.ones((letters, letters))
    np.add.at(table, (text[: train_length - 1], text[1:train_length]), 1)
    chances = table / table.sum(1, keepdims=True)
    return -np.log(chances[text[train_length:-1], text[train_length + 1 :]]).mean()


def read(file):
    """The text to train on."""
    if file is not None:
        return file.read_text("utf-8")
    library = Path(sysconfig.get_path("stdlib"))
    files = [(library / f"{name}.py", library / name / "__init__.py") for name in MODULES.split()]  # or a package
    return "".join((file if file.exists() else other).read_text("utf-8") for file, other in files)


if __name__ == "__main__":
    looper.run_recipe(LanguageModel)
