"""The catalogue fits the tree: each breakage still applies, and the tests that it names exist. Runs none of them."""

import ast
import functools
import re
from collections import Counter

import pytest

from tests.breakages.catalogue import BREAKAGES, ROOT, Breakage

ids = [breakage.name for breakage in BREAKAGES]


@functools.cache
def functions_of(file: str) -> frozenset[str]:
    """The names of a module's functions."""
    found = ast.walk(ast.parse((ROOT / file).read_text()))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("breakage", BREAKAGES, ids=ids)
def test_it_applies(breakage: Breakage):
    source = (ROOT / breakage.file).read_text()
    broken = breakage.broken(source)
    assert broken != source
    ast.parse(broken)


@pytest.mark.parametrize("breakage", BREAKAGES, ids=ids)
def test_the_named_tests_exist(breakage: Breakage):
    assert breakage.tests
    for test in breakage.tests:
        file, _, function = test.partition("::")
        assert function.partition("[")[0] in functions_of(file), test


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own():
    assert len(BREAKAGES) >= 60
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert len({breakage.promise for breakage in BREAKAGES}) == len(BREAKAGES)


def test_the_tests_of_the_promises_exist():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "tests" / "promises.md").read_text())
    assert len(named) > 200
    assert [f"{file}::{test}" for file, test in named if test not in functions_of(file)] == []
