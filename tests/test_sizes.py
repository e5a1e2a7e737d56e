"""Files and functions stay short enough to be read in one go."""

from __future__ import annotations

import ast
from pathlib import Path

import errata

SOURCE = Path(errata.__file__).parent
FUNCTION, FILE = 100, 400

# Still too long; each entry goes as soon as it is not.
LONG_FUNCTIONS: set[str] = set()
LONG_FILES: set[str] = set()


def test_functions_are_short() -> None:
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > FUNCTION:
                    found.add(f"{path.relative_to(SOURCE).as_posix()} {node.name}")
    assert found == LONG_FUNCTIONS


def test_files_are_short() -> None:
    lengths = {
        path.relative_to(SOURCE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > FILE} == LONG_FILES
