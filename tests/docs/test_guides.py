"""The guides' files and code are those that work: recipes are read, the editor is the example's."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.app import app
from errata.errors import DataError
from tests.docs.scripts import DOCS, ROOT

TITLED = re.compile(r'^```\w+ title="([\w.-]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
GUIDES = ("index.md", "compare-editors.md", "train-an-editor.md", "write-an-editor.md")


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def files(page: str) -> dict[str, str]:
    return dict(TITLED.findall(text(page)))


@pytest.fixture
def pocket() -> None:
    from errata.world import pocket_path

    try:
        pocket_path()
    except DataError:
        pytest.skip("the pocket model is not in this checkout")


def test_the_recipe_plans_what_the_guide_shows(
    pocket: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((name, recipe),) = files("compare-editors.md").items()
    Path(name).write_text(recipe, encoding="utf-8")
    done = CliRunner().invoke(app, ["sweep", name, "--dry-run", "--json"])
    assert done.exit_code == 0, done.stderr
    planned = json.loads(done.stdout)
    assert "pocket/ibke/world/seed1" in json.dumps(planned)
    assert f"{name} --dry-run" in text("compare-editors.md")


def test_the_editor_of_the_guide_is_the_example() -> None:
    own = files("write-an-editor.md")
    for name in ("errata_nudge.py", "test_errata_nudge.py"):
        example = (ROOT / "examples" / "plugin" / name).read_text(encoding="utf-8")
        assert own[name] == example


def test_the_editor_of_the_guide_works(
    pocket: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As the guide says it is tried, on two cases in place of twenty."""
    for name, body in files("write-an-editor.md").items():
        (tmp_path / name).write_text(body.replace("limit=20", "limit=2"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    exec((tmp_path / "try_it.py").read_text(encoding="utf-8"), {})
    sys.modules.pop("errata_nudge")
    said = capsys.readouterr().out
    assert "✓ The capital of France is the city named → Rome" in said
    assert len(re.findall(r"^strength", said, re.MULTILINE)) == 3
    (variant,) = re.findall(r"```python\n(.*?)```", text("write-an-editor.md"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(variant, names)
    assert names["RRome"].__bases__[0].__name__ == "Rome"


@pytest.mark.parametrize("page", GUIDES)
def test_sessions_hold_what_was_printed(page: str) -> None:
    """`make readme` has run them; every one prints something, but for what goes into a file."""
    fences = re.findall(r"^```console\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    assert fences
    for fence in fences:
        last = fence.rstrip().splitlines()[-1]
        assert not last.startswith("$") or " > " in last, fence


@pytest.mark.parametrize("page", GUIDES)
def test_options_of_the_guides_exist(page: str) -> None:
    known = set(re.findall(r"--[a-z][a-z0-9-]*", text("cli.md")))
    fences = re.findall(r"^```(?:console|sh)\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    commands = [
        line
        for fence in fences
        for line in fence.splitlines()
        if line.startswith(("$ errata", "> ", "errata "))
    ]
    assert commands
    for line in commands:
        assert set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", line)) <= known, line
