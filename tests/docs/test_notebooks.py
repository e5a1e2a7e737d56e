"""The notebooks of docs/ say what their code says, run here as plain Python."""

from __future__ import annotations

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from errata.errors import DataError
from tests.docs.scripts import DOCS, script

notebooks = script("notebooks")
NAMES = sorted(path.stem for path in (DOCS / "notebooks").glob("*.ipynb"))


def run(source: str, names: dict[str, Any]) -> str:
    """Run a cell and return what it prints, and its last expression as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, "cell", "exec"), names)
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    shown = [] if value is None else [repr(value)]
    return "\n".join(part.rstrip() for part in [out.getvalue(), *shown] if part)


@pytest.mark.parametrize("name", NAMES)
def test_cells_say_what_is_stated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata.world import pocket_path

    try:
        pocket_path()
    except DataError:
        pytest.skip("the pocket model is not in this checkout")
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    plt.close("all")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    figures = 0
    cells = notebooks.load(DOCS / "notebooks" / f"{name}.ipynb")["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        ((source, stated, timed),) = notebooks.code({"cells": [cell]})
        found = run(source, names)
        assert not notebooks.differs(stated, found, timed), source
        pictures = sum("image/png" in output.get("data", {}) for output in cell["outputs"])
        assert len(plt.get_fignums()) - figures == pictures, source
        figures += pictures
    plt.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_they_are_kept_as_they_were_run(name: str) -> None:
    """Small, run from top to bottom, without traces of the machine."""
    path = DOCS / "notebooks" / f"{name}.ipynb"
    notebook = notebooks.load(path)
    assert notebook == notebooks.clean(notebook)
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < 200_000
    assert str(Path.home()) not in path.read_text(encoding="utf-8")


def test_pages_show_cells_outputs_and_figures() -> None:
    text, pictures = notebooks.page(DOCS / "notebooks" / "compare-editors.ipynb")
    assert len(pictures) == 2
    assert all(
        data.startswith(b"\x89PNG") and f"({name})" in text for name, data in pictures.items()
    )
    assert "```python\nimport errata" in text
    assert "| SERAC |" in text


@pytest.mark.parametrize(
    ("stated", "found", "same"),
    [
        ("ROME 62.5 in 0.3 s", "ROME 62.4 in 7 s", True),
        ("ROME 62.5", "ROME 59.0", False),
        ("ROME 62.5", "FT 62.5", False),
        ("0.0001", "0.0150", True),
        ("FT 0.012 s / edit", "FT 9.9e-05 s / edit", True),
        ("| FT | 0.0001 |", "| FT | 9.9e-05 |", True),
        ("a\nb", "a", False),
        ("Tokyo −1.57", "Tokyo -1.57", True),
    ],
)
def test_comparing(stated: str, found: str, same: bool) -> None:
    assert (notebooks.differs(stated, found) == "") is same
