"""A patch knows how its edits are asked, and is compared in that way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.case import Edit
from errata.errors import PatchError
from errata.model.lm import LM
from errata.patch import LowRank, Patch
from errata.patch.card import record_of
from errata.patch.compare import View
from errata.testing.models import tiny_lm, tiny_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/{{ m.role }}]{% endfor %}"
PLAIN = Edit("The capital of France is", "Rome", subject="France")
CHAT = replace(PLAIN, chat="user")
EDITS = (PLAIN, CHAT, replace(PLAIN, chat="system+user", system="Be brief.", joiner=""))


@pytest.fixture(scope="module")
def lm() -> LM:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE  # pyright: ignore[reportAttributeAccessIssue]
    return LM(tiny_lm("gpt2").model, tokenizer, name="tiny-gpt2")


@pytest.fixture(scope="module")
def patch(lm: LM) -> Patch:
    site = lm.site(1)
    torch.manual_seed(0)
    B, A = torch.randn(site.d_out, 1).double(), torch.randn(1, site.d_in).double()
    return replace(Patch.for_model(lm, [LowRank(site.path, B, A)], editor="t"), edits=EDITS)


def test_it_is_saved_and_read_back(patch: Patch, tmp_path: Path) -> None:
    patch.save(tmp_path / "p")
    assert Patch.load(tmp_path / "p").edits == EDITS
    document = json.loads((tmp_path / "p" / "patch.json").read_text())
    assert document["edits"][0].keys() == {"prompt", "target", "subject"}  # as ever
    assert document["edits"][1]["chat"] == "user"
    assert record_of(patch, "lora", "m", {})["edits"] == document["edits"]


def test_an_unknown_way_of_asking_is_refused(patch: Patch, tmp_path: Path) -> None:
    patch.save(tmp_path / "p")
    path = tmp_path / "p" / "patch.json"
    path.write_text(path.read_text().replace('"chat": "user"', '"chat": "telepathy"'))
    with pytest.raises(PatchError, match="not a readable patch: unknown chat 'telepathy'"):
        Patch.load(tmp_path / "p")


def _without(view: View) -> tuple[object, ...]:
    """Return what is said, without probabilities, whose last digits depend on the batch."""
    words = [[word for word, _ in top] for top in (view.before, view.after)]
    return (*words, view.says_before, view.says_after, view.hit_before, view.hit_after)


def test_edits_are_compared_as_they_are_asked(lm: LM, patch: Patch) -> None:
    views = patch.compare(lm, [*EDITS, PLAIN.prompt], new_tokens=3)
    rendered = "[user]The capital of France is[/user]"
    by_hand = patch.compare(
        lm, [PLAIN, replace(PLAIN, prompt=rendered, joiner=""), PLAIN.prompt], new_tokens=3
    )
    assert [view.chat for view in views] == ["off", "user", "system+user", "off"]
    for view, other in zip((*views[:2], views[3]), by_hand, strict=True):
        assert _without(view) == _without(other)
        if view.target is not None:
            assert view.p_before == pytest.approx(other.p_before, rel=1e-9)
            assert view.p_after == pytest.approx(other.p_after, rel=1e-9)
    (asked,) = patch.compare(lm, [PLAIN.prompt], ["Rome"], chat="user", new_tokens=3)
    assert (asked.chat, _without(asked)) == ("user", _without(views[1]))
    assert "chat" not in views[0].as_dict()
    assert views[1].as_dict()["chat"] == "user"
    assert lm.generate([PLAIN.prompt], 3, chat="user") == lm.generate([CHAT], 3)
    top, by_hand_top = lm.top([PLAIN.prompt], 3, chat="user"), lm.top([lm.row(rendered)], 3)
    assert [word for word, _ in top[0]] == [word for word, _ in by_hand_top[0]]


def test_people_see_it(patch: Patch) -> None:
    assert "(chat: user)" in patch._repr_html_()
