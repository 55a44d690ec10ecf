"""Balance a pole with a double deep Q-network: training makes its own data.

    looper run recipes/rl.py

The method is that of van Hasselt et al., "Deep Reinforcement Learning with Double Q-learning" (2016), the task CartPole
(Barto, Sutton and Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems", 1983)
with episodes of at most 200 steps. With `prefetch=0` looper asks `Experience` for a batch when the step before it is
done; its `state()` holds all that must survive, so that a run that was killed goes on with the same bits. It ends with
the mean length of the last 100 episodes; 195 counts as solved.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

import looper


class Balance(looper.Trainer):
    """Balance a pole with a double deep Q-network."""

    @dataclasses.dataclass
    class Config:
        learning_rate: float = 2e-3
        """First learning rate of Adam; it decays to zero along a cosine."""
        discount: float = 0.99
        """What a reward one step later is worth now."""
        explore: int = 5_000
        """Steps of the pole in which the share of random actions falls from 1 to 0.02."""
        memory: int = 50_000
        """Steps to learn from, the latest ones."""
        learn_from: int = 64
        """Of these, so many random ones for each update."""
        balance: int = 2
        """Steps of the pole between two updates."""
        follow: float = 0.01
        """How far the target network goes towards the other with each update."""

    defaults = {
        "steps": 25_000,
        "prefetch": 0,
        "clip_norm": 1.0,
        "log_every": looper.Every(steps=500),
        "workdir": "runs/rl",
    }

    def build(self):
        self.model, self.target = make_network(), make_network()
        self.target.set_weights(self.model.get_weights())
        self.target.trainable = False
        self.optimizer = keras.optimizers.Adam(looper.CosineDecay(self, self.config.learning_rate))
        self._best = tf.function(lambda state: tf.argmax(self.model(state, training=False), 1)[0])

    def compute_loss(self, batch, training):
        best = tf.argmax(self.model(batch["following"], training=False), 1)
        value = tf.gather(self.target(batch["following"], training=False), best, batch_dims=1)
        goal = tf.stop_gradient(1.0 + self.config.discount * tf.cast(batch["goes_on"], value.dtype) * value)
        found = tf.gather(self.model(batch["state"], training=training), batch["action"], batch_dims=1)
        return keras.losses.huber(goal[:, None], found[:, None])

    def after_update(self):
        for slow, weight in zip(self.target.weights, self.model.weights, strict=True):
            slow.assign(slow + self.config.follow * (weight - slow))

    def train_data(self):
        self._experience = Experience(self.config, self._best, np.random.randint(2**31))
        return self._experience

    def callbacks(self):
        return [Length(lambda: self._experience.lengths), looper.callbacks.LambdaCallback(on_fit_end=self.report)]

    def report(self):
        if "length" not in self.history:
            return  # training was cut short
        means, steps = self.history["length"], self.history.steps("length")
        solved = next((step for step, mean in zip(steps, means, strict=True) if mean >= 195), None)
        when = "not solved" if solved is None else f"solved after {solved} updates"
        print(f"length {means[-1]:.0f} of 200 over the last 100 episodes; {when}")


class Length(looper.callbacks.Callback):
    """Logs how long the last 100 episodes were."""

    logs = ("length",)

    def __init__(self, lengths):
        self.lengths = lengths

    def on_step(self, step, logs):
        self.run.log("length", np.mean(self.lengths()[-100:] or [0]))


class Experience:
    """Batches of remembered steps of the pole; between two batches it is balanced for a few steps more."""

    def __init__(self, config, best, seed):
        self.config, self.best, self.random = config, best, np.random.default_rng(seed)
        self.steps, self.age, self.lengths = 0, 0, []
        self.pole = self.random.uniform(-0.05, 0.05, 4)
        shapes = {"state": (4,), "following": (4,), "goes_on": (), "action": ()}
        self.memory = {name: np.zeros((config.memory, *shape), "float32") for name, shape in shapes.items()}
        self.memory["action"] = self.memory["action"].astype("int32")

    def __iter__(self):
        while True:
            for _ in range(self.config.balance):
                self.balance()
            if self.steps >= self.config.learn_from:
                chosen = self.random.integers(min(self.steps, self.config.memory), size=self.config.learn_from)
                yield {name: values[chosen] for name, values in self.memory.items()}

    def balance(self):
        """Makes one step, and remembers it."""
        before = self.pole.astype("float32")
        if self.random.random() < max(1 - self.steps / self.config.explore, 0.02):
            action = int(self.random.integers(2))
        else:
            action = int(self.best(before[None]))
        self.pole, fell = cart_pole(self.pole, action)
        step = {"state": before, "following": self.pole, "goes_on": not fell, "action": action}
        for name, value in step.items():
            self.memory[name][self.steps % self.config.memory] = value
        self.steps, self.age = self.steps + 1, self.age + 1
        if fell or self.age == 200:  # the second is no end of the task: what comes after it still counts
            self.lengths = [*self.lengths[-99:], self.age]
            self.pole, self.age = self.random.uniform(-0.05, 0.05, 4), 0

    def state(self):
        own = {name: getattr(self, name) for name in ("steps", "age", "lengths", "pole", "memory")}
        return own | {"random": self.random.bit_generator.state}

    def restore(self, state):
        vars(self).update({name: value for name, value in state.items() if name != "random"})
        self.random.bit_generator.state = state["random"]


def cart_pole(state, action):
    """The state after 0.02 seconds of pushing the cart to the left (0) or right (1), and whether the pole fell."""
    x, speed, angle, turning = state
    force, sine, cosine = 20.0 * action - 10.0, np.sin(angle), np.cos(angle)
    pushed = (force + 0.05 * turning**2 * sine) / 1.1  # cart of 1 kg, pole of 0.1 kg and 1 m
    turned = (9.8 * sine - cosine * pushed) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    moved = pushed - 0.05 * turned * cosine / 1.1
    state = np.array([x + 0.02 * speed, speed + 0.02 * moved, angle + 0.02 * turning, turning + 0.02 * turned])
    return state, bool(abs(state[0]) > 2.4 or abs(state[2]) > np.radians(12))


def make_network():
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((4,)), dense(64, "relu"), dense(64, "relu"), dense(2)])


if __name__ == "__main__":
    looper.run_recipe(Balance)
