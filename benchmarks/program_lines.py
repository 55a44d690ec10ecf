"""How many lines each of twelve training programs has as a recipe, and by hand in plain TensorFlow.

    python -m benchmarks.program_lines

Counted are lines that are not blank and no docstring: of the recipe all its methods, of the program by hand what makes
its models and its step. Both are formatted alike, and the data, the networks and the loop over batches are not counted.
"""

import argparse
import ast
import inspect
from pathlib import Path
from types import ModuleType

from benchmarks.saving import save
from tests.programs import PROGRAMS

RESULT = Path(__file__).parent / "results" / "program_lines.json"


def lines(program: ModuleType) -> tuple[int, int]:
    """The lines of a program as a recipe and by hand."""
    source = inspect.getsource(program)
    named = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    methods = [node for node in named["Recipe"].body if not _is_docstring(node)]
    own = [
        node for node in named["by_hand"].body if not (_is_docstring(node) or isinstance(node, ast.For | ast.Return))
    ]
    return _count(methods, source), _count(own, source)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _count(nodes: list[ast.stmt], source: str) -> int:
    text = source.splitlines()
    counted: set[int] = set()
    for node in nodes:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        counted |= {i for i in range(first - 1, node.end_lineno or first) if text[i].strip()}
        inner = [each for each in ast.walk(node) if isinstance(each, ast.FunctionDef) and _is_docstring(each.body[0])]
        for function in inner:
            counted -= set(range(function.body[0].lineno - 1, function.body[0].end_lineno or 0))
    return len(counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = {name: dict(zip(("recipe", "by hand"), lines(program), strict=True)) for name, program in PROGRAMS.items()}
    total = {side: sum(each[side] for each in found.values()) for side in ("recipe", "by hand")}
    print(f"{'program':<18}{'recipe':>8}{'by hand':>9}")
    for name, each in [*found.items(), ("all", total)]:
        print(f"{name:<18}{each['recipe']:>8}{each['by hand']:>9}")
    save(options.out, {"lines": found, "all": total}, "benchmarks.program_lines")


if __name__ == "__main__":
    main()
