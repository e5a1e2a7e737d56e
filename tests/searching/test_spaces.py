"""What is tried: settings that every editor accepts, the same every time, never what was given."""

from __future__ import annotations

from itertools import islice

import pytest

from errata.config import settings_from
from errata.editors import editors, get_editor
from errata.errors import ConfigError
from errata.model.lm import LM
from errata.searching.spaces import blocks_tried, space_of

SEARCHED = (
    "rome", "r_rome", "memit", "emmet", "pmet", "alphaedit", "ft", "memit+blue", "grace", "wise",
    "memoir", "unke", "t_patcher", "lemoe",
)  # fmt: skip


@pytest.mark.parametrize("name", SEARCHED)
def test_every_candidate_is_valid_and_none_comes_twice(name: str, pocket: LM) -> None:
    editor = get_editor(name, model="pocket")
    space = space_of(editor, pocket)
    made = list(islice(space.candidates(0), 60))
    assert made[0] == {}
    assert all(one not in made[:i] for i, one in enumerate(made))
    for settings in made:
        settings_from(type(editor.config), settings)
    assert made == list(islice(space.candidates(0), 60))
    assert made != list(islice(space.candidates(1), 60))
    blocks = blocks_tried(space, editor, pocket)
    assert blocks
    assert all(0 <= block < pocket.n_layers for block in blocks)


@pytest.mark.parametrize("name", SEARCHED)
def test_beside_the_best_one_thing_changes(name: str, pocket: LM) -> None:
    editor = get_editor(name, model="pocket")
    space = space_of(editor, pocket)
    start = dict(list(islice(space.candidates(0), 60))[-1])
    near = list(space.beside(start, editor.config.model_dump()))
    assert near
    options = {key for _, found in space.dimensions for option in found for key in option}
    for settings in near:
        changed = {key for key in settings if settings.get(key) != start.get(key)}
        assert changed
        assert changed <= options
        assert any(changed <= option.keys() for _, found in space.dimensions for option in found)


def test_facts_that_are_told_have_no_blocks(pocket: LM) -> None:
    editor = get_editor("rag", model="pocket")
    space = space_of(editor, pocket)
    made = list(islice(space.candidates(0), 40))
    assert made[1] == {"threshold": 0.7}
    assert all(one not in made[:i] for i, one in enumerate(made))
    assert blocks_tried(space, editor, pocket) == ()


def test_what_was_given_is_not_searched(pocket: LM) -> None:
    editor = get_editor("memit", {"clamp": 2.0, "layers": (1, 2)}, model="pocket")
    space = space_of(editor, pocket, ["clamp", "layers"])
    for settings in islice(space.candidates(0), 40):
        assert not settings.keys() & {"clamp", "layers"}


@pytest.mark.parametrize(
    ("name", "searched"),
    [("ultraedit", {"lr", "whiten", "ridge", "layers"}),
     ("lora", {"lr", "rank", "alpha", "steps", "layers"}),
     ("grace", {"radius", "lr", "steps", "layer"}),
     ("wise", {"lr", "limit", "act_ratio", "steps", "layer"}),
     ("memoir", {"tau", "share", "lr", "steps", "layer"}),
     ("unke", {"block_lr", "block_steps", "clamp", "keep_texts", "layer"}),
     ("t_patcher", {"memory_weight", "fires_at", "lr", "steps", "layer"}),
     ("lemoe", {"rank", "lr", "steps", "layer"}),
     ("rag", {"threshold", "form", "keys", "confirm"})],
)  # fmt: skip
def test_what_is_searched_of_editors_that_train(pocket: LM, name: str, searched: set[str]) -> None:
    editor = get_editor(name, model="pocket")
    space = space_of(editor, pocket)
    assert {key for _, options in space.dimensions for o in options for key in o} == searched
    for settings in islice(space.candidates(0), 30):
        get_editor(name, settings, model="pocket")  # every one can be built


def test_editors_without_a_space_are_refused_by_name(pocket: LM) -> None:
    for name in ("ike", "none", "serac", "mend"):
        if name not in editors:
            continue
        with pytest.raises(ConfigError, match=f"no search is made for the settings of {name}") as e:
            space_of(get_editor(name, model="pocket"), pocket)
        assert "memit" in str(e.value.hint)
    names = [key for _, options in _family() for option in options for key in option]
    fixed = [*names, "layers"]
    with pytest.raises(ConfigError, match="every setting of memit"):
        space_of(get_editor("memit", model="pocket"), pocket, fixed)


def _family() -> tuple:
    from errata.searching.spaces import LOCATED

    return LOCATED
