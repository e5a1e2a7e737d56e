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
    ("errata", "case", "errors", "config", "progress", "registry", "sources"),
    ("store",),
    ("data", "world"),
    ("model",),
    ("patch",),
    ("tuning", "locate", "nets"),
    ("tracing", "training"),
    ("editors", "strategies"),
    ("evaluation",),
    ("api",),
    ("sweeping",),
    ("reporting",),
    ("cli", "__main__"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

# Imports against the order, inside functions, each with its reason.
ALLOWED = {
    ("training", "editors"): "training by name looks the editor up",
}


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts)


def unit_of(path: Path) -> str:
    """Return the module directly below errata, or the package, that a file belongs to."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "errata" if parts == ("__init__",) else parts[0]


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports of errata at run time, and whether it does so when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, at_load: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.orelse:
                    yield from walk(part, at_load)
                continue
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                names = [child.module or ""]
                if child.module == "errata":
                    names = [f"errata.{alias.name}" for alias in child.names]
            elif isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            else:
                yield from walk(child, at_load and not inside)
                continue
            for name in names:
                head, _, rest = name.partition(".")
                if head == "errata":
                    first = rest.partition(".")[0]
                    yield (
                        (first if first in LAYER or not first.startswith("__") else "errata"),
                        at_load,
                    )

    yield from walk(tree, True)


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
