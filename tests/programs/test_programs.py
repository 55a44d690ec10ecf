"""Each program as a recipe against the same one by hand, on one device and on two replicas.

`python -m benchmarks.programs` runs each program in every way; a part of them is tried here.
"""

import functools

import numpy as np
import pytest

from tests.programs import PROGRAMS, shared
from tests.support import graphs
from tests.support.models import norm_difference

TWO = {"strategy": "mirrored", "devices": 2}


def each(names=tuple(PROGRAMS)):
    """The programs, those of the same name in one process."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(f"program {name}")) for name in names]


@functools.cache
def by_hand(name, precision):
    return shared.by_hand(PROGRAMS[name], precision, compiled=False)


def assert_as_by_hand(name, precision, **options):
    expected = by_hand(name, precision)
    found = shared.train(PROGRAMS[name], list(expected), precision, **options)
    for part, values in expected.items():
        for a, b in zip(found[part], values, strict=True):
            if precision == "float64":
                np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=0, atol=1e-9, err_msg=part)
            else:
                assert all(norm_difference(copy, b[0]) < 1e-5 for copy in a), part


@pytest.mark.parametrize("name", each())
def test_a_recipe_trains_as_by_hand(name):
    start = shared.by_hand(PROGRAMS[name], "float64", steps=0, compiled=False)
    ended = by_hand(name, "float64")
    assert max(norm_difference(a, b) for part in ended for a, b in zip(start[part], ended[part], strict=True)) > 0.05
    assert_as_by_hand(name, "float64")
    assert_as_by_hand(name, "float64", **TWO)


@pytest.mark.parametrize("name", each(["pcgrad"]))
def test_with_steps_as_xla_programs(name):
    assert_as_by_hand(name, "float32", execution="xla_step")


@pytest.mark.parametrize("name", each(["sam"]))
def test_with_a_loop_as_an_xla_program(name):
    assert_as_by_hand(name, "float32", execution="xla_loop")


@pytest.mark.parametrize("name", each(["translation"]))
def test_with_micro_batches(name):
    assert_as_by_hand(name, "float32", accumulate=2, **TWO)


def checked(recipe, name):
    """Compiled where the step is short, and elsewhere step by step, which is the quicker of the two."""
    [batch] = shared.first_batches(PROGRAMS[name], "float64", steps=1)
    mode = "graph" if name == "diffusion" else "eager"
    return recipe(execution=mode, precision="float64", **TWO).check_replicas(batch)


@pytest.mark.parametrize("name", each())
def test_check_replicas_finds_a_planted_mistake(name):
    report = checked(PROGRAMS[name].PLANTED, name)
    assert not report.ok, report


@pytest.mark.parametrize("name", each(["moco", "vq_vae"]))
def test_check_replicas_finds_nothing_else(name):
    report = checked(PROGRAMS[name].Recipe, name)
    assert report.verdict == "equal", report


@pytest.mark.parametrize("name", each(["diffusion", "moco"]))
def test_a_stopped_run_continues_with_the_same_bits(tmp_path, name):
    continued, undisturbed = shared.stopped_and_undisturbed(PROGRAMS[name], tmp_path)
    assert continued.keys() == undisturbed.keys()
    assert any("seeds" in part for part in undisturbed)
    for part, value in undisturbed.items():
        np.testing.assert_array_equal(continued[part], value, err_msg=part)


@pytest.mark.parametrize("name", each(["diffusion"]))
def test_all_replicas_have_the_same_bits(name):
    with graphs.optimized():  # which would round them apart
        found = shared.train(PROGRAMS[name], ["model"], "float32", **TWO)
    for part, values in found.items():
        for first, *others in values:
            for other in others:
                np.testing.assert_array_equal(other, first, err_msg=part)
