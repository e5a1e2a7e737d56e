"""Which settings an editor takes: those asked for, those found for these weights, the rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import build

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.editors.fitting import Found, fitted, folder_of, found_for, keep_found
from errata.model.backbones import identify
from errata.model.lm import LM

EDIT = Edit("The capital of France is", "Rome", "France")
QUICK = {"mom2_adjustment": False, "contexts": "bare"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def lm() -> LM:
    return build("gpt2")


def found(editor: str, **settings: Any) -> Found:
    return Found(editor, settings, 16, "0123abcd", "2026-01-01T00:00:00Z", {})


def test_nothing_found_changes_nothing(lm: LM) -> None:
    editor = get_editor("ft", model=lm.name)
    assert fitted(editor, lm) is editor
    assert found_for(lm, "ft") is None


def test_what_was_found_for_these_weights_is_taken(lm: LM) -> None:
    keep_found(lm, found("ft", lr=0.007, layers=[1]))
    editor: Any = fitted(get_editor("ft", model=lm.name), lm)
    assert (editor.config.lr, editor.config.layers) == (0.007, (1,))
    assert editor.settings_from == (
        "tuned for ft on 16 facts that this model knows (0123abcd): lr=0.007, layers=[1]"
    )
    assert editor.blocks_from(lm).startswith("tuned for ft on 16 facts")
    assert editor.config.model_fields_set == set()  # nobody asked for them
    other: Any = fitted(get_editor("ft", model="tiny-gptj"), build("gptj"))
    assert other.config.lr == 5e-4
    assert found_for(lm, "rome") is None


def test_the_name_of_the_model_does_not_matter(lm: LM) -> None:
    keep_found(lm, found("ft", lr=0.007))
    renamed = errata.LM(lm.model, lm.tokenizer, name="elsewhere/copy")
    assert found_for(renamed, "ft") is not None


def test_what_was_asked_for_wins(lm: LM) -> None:
    keep_found(lm, found("ft", lr=0.007, steps=3))
    by_name: Any = fitted(get_editor("ft", {"lr": 0.1}, model=lm.name), lm)
    assert (by_name.config.lr, by_name.config.steps) == (0.1, 3)
    typed: Any = fitted(get_editor("ft", overrides=["steps=9"], model=lm.name), lm)
    assert (typed.config.lr, typed.config.steps) == (0.007, 9)
    published: Any = fitted(get_editor("ft", as_published="gpt-j-6b", model=lm.name), lm)
    assert published.config.lr == 5e-4
    assert published.settings_from == ""
    own: Any = fitted(get_editor("ft"), lm)  # built for no model: as it stands
    assert own.config.lr == 5e-4


def test_the_whole_way_from_python(lm: LM) -> None:
    keep_found(lm, found("rome", steps=2, layer=1))
    patch = errata.edit(lm, EDIT, editor="rome", neighbourhood=False, **QUICK)
    assert patch.meta["config"]["steps"] == 2
    assert patch.meta["settings_from"].startswith("tuned for rome")
    assert patch.meta["blocks_from"].startswith("tuned for rome")
    built = errata.edit(
        lm, EDIT, editor=get_editor("rome", {**QUICK, "steps": 3}), neighbourhood=False
    )
    assert built.meta["config"]["layer"] == "auto"
    assert "settings_from" not in built.meta
    result = errata.evaluate(lm, "rome", [errata.Case("a", (EDIT,))], bootstrap=0, **QUICK)
    assert result.records
    several = errata.edit(lm, [EDIT], editor=["rome", "none"], **{"contexts": "bare"})
    assert several.meta["editor"] in ("rome", "none")


def test_runs_record_where_settings_come_from(lm: LM, tmp_path: Path) -> None:
    import json

    keep_found(lm, found("ft", steps=2))
    errata.evaluate(lm, "ft", [errata.Case("a", (EDIT,))], bootstrap=0, out=tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["editor"]["settings_from"].startswith("tuned for ft")
    assert config["editor"]["config"]["steps"] == 2


def test_small_models_get_a_greater_strength(lm: LM) -> None:
    for name in ("memit", "memit_seq", "memit+blue"):
        editor: Any = fitted(get_editor(name, model=lm.name), lm)
        assert (editor.config.clamp, editor.config.mom2_weight) == (4.0, 1000.0)
        assert editor.settings_from == (
            "rule for models narrower than 1,024: clamp=4, mom2_weight=1000"
        )
    asked: Any = fitted(get_editor("memit", {"clamp": 2.0}, model=lm.name), lm)
    assert (asked.config.clamp, asked.config.mom2_weight) == (2.0, 1000.0)
    plain: Any = fitted(get_editor("pmet", model=lm.name), lm)
    assert plain.config.mom2_weight == 10_000.0


@pytest.mark.parametrize(("width", "strength"), [(1023, 1000.0), (1024, 20_000.0)])
def test_wide_models_keep_the_published_strength(
    lm: LM, width: int, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lm.site
    monkeypatch.setattr(lm, "site", lambda *at: replace(real(*at), d_out=width))
    editor: Any = fitted(get_editor("memit", model=lm.name), lm)
    assert editor.config.mom2_weight == strength


def test_models_with_settings_of_their_own_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pocket = errata.load("pocket")
    editor = get_editor("memit", model="pocket")
    assert fitted(editor, pocket) is editor
    small = build("gpt2")
    monkeypatch.setattr(small, "backbone", identify("gpt2-xl"))  # published, however wide
    editor = get_editor("memit", model="gpt2-xl")
    assert fitted(editor, small) is editor


def test_a_pair_takes_what_its_host_has_unless_it_has_its_own(lm: LM) -> None:
    keep_found(lm, found("memit", clamp=7.0))
    pair: Any = fitted(get_editor("memit+blue", model=lm.name), lm)
    assert pair.config.clamp == 7.0
    keep_found(lm, found("memit+blue", clamp=2.0))
    pair = fitted(get_editor("memit+blue", model=lm.name), lm)
    assert pair.config.clamp == 2.0


@pytest.mark.parametrize("damage", ["cut", "setting", "format"])
def test_what_cannot_be_read_is_left_out(
    lm: LM, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"lrr": 0.1} if damage == "setting" else {"lr": 0.1}
    if damage == "setting":
        settings = {"lr": -1.0}
    path = keep_found(lm, found("ft", **settings))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    if damage == "format":
        from errata.store.cache import load_json, save_json

        save_json(path, {**(load_json(path) or {}), "format": 99})
    editor: Any = fitted(get_editor("ft", model=lm.name), lm)
    assert editor.config.lr == 5e-4
    assert folder_of(lm).is_dir()
