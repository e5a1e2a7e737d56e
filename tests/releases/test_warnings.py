"""A user's warning filters are theirs, and our own calls warn them of nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import errata

SOURCE = Path(errata.__file__).parent
SETTERS = {"filterwarnings", "simplefilter", "resetwarnings"}


def loose(tree: ast.AST, caught: bool = False) -> list[int]:
    """Return the lines that set warning filters outside of `with warnings.catch_warnings()`."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = caught
        if isinstance(node, ast.With):
            inside = caught or any("catch_warnings" in ast.unparse(i) for i in node.items)
        if isinstance(node, ast.Attribute | ast.Name) and not caught:
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in SETTERS:
                found.append(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr == "showwarning":
            found.append(node.lineno)  # a hook for all, even within catch_warnings
        found += loose(node, inside)
    return found


def test_the_search_finds_what_it_is_for() -> None:
    text = (
        "import warnings\n"
        "warnings.simplefilter('ignore')\n"
        "with warnings.catch_warnings():\n"
        "    warnings.simplefilter('ignore')\n"
        "def f():\n"
        "    warnings.filterwarnings('error')\n"
        "warnings.showwarning = print\n"
    )
    assert loose(ast.parse(text)) == [2, 6, 7]


def test_no_module_sets_warning_filters_of_the_process() -> None:
    for path in SOURCE.rglob("*.py"):
        lines = loose(ast.parse(path.read_text(encoding="utf-8")))
        assert not lines, f"{path.relative_to(SOURCE)}: lines {lines}"


WORK = """
import sys, warnings
warnings.filterwarnings("error", message="of the user", category=UserWarning)
import torch, transformers, datasets, peft, accelerate  # what they do to the filters is theirs
before = list(warnings.filters)
import errata
lm = errata.load("pocket")
edits = [errata.Edit("The capital of France is the city named", "Tokyo", "France")]
patch = errata.get_editor("rome", {"steps": 1}).edit_one(lm, edits)
with patch.applied(lm):
    lm.generate(["The capital of France is"], 2)
bare = errata.get_editor("ike", {"form": "bare", "demo_count": 0}).edit_one(lm, edits)
ids = torch.tensor([lm.row("The capital of France is").ids])
with bare.applied(lm):
    lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
assert list(warnings.filters) == before, set(warnings.filters) ^ set(before)
"""


def test_work_leaves_the_filters_as_they_were_and_warns_of_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    assert "deprecated" not in done.stderr
