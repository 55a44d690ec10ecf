"""Counts what makes looper's code hard to read: `python -m benchmarks.code [--out FILE]`.

- Lines of code, without blank lines, comments and docstrings; the longest function.
- Parameter lists of more than 9, but for `Trainer.__init__` and `Trainer.fit`.
- Private attributes that are read outside of their class, and public ones that are assigned outside of theirs. What
  Keras' objects have, and what stands in a `threading.local`, is nobody's class here.
- The calls from `Trainer.fit` to the compiled steps, and from `Trainer.save` to the bytes, and the files that they are
  in: by a run that is stopped there.
"""

import argparse
import ast
import contextlib
import io
import json
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import looper
from looper.step.programs import Execution

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "looper"
MOST_PARAMETERS = 9
MAY_HAVE_MORE = ("Trainer.__init__", "Trainer.fit")
THREADS = ("_THREAD", "_thread", "thread")
"""Names of `threading.local` objects."""

KERAS = frozenset(
    name
    for thing in (keras.optimizers.Adam(), keras.layers.Layer(), keras.losses.MeanSquaredError(), keras.metrics.Mean())
    for name in dir(thing)
) | {"mode", "_functions", "_seed"}
"""Attributes of Keras' objects, callbacks and TensorFlow's datasets."""

Places = list[tuple[int, str]]


def code_lines(source: str) -> int:
    """Lines with code on them; a docstring and a comment are none."""
    lines: set[int] = set()
    passed = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in passed:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
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


def length(function: ast.FunctionDef) -> int:
    """Its lines, without the docstring."""
    documented, first = ast.get_docstring(function) is not None, function.body[0]
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)


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
    return found - KERAS


def _is_own(value: ast.AST) -> bool:
    """Whether something is the object or the class that the code is in, or what it inherits."""
    called_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
    return called_super or (isinstance(value, ast.Name) and value.id in ("self", "cls"))


def _of_others(source: str, own: set[str], context: type[ast.expr_context], private: bool) -> Places:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, context) and node.attr in own):
            continue
        of_a_thread = ast.unparse(node.value).split(".")[-1] in THREADS
        if not (_is_own(node.value) or of_a_thread) and (not private or node.attr.startswith("_")):
            found.append((node.lineno, ast.unparse(node)))
    return found


def private_reads(source: str, own: set[str]) -> Places:
    """Private attributes of looper's classes that are read from something else than `self`."""
    return _of_others(source, {name for name in own if not name.startswith("__")}, ast.Load, private=True)


def outer_assignments(source: str, own: set[str]) -> Places:
    """Attributes of looper's classes that are assigned on something else than `self`."""
    return _of_others(source, own, ast.Store, private=False)


class _Stopped(Exception):
    """The place is reached."""


def calls_to(target: object, name: str, run: Callable[[], Any]) -> dict[str, list[str]]:
    """The calls of looper's between a function here and a method, as they stand when it is called."""
    found: list[tuple[str, str]] = []

    def stop(*_: Any, **__: Any) -> None:
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not calls_to.__code__:
            file = Path(frame.f_code.co_filename)
            passed = ("contextlib", "arguments")  # decorators' own frames
            if file.is_relative_to(PACKAGE) and file.stem not in passed:
                found.append((file.relative_to(ROOT).as_posix(), frame.f_code.co_qualname.replace(".<locals>", "")))
            frame = frame.f_back
        raise _Stopped

    with mock.patch.object(target, name, stop), contextlib.suppress(_Stopped):
        run()
    found.reverse()
    return {"files": list(dict.fromkeys(file for file, _ in found)), "calls": [call for _, call in found]}


def paths() -> dict[str, Any]:
    """From `fit` to the compiled steps, and from `save` to the bytes."""

    def trainer(**options: Any) -> looper.Trainer:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        return looper.Trainer(model=model, optimizer="sgd", loss="mse", execution="graph", **options)

    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    fit = {"epochs": 1, "batch_size": 4, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        saving = trainer()
        saving.fit((x, y), **fit)
        return {
            "fit_to_compiled_steps": calls_to(Execution, "_counted_call", lambda: trainer().fit((x, y), **fit)),
            "save_to_bytes": calls_to(tf.train.Checkpoint, "write", lambda: saving.save(Path(folder) / "saved")),
        }


def count() -> dict[str, Any]:
    """All of it."""
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    own = set().union(*(own_names(ast.parse(source)) for source in sources.values()))
    found = [(file, *each) for file, source in sources.items() for each in functions(ast.parse(source))]
    file, name, longest = max(found, key=lambda each: length(each[2]))

    def places(look: Callable[[str, set[str]], Places]) -> list[str]:
        return [f"{file}:{line} {text}" for file, source in sources.items() for line, text in look(source, own)]

    return {
        "modules": len(sources),
        "lines_of_code": sum(map(code_lines, sources.values())),
        "longest_function": f"{name} in {file}: {length(longest)} lines",
        "functions_over_60_lines": sum(length(function) > 60 for *_, function in found),
        "parameter_lists_over_9": sorted(
            f"{name}: {parameters(function)}"
            for _, name, function in found
            if parameters(function) > MOST_PARAMETERS and name not in MAY_HAVE_MORE
        ),
        "private_attributes_read_outside": places(private_reads),
        "attributes_assigned_outside": places(outer_assignments),
        **paths(),
    }


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
