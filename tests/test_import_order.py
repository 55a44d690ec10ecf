"""The folders of looper stand on each other: a module imports from its own folder and from those below it, never up."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

FROM_BELOW = (
    "base",
    "errors",
    "workers",
    "data",
    "recipe",
    "launch",
    "saved",
    "step",
    "audit",
    "run",
    "callbacks",
    "trainer",
    "commands",
    "cli",
    "__main__",
)
"""Each may import from those before it. `looper/__init__.py` may import from all, when a name is first used."""


def modules() -> dict[str, Path]:
    """The file of each module of looper, by its dotted name."""
    found = {}
    for path in (ROOT / "looper").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of looper that a file imports, also within functions; not for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected whole names of modules, not `from {'.' * node.level} import`"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return {name for name in found if name in known}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_folder_has_its_place():
    assert {room(name) for name in modules() if name != "looper"} == set(FROM_BELOW)


def test_no_module_imports_from_above():
    known = modules()
    upwards = [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in imports(path, known)
        if name != "looper" and (other == "looper" or FROM_BELOW.index(room(other)) > FROM_BELOW.index(room(name)))
    ]
    assert upwards == []


def test_no_import_goes_round_in_a_circle():
    known = modules()
    needs = {name: imports(path, known) - {name, "looper"} for name, path in known.items() if name != "looper"}
    while ready := {name for name, others in needs.items() if not others}:
        needs = {name: others - ready for name, others in needs.items() if name not in ready}
    assert needs == {}


def test_the_top_is_small():
    assert len([path for path in (ROOT / "looper").iterdir() if path.is_file()]) <= 6
