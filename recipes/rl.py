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
        learning_rate: float = 5e-4
        """First learning rate of Adam; it decays to zero along a cosine."""
        discount: float = 0.99
        """What a reward one step later is worth now."""
        explore: int = 5_000
        """Steps of poles in which the share of random actions falls from 1 to 0.02."""
        memory: int = 100_000
        """Steps to learn from, the latest ones."""
        learn_from: int = 128
        """Of these, so many random ones for each update."""
        poles: int = 4
        """Poles that are balanced at a time, one step each between two updates."""
        follow: float = 0.02
        """How far the target network goes towards the other with each update."""

    defaults = {
        "steps": 24_900,
        "prefetch": 0,
        "clip_norm": 10.0,
        "log_every": looper.Every(steps=500),
        "workdir": "runs/rl",
    }

    def build(self):
        self.model, self.target = make_network(), make_network()
        self.target.set_weights(self.model.get_weights())
        self.target.trainable = False
        self.optimizer = keras.optimizers.Adam(looper.CosineDecay(self, self.config.learning_rate))
        self._best = tf.function(lambda state: tf.argmax(self.model(state, training=False), 1))

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
    """Batches of remembered steps of some poles; between two batches each is balanced for a step more."""

    def __init__(self, config, best, seed):
        self.config, self.best, self.random = config, best, np.random.default_rng(seed)
        self.steps, self.lengths = 0, []
        self.poles, self.ages = self.begun(config.poles), np.zeros(config.poles, int)
        shapes = {"state": (4,), "following": (4,), "goes_on": (), "action": ()}
        self.memory = {name: np.zeros((config.memory, *shape), "float32") for name, shape in shapes.items()}
        self.memory["action"] = self.memory["action"].astype("int32")

    def begun(self, count):
        return self.random.uniform(-0.05, 0.05, (count, 4))

    def __iter__(self):
        while True:
            self.balance()
            if self.steps >= self.config.learn_from:
                chosen = self.random.integers(min(self.steps, self.config.memory), size=self.config.learn_from)
                yield {name: values[chosen] for name, values in self.memory.items()}

    def balance(self):
        """Makes one step of each pole, and remembers them."""
        before, count = self.poles.astype("float32"), len(self.poles)
        guessed = self.random.random(count) < max(1 - self.steps / self.config.explore, 0.02)
        actions = np.where(guessed, self.random.integers(2, size=count), self.best(before))
        self.poles, fell = cart_poles(self.poles, actions)
        places = (self.steps + np.arange(count)) % self.config.memory
        step = {"state": before, "following": self.poles, "goes_on": ~fell, "action": actions}
        for name, values in step.items():
            self.memory[name][places] = values
        self.steps, self.ages = self.steps + count, self.ages + 1
        over = fell | (self.ages == 200)  # the second is no end of the task: what comes after it still counts
        self.lengths = [*self.lengths, *self.ages[over].tolist()][-100:]
        self.poles[over], self.ages[over] = self.begun(over.sum()), 0

    def state(self):
        own = {name: getattr(self, name) for name in ("steps", "lengths", "poles", "ages", "memory")}
        return own | {"random": self.random.bit_generator.state}

    def restore(self, state):
        vars(self).update({name: value for name, value in state.items() if name != "random"})
        self.random.bit_generator.state = state["random"]


def cart_poles(states, actions):
    """States `[poles, 4]` 0.02 seconds later, of carts pushed to the left (0) or right (1), and which poles fell."""
    x, speed, angle, turning = states.T
    force, sine, cosine = 20.0 * actions - 10.0, np.sin(angle), np.cos(angle)
    pushed = (force + 0.05 * turning**2 * sine) / 1.1  # cart of 1 kg, pole of 0.1 kg and 1 m
    turned = (9.8 * sine - cosine * pushed) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    moved = pushed - 0.05 * turned * cosine / 1.1
    states = np.stack([x + 0.02 * speed, speed + 0.02 * moved, angle + 0.02 * turning, turning + 0.02 * turned], 1)
    return states, (abs(states[:, 0]) > 2.4) | (abs(states[:, 2]) > np.radians(12))


def make_network():
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((4,)), dense(128, "relu"), dense(128, "relu"), dense(2)])


if __name__ == "__main__":
    looper.run_recipe(Balance)
