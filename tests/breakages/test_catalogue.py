"""The catalogue fits the tree: each breakage still applies, and the tests that it names exist. Runs none of them."""

import ast
import functools
import re
from collections import Counter

from tests.breakages.catalogue import BREAKAGES, ROOT, Breakage


@functools.cache
def functions_of(file: str) -> frozenset[str]:
    """The names of a module's functions."""
    found = ast.walk(ast.parse((ROOT / file).read_text()))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef))


def why_not_applied(breakage: Breakage) -> str | None:
    """Why a breakage cannot be made any more; None if it can."""
    source = (ROOT / breakage.file).read_text()
    try:
        broken = breakage.broken(source)
        ast.parse(broken)
    except (ValueError, SyntaxError) as error:
        return f"{breakage.name}: {error}"
    return None if broken != source else f"{breakage.name}: it changes nothing"


def test_each_applies():
    assert [why for why in map(why_not_applied, BREAKAGES) if why is not None] == []


def test_the_tests_that_must_notice_exist():
    named = [test.partition("::") for breakage in BREAKAGES for test in breakage.tests]
    assert [f"{file}::{test}" for file, _, test in named if test.partition("[")[0] not in functions_of(file)] == []
    assert all(breakage.tests for breakage in BREAKAGES)


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own():
    assert len(BREAKAGES) >= 60
    assert [name for name, count in Counter(breakage.name for breakage in BREAKAGES).items() if count > 1] == []
    assert len({breakage.promise for breakage in BREAKAGES}) == len(BREAKAGES)


def test_the_tests_of_the_promises_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "tests" / "promises.md").read_text())
    assert len(named) > 200
    assert [f"{file}::{test}" for file, test in named if test not in functions_of(file)] == []
