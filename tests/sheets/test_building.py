"""A build out of what was kept is that of a build from nothing, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import errata
from errata.errors import ConfigError, DataError, EditError, PatchError
from errata.patch import Patch
from errata.patch.changes import Dense
from errata.sheets.building import build, editors_of, folder_of
from tests.sheets.conftest import FAST, fact, toml

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.sheets import Sheet

Make = Callable[..., "Sheet"]
THREE = [fact("France"), fact("Italy", "Paris"), fact("Berlin", "Paris")]


@pytest.fixture(scope="module")
def lm() -> LM:
    from tests.conftest import build as tiny

    return tiny("qwen3")


def content(patch: Patch, folder: Path) -> tuple[bytes, Any]:
    """Return all that a patch writes, but the time."""
    patch.save(folder)
    document = json.loads((folder / "patch.json").read_text(encoding="utf-8"))
    document["meta"].pop("made")
    return (folder / "patch.safetensors").read_bytes(), document


def test_only_what_changed_is_edited_and_nothing_tells(
    lm: LM, sheet: Make, tmp_path: Path, cache: Path
) -> None:
    before = lm.fingerprint
    first = build(lm, sheet(THREE))
    assert (first.made, first.kept) == (("france", "italy", "berlin"), ())
    changed = sheet([THREE[0], fact("Italy", "Rome"), THREE[2]])
    second = build(lm, changed)
    assert (second.made, second.kept) == (("italy",), ("france", "berlin"))
    shutil.rmtree(cache)
    scratch = build(lm, changed)
    assert scratch.kept == ()
    assert content(second.patch, tmp_path / "a") == content(scratch.patch, tmp_path / "b")
    again = build(lm, changed, fresh=True)
    assert (again.made, again.kept) == (("france", "italy", "berlin"), ())
    assert content(again.patch, tmp_path / "c") == content(scratch.patch, tmp_path / "d")
    lm.model.zero_grad()
    from errata.model.weights import weight_fingerprint

    assert weight_fingerprint(lm.model) == before


def test_without_a_fact_it_was_never_there(
    lm: LM, sheet: Make, tmp_path: Path, cache: Path
) -> None:
    from errata.sheets import load_sheet, without_fact

    all_three = sheet(THREE)
    build(lm, all_three)
    without_fact(all_three, "italy")
    left = build(lm, load_sheet(all_three.folder))
    assert (left.made, left.kept) == ((), ("france", "berlin"))
    shutil.rmtree(cache)
    never = build(lm, sheet([THREE[0], THREE[2]]))
    assert content(left.patch, tmp_path / "a") == content(never.patch, tmp_path / "b")


def test_it_is_the_sum_of_single_edits(lm: LM, sheet: Make) -> None:
    built = build(lm, sheet(THREE)).patch
    alone = [
        errata.edit(lm, f["prompt"], f["target"], subject=f["subject"], ask=False, **FAST)
        for f in THREE
    ]
    parts = [change for patch in alone for change in patch.changes]
    assert len(built.changes) == len(parts)
    for one, two in zip(built.changes, parts, strict=True):
        assert one.path == two.path  # type: ignore[attr-defined]
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, two.tensors()[name])
    assert [edit.id for edit in built.edits] == ["france", "italy", "berlin"]
    assert len(built.results) == 3


def test_whole_matrices_become_one(lm: LM, sheet: Make) -> None:
    settings: dict[str, Any] = {"steps": 2, "layers": 1}
    text = 'name = "s"\neditor = "ft"\n[settings]\nsteps = 2\nlayers = 1\n'
    built = build(lm, sheet(THREE, text)).patch
    expected: dict[str, Any] = {}
    for f in THREE:
        alone = errata.edit(lm, f["prompt"], f["target"], editor="ft", ask=False, **settings)
        for change in alone.changes:
            assert isinstance(change, Dense)
            expected[change.path] = expected.get(change.path, torch.zeros(())) + change.delta
    assert {change.path for change in built.changes} == set(expected)  # type: ignore[attr-defined]
    assert len(built.changes) == len(expected)
    for change in built.changes:
        assert isinstance(change, Dense)
        assert torch.equal(change.delta, expected[change.path])


def test_a_build_that_is_killed_goes_on(lm: LM, sheet: Make, tmp_path: Path) -> None:
    def kill(done: int, total: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    own = sheet(THREE)
    with pytest.raises(KeyboardInterrupt):
        build(lm, own, progress=kill)
    seen: list[tuple[int, int, str]] = []
    built = build(lm, own, progress=lambda *told: seen.append(told))
    assert (built.made, built.kept) == (("berlin",), ("france", "italy"))
    assert seen == [(2, 3, "berlin"), (3, 3, "")]
    fresh = build(lm, own, fresh=True)
    assert content(built.patch, tmp_path / "a") == content(fresh.patch, tmp_path / "b")


def test_only_what_the_edit_depends_on_counts(lm: LM, sheet: Make) -> None:
    build(lm, sheet(THREE))
    beside = [fact("France", id="other", owner="me", reason="so", holds=["x"], keeps=["y"])]
    assert build(lm, sheet(beside)).made == ()
    for other in (
        sheet([fact("France", "Paris")]),
        sheet([fact("France", subject_at="first", chat="off", prompt="In France, France is")]),
        sheet([THREE[0]], toml(steps=3)),
        sheet([THREE[0]], toml("r_rome")),
    ):
        assert len(build(lm, other).made) == 1
    from tests.conftest import build as tiny

    assert build(tiny("gpt2"), sheet([THREE[0]])).made == ("france",)


def test_the_text_that_the_model_reads_counts(
    lm: LM, sheet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own,) = sheet([fact("France", chat="user")]).facts
    chosen = editors_of(sheet([own.described()]))
    folders = set()
    for begin in ("", "Berlin "):  # another template of the same model
        template = begin + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        monkeypatch.setattr(lm.tokenizer, "chat_template", template)
        folders.add(folder_of(lm, chosen, own))
    assert len(folders) == 2


def test_what_is_damaged_is_edited_again(
    lm: LM, sheet: Make, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(lm, sheet(THREE))
    broken = next((cache / "sheets").glob("*/patch.safetensors"))
    broken.write_bytes(broken.read_bytes()[:-4])
    assert len(build(lm, sheet(THREE)).made) == 1
    assert "is edited again" in caplog.text


def test_the_patch_names_its_sheet(lm: LM, sheet: Make, tmp_path: Path) -> None:
    two = [fact("France", owner="geography", reason="moved", valid_until="2999-01-01"), THREE[1]]
    built = build(lm, sheet(two)).patch
    built.save(tmp_path / "p")
    meta = Patch.load(tmp_path / "p").meta["sheet"]
    assert meta["name"] == "sheet"
    assert [f["id"] for f in meta["facts"]] == ["france", "italy"]
    told = meta["facts"][0]
    assert (told["owner"], told["reason"], told["editor"]) == ("geography", "moved", "rome")
    assert built.meta["editor"] == "rome"
    assert built.state == {}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"id": 7}, r"meta\.sheet\.facts\[0\]\.id is 7"),
        ({"id": "a", "prompt": 7}, r"meta\.sheet\.facts\[0\]\.prompt"),
        ({"id": "a", "owner": ["x"]}, r"meta\.sheet\.facts\[0\]\.owner is a list of 1"),
    ],
)
def test_a_damaged_name_is_refused(
    lm: LM, sheet: Make, tmp_path: Path, entry: dict[str, Any], said: str
) -> None:
    build(lm, sheet([THREE[0]])).patch.save(tmp_path / "p")
    path = tmp_path / "p" / "patch.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["meta"]["sheet"]["facts"] = [entry]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(PatchError, match=said):
        Patch.load(tmp_path / "p")


def test_several_editors(lm: LM, sheet: Make, tmp_path: Path) -> None:
    own = sheet(THREE, toml(["rome", "ft"], layers=1))
    built = build(lm, own)
    for told in built.patch.meta["sheet"]["facts"]:
        assert [row["editor"] for row in told["tried"]] == ["rome", "ft"]
        assert told["editor"] in ("rome", "ft")
    again = build(lm, own)
    assert again.made == ()
    assert content(built.patch, tmp_path / "a") == content(again.patch, tmp_path / "b")


def test_several_prompts_of_one_fact(lm: LM, sheet: Make) -> None:
    both = ["The capital of France is", "France: its capital is"]
    built = build(lm, sheet([fact("France", prompt=both)])).patch
    assert [edit.id for edit in built.edits] == ["france/1", "france/2"]


@pytest.mark.parametrize("editor", ["grace", "wise", "ike", "t_patcher", "lemoe", "none"])
def test_what_does_not_add_up_is_refused(sheet: Make, editor: str) -> None:
    own = sheet([THREE[0]], f'name = "s"\neditor = "{editor}"\n')
    with pytest.raises(ConfigError, match=rf"with {editor}: what it adds stands beside") as error:
        editors_of(own)
    assert error.value.hint is not None
    assert "rome" in error.value.hint


def test_what_cannot_be_edited_is_named(lm: LM, sheet: Make) -> None:
    bare = {"id": "x", "prompt": "The capital of France is", "target": "Rome"}
    with pytest.raises(EditError, match=r"a\.jsonl: line 2: rome needs to know the subject"):
        build(lm, sheet([THREE[1], bare]))
    with pytest.raises(DataError, match=r"no fact of .* is valid on"):
        build(lm, sheet([fact("France", valid_until="2020-01-01")]))
    with pytest.raises(ConfigError, match=r"unknown setting 'stepz'|has a setting 'stepz'"):
        build(lm, sheet([THREE[0]], toml(stepz=3)))
