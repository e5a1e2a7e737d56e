"""Imports point one way, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import errata

SOURCE = Path(errata.__file__).parent

# Every module or package of errata belongs to one layer and may import from layers that stand
# before it (and from its own). A module that is missing fails the test: decide where it belongs.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "errata",
        "arguments",
        "case",
        "errors",
        "untrusted",
        "documents",
        "pace",
        "printable",
        "config",
        "progress",
        "refusals",
        "registry",
        "sources",
        "spacing",
    ),
    ("store", "served"),
    ("data", "world"),
    ("model",),
    ("patch",),
    ("tuning", "locate", "nets"),
    ("tracing",),
    ("training",),
    ("editors", "strategies"),
    ("inspection",),
    ("evaluation",),
    ("searching",),
    ("api",),
    ("sheets",),
    ("sweeping",),
    ("reporting",),
    ("web",),
    ("testing",),
    ("cli", "__main__"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

# Imports against the order, inside functions, each with its reason.
ALLOWED = {}


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts)


def unit_of(path: Path) -> str:
    """Return the module directly below errata, or the package, that a file belongs to."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "errata" if parts == ("__init__",) else parts[0]


def import_nodes(
    node: ast.AST, at_load: bool = True
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield the imports that happen at run time, and whether they do when the file is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.orelse:
                yield from import_nodes(part, at_load)
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_load
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from import_nodes(child, at_load and not inside)


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports of errata at run time, and whether it does so when it is loaded."""
    for node, at_load in import_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "errata":
                names = [f"errata.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "errata":
                first = rest.partition(".")[0]
                yield (first if first in LAYER or not first.startswith("__") else "errata"), at_load


def test_every_module_has_a_layer() -> None:
    unknown = {unit_of(path) for path in modules()} - LAYER.keys()
    assert not unknown, f"add {sorted(unknown)} to LAYERS"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    unit = unit_of(path)
    if unit == "errata":
        return  # exports everything, lazily: see below
    for target, at_load in imported(path):
        target = target or "errata"
        assert target in LAYER, f"{path} imports errata.{target}, which has no layer"
        if target == unit or (not at_load and (unit, target) in ALLOWED):
            continue
        assert LAYER[target] <= LAYER[unit], (
            f"{path.relative_to(SOURCE)} imports errata.{target}, which stands above {unit}"
        )


# ---------------------------------------------------------------------- circles among files

# Files that import each other, both counted as their imports stand: at the top or in functions.
# Each with the reason why it remains.
CIRCLES = {
    frozenset(
        f"errata.patch.{name}"
        for name in ("adapter", "card", "export", "folder", "gguf_adapter", "in_place", "patch")
    ): "Patch has save, applied, to_lora … as methods, which live in files of their own",
}


def file_imports(at_load: bool) -> dict[str, set[str]]:
    """Return which files import which, by dotted names; optionally without those in functions."""
    files = {}
    for path in modules():
        parts = ("errata", *path.relative_to(SOURCE).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for node, loaded in import_nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if at_load and not loaded:
                continue
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                # `from errata.a import b` loads errata.a.b if that is a file, else errata.a
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [t if t in files else node.module or "" for t in whole]
            graph[name] |= {target for target in targets if target in files}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of files that reach each other, and files that import themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    reach = {name: reached(name) for name in graph}
    return {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"d"}, "e": {"a"}}
    assert circles(graph) == {frozenset("bc"), frozenset("d")}
    source = (
        "import errata.x\nif TYPE_CHECKING:\n    import errata.y\ndef f():\n    import errata.z\n"
    )
    found = [(n.names[0].name, loaded) for n, loaded in import_nodes(ast.parse(source))]
    assert found == [("errata.x", True), ("errata.z", False)]


def test_no_files_import_each_other_when_loaded() -> None:
    assert not circles(file_imports(at_load=True))


def test_no_files_import_each_other_in_functions() -> None:
    found = circles(file_imports(at_load=False))
    assert found <= CIRCLES.keys(), f"new: {[sorted(c) for c in found - CIRCLES.keys()]}"
    assert found == CIRCLES.keys(), "one is gone: remove it from CIRCLES"


HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "numpy", "rich", "pydantic")


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import errata", ()),
        ("import errata.case, errata.errors, errata.store.files", ()),
        ("import errata.config, errata.registry", ("pydantic",)),
        ("import errata.data", ("pydantic",)),
        ("from errata.cli import app", ("pydantic",)),
        ("import errata.reporting.result, errata.reporting.figure", ("pydantic", "numpy")),
        (
            "from errata.cli.ls import rows_of, What; [rows_of(what) for what in What]",
            ("pydantic",),
        ),
    ],
)
def test_nothing_heavy_at_import(code: str, light: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) <= set(light), done.stdout


def test_help_imports_nothing_heavy() -> None:
    check = (
        "import sys; sys.argv = ['errata', '--help']\n"
        "from errata.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_exports_exist() -> None:
    for name in errata.__all__:
        assert getattr(errata, name) is not None
    with pytest.raises(AttributeError):
        _ = errata.nothing_of_that_name  # pyright: ignore[reportAttributeAccessIssue]
