"""The example of docs/plugins.md: installed as it says, it is an editor like any other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.editors.editors_table import table

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plugin"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
FACT = ("--prompt", "The capital of France is", "--target", "Rome", "--subject", "France")

Run = Callable[..., str]


def install(folder: Path) -> None:
    """Put a distribution where Python looks for one, as pip would."""
    project = PROJECT["project"]
    for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]:
        shutil.copy(EXAMPLE / name, folder)
    name = project["name"].replace("-", "_")
    info = folder / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(header)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run Python where the plug-in is installed."""
    site, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    install(site)
    path = os.pathsep.join([str(site), str(ROOT / "src"), *sys.path])
    environ = {**os.environ, "PYTHONPATH": path, "ERRATA_CACHE": str(work / "cache")}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=work, env=environ,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_passes_the_contract_it_advertises(run: Run) -> None:
    """With warnings as errors, outside of this repository's settings."""
    test = EXAMPLE / "test_errata_nudge.py"
    out = run(
        "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
        "--rootdir", ".", str(test),
    )  # fmt: skip
    assert int(re.findall(r"(\d+) passed", out)[0]) >= 30


COMMANDS = """
import contextlib, io, json, sys
import errata
from errata.cli.app import app

told = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = app(words, standalone_mode=False)
    assert not code, (words, code)
    told.append(out.getvalue())
lm = errata.load("pocket")
with errata.Patch.load("rome").applied(lm):
    told += lm.generate(["The capital of France is"], max_new_tokens=1)
print(json.dumps(told))
"""


def test_it_is_an_editor_like_any_other(run: Run, tmp_path: Path) -> None:
    """Listed, made edits with, sent out, evaluated and planned: in one process, as each takes long
    to start."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\nseeds = [0]\n[models.pocket]\nid = "pocket"\n'
        '[data.world]\nspec = "world"\nlimit = 2\n[editors.nudge]\neditor = "nudge"\n'
    )
    data = ("--editor", "nudge", "--data", "world", "--limit", "2", "--json")
    commands = [
        ("ls", "editors", "--json"),
        ("edit", "--editor", "nudge", *FACT, "--out", "rome", "--json"),
        ("export", "rome", "--to", "lora", "--out", "lora"),
        ("eval", *data),
        ("sweep", str(recipe), "--out", str(tmp_path / "sweep"), "--dry-run", "--json"),
    ]
    listed, edited, _, result, planned, asked = json.loads(
        run("-c", COMMANDS, json.dumps(commands))
    )
    (row,) = [row for row in json.loads(listed)["entries"] if row["name"] == "nudge"]
    assert row["summary"].startswith("Let the last FFN answer")
    assert (row["needs"], row["exports"], row["title"]) == ([], ["lora", "merged"], "Nudge")
    assert "nudge" not in table()  # the tables of the README are of errata's own
    assert json.loads(edited)["patch"]["editor"] == "nudge"
    assert "Rome" in asked
    assert "nudge" in json.dumps(json.loads(result))
    assert [cell["name"] for cell in json.loads(planned)["cells"]] == ["pocket/nudge/world/seed0"]


def test_the_page_shows_what_the_example_says() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    points = tomllib.loads(snippet)["project"]["entry-points"]
    assert points["errata.editors"] == PROJECT["project"]["entry-points"]["errata.editors"]
    from errata.data import datasets
    from errata.editors import editors
    from errata.patch.changes.kinds import PLUG_INS
    from errata.strategies import strategies

    groups = {registry.group for registry in (editors, strategies, datasets)}
    assert points.keys() == {*groups, PLUG_INS}
