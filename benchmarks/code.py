"""Counts what makes looper's code hard to read: `python -m benchmarks.code [--out FILE]`.

- lines of code, without blank lines, comments and docstrings
- private attributes that are read outside of their class, and public ones that are assigned outside of theirs
- the longest function, and parameter lists of more than 9
- files between `Trainer.fit` and the compiled step, and between `Trainer.save` and the bytes, in the calls as they are
  written: each on the shortest way
"""

import argparse
import ast
import io
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "looper"
MOST_PARAMETERS = 9
MAY_HAVE_MORE = ("Trainer.__init__", "Trainer.fit")


def code_lines(source: str) -> int:
    """Lines with code on them; a docstring and a comment are none."""
    lines: set[int] = set()
    passed = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in passed:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        alone = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if alone:
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def functions(tree: ast.AST, around: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions of a module by their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{around}{node.name}", node
            yield from functions(node, f"{around}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{around}{node.name}.")
        else:
            yield from functions(node, around)


def parameters(function: ast.FunctionDef) -> int:
    """How many a caller may give: without `self`, and without what only takes the rest."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in given if argument.arg not in ("self", "cls")])


def own_names(tree: ast.AST) -> set[str]:
    """The attributes that the classes of a module define: assigned to `self`, in the body, or methods."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and _is_own(inner.value):
                    found.add(inner.attr)
                elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.add(inner.name)
                elif isinstance(inner, ast.AnnAssign | ast.Assign):
                    targets = [inner.target] if isinstance(inner, ast.AnnAssign) else inner.targets
                    found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _is_own(value: ast.AST) -> bool:
    """Whether something is the object or the class that the code is in, or what it inherits."""
    called_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
    return called_super or (isinstance(value, ast.Name) and value.id in ("self", "cls"))


def private_reads(source: str, own: set[str]) -> list[tuple[int, str]]:
    """Private attributes of looper's classes that are read from something else than `self`."""
    return [
        (node.lineno, ast.unparse(node))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr in own
        and not _is_own(node.value)
    ]


def outer_assignments(source: str, own: set[str]) -> list[tuple[int, str]]:
    """Attributes of looper's classes that are assigned on something else than `self`."""
    return [
        (node.lineno, ast.unparse(node))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr in own
        and not _is_own(node.value)
    ]


def count() -> dict[str, object]:
    """All of it."""
    sources = {path.relative_to(PACKAGE.parent).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    own = set().union(*(own_names(ast.parse(source)) for source in sources.values()))
    found = {
        (name, file): function for file, source in sources.items() for name, function in functions(ast.parse(source))
    }
    lengths = {key: function.end_lineno - function.lineno + 1 - _docstring(function) for key, function in found.items()}
    longest = max(lengths, key=lengths.get)
    many = {name: parameters(function) for (name, _), function in found.items()}
    return {
        "modules": len(sources),
        "code_lines": sum(map(code_lines, sources.values())),
        "longest_function": f"{longest[0]} in {longest[1]}: {lengths[longest]} lines",
        "functions_over_60_lines": sum(length > 60 for length in lengths.values()),
        "parameters_over_9": sorted(
            f"{name}: {number}"
            for name, number in many.items()
            if number > MOST_PARAMETERS and name not in MAY_HAVE_MORE
        ),
        "private_reads": [f"{f}:{n} {t}" for f, source in sources.items() for n, t in private_reads(source, own)],
        "outer_assignments": [
            f"{f}:{n} {t}" for f, source in sources.items() for n, t in outer_assignments(source, own)
        ],
    }


def _docstring(function: ast.FunctionDef) -> int:
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return first.end_lineno - first.lineno + 1 if documented else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write what was counted to this JSON file")
    out = parser.parse_args().out
    counted = json.dumps(count(), indent=1)
    print(counted)
    if out is not None:
        out.write_text(counted + "\n")


if __name__ == "__main__":
    main()
