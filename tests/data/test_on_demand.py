"""`prefetch=0`: a batch is asked for when the step before it is done, so that data may depend on training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import looper
from tests.support import line

EACH = looper.Every(steps=1)


def trainer(**changes):
    return line.trainer(model=line.model(), **changes)


class Game:
    """Its targets are half of what the model says at the moment that they are asked for."""

    def __init__(self, mine):
        self.mine, self.asked, self.seen = mine, 0, []

    def __iter__(self):
        while True:
            self.asked += 1
            weight = line.weight(self.mine)
            self.seen.append(weight)
            yield np.full((4, 1), self.asked, "float32") / 4, np.full((4, 1), self.asked * weight / 8, "float32")

    def state(self):
        return self.asked

    def restore(self, state):
        self.asked = state


def by_hand(steps):
    """The weight before each step, and after the last."""
    weights = [1.0]
    for asked in range(1, steps + 1):
        x, weight = asked / 4, weights[-1]
        weights.append(weight - 0.1 * 2 * (weight * x - weight * x / 2) * x)
    return weights


@pytest.mark.parametrize("execution", ["auto", "graph", "xla_step", "eager"])
def test_a_batch_is_asked_for_when_the_step_before_it_is_done(execution):
    mine = trainer(execution=execution)
    game = Game(mine)
    mine.fit(game, steps=6, prefetch=0, progress=False)
    expected = by_hand(6)
    np.testing.assert_allclose(game.seen, expected[:6], rtol=1e-6)
    np.testing.assert_allclose(line.weight(mine), expected[6], rtol=1e-6)


def test_otherwise_batches_are_read_ahead():
    mine = trainer()
    game = Game(mine)
    mine.fit(game, steps=6, progress=False)
    assert game.seen[:2] == [1.0, 1.0]


def test_functions_of_generators_and_sequences_are_asked_too():
    seen = []

    def look(x):
        seen.append(line.weight(mine))
        return x, np.zeros_like(x)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return look(np.ones((4, 1), "float32"))

    class Examples:
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return look(np.ones(1, "float32"))

    def generate():
        for _ in range(3):
            yield look(np.ones((4, 1), "float32"))

    for data, options in ((generate, {}), (Batches(), {}), (Examples(), {"batch_size": 4})):
        mine = trainer()
        mine.fit(data, epochs=2, prefetch=0, progress=False, **options)
        expected = [0.8**step for step in range(6)]
        np.testing.assert_allclose(sorted(set(np.round(seen, 6)), reverse=True), expected, rtol=1e-5)
        seen.clear()


def test_two_replicas():
    mine = line.trainer(strategy="mirrored", devices=2)
    game = Game(mine)
    mine.fit(game, steps=4, prefetch=0, progress=False)
    np.testing.assert_allclose(game.seen, by_hand(4)[:4], rtol=1e-6)


def test_a_run_that_is_stopped_and_continued_asks_for_the_same_batches(tmp_path):
    expected = by_hand(7)
    first = trainer(workdir=tmp_path)
    first.fit(Game(first), steps=4, prefetch=0, progress=False)
    second = trainer(workdir=tmp_path)
    game = Game(second)
    second.fit(game, steps=7, prefetch=0, progress=False, log_every=EACH)
    np.testing.assert_allclose(game.seen[-3:], expected[4:7], rtol=1e-6)
    np.testing.assert_allclose(line.weight(second), expected[7], rtol=1e-6)
    assert game.asked == 7


def test_xla_loop_which_reads_ahead_is_not_used():
    mine = trainer(execution="xla_loop")
    game = Game(mine)
    with pytest.warns(UserWarning, match="reads stacks of batches ahead, which prefetch=0 forbids; .* 'graph'"):
        mine.fit(game, steps=3, prefetch=0, progress=False)
    np.testing.assert_allclose(game.seen, by_hand(3)[:3], rtol=1e-6)


def arrays():
    return line.X, line.X


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (arrays(), {"prefetch": 2}, r"prefetch=2: expected 0, to .* or None\."),
        (arrays(), {"prefetch": -1}, r"prefetch=-1: expected 0"),
        (arrays(), {"prefetch": False}, r"prefetch=False: expected 0"),
        (arrays(), {"prefetch": 0}, r"prefetch=0 is for generators and sequences.* the data is arrays"),
        (tf.data.Dataset.from_tensors(arrays()), {"prefetch": 0}, r"prefetch=0 is for .* the data is a tf\.data\.Data"),
        (arrays, {"prefetch": 0, "steps_per_execution": 8}, r"prefetch=0 runs one step at a time, and steps_per_exec"),
    ],
)
def test_what_cannot_be_asked_for_late_is_one_line(data, options, said):
    options = dict(options)
    mine = trainer(steps_per_execution=options.pop("steps_per_execution", "auto"))
    with pytest.raises(looper.InputError, match=f"^{said}[^\n]*$"):
        mine.fit(data, steps=1, progress=False, **options)


class Remembering(Game):
    """Its state is large, and made when it is asked for."""

    made = 0

    def state(self):
        self.made += 1
        return {"asked": self.asked, "memory": np.zeros(1000, "float32")}

    def restore(self, state):
        self.asked = state["asked"]


def test_its_state_is_made_when_it_is_saved(tmp_path):
    """And not after each batch; the run goes on exactly."""
    mine = trainer(workdir=tmp_path)
    game = Remembering(mine)
    mine.fit(game, steps=40, prefetch=0, progress=False)
    assert game.made <= 3  # at the beginning, and for a checkpoint
    again = trainer(workdir=tmp_path)
    again.fit(Remembering(again), steps=46, prefetch=0, progress=False)
    whole = trainer()
    whole.fit(Remembering(whole), steps=46, prefetch=0, progress=False)
    assert line.weight(again) == line.weight(whole)
