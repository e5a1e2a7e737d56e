"""ARE: windows of an answer, their places, keys and values, and the host where one window holds it.

The values themselves are compared with AnyEdit's loop in `tests/editors/test_unke.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.conftest import *  # noqa: F403 -- the fixtures that build small editors
from tests.editors.joint_samples import SETTINGS, Make, Tiny
from tests.editors.test_unke import plain_values
from tests.locate.samples import EDITS

from errata.case import Edit
from errata.editors import editors, get_editor
from errata.editors.base import Editor
from errata.errors import ConfigError, EditError, ModelError
from errata.locate.pieces import (
    Piece,
    answer_of,
    held_at,
    pieces_of,
    question_of,
    spans,
    whole,
    wholes,
)
from errata.model.passes import capture
from errata.patch.deltas import weight_deltas
from errata.tuning.places import with_end

SAME = 1e-9
LONG = Edit("The mayor of Rome says", "Anna lives in Oslo and works in the old town of Bern")
NAMED = Edit("The mayor of Rome says", LONG.target, subject="Rome")
HOSTS = ("alphaedit", "memit", "unke")


@pytest.fixture(autouse=True)
def _cache_of_its_own(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(cache_folder))


@pytest.fixture
def paired(make: Make, texts_file: str) -> Callable[..., Editor]:
    def build(name: str, **more: Any) -> Editor:
        host = name.partition("+")[0]
        own: dict[str, Any] = {"layers": (0, 1), **SETTINGS.get(host, {})}
        if host == "unke":
            own = {"keep_text": texts_file, "keep_texts": 2, "block_steps": 3}
        return make(name, **{**own, "lr": 0.2, "steps": 5, "stop_loss": 0.0, **more})

    return build


# ---------------------------------------------------------------------- windows


def test_windows_by_hand() -> None:
    assert spans(7, 50) == [(0, 7)]
    assert spans(6, 3) == [(0, 3), (3, 6)]
    assert spans(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert spans(8, 4, 1) == [(0, 4), (3, 7), (6, 8)]
    # as released, a fourth window would begin at 9 and say only what the third has said
    assert spans(10, 5, 2) == [(0, 5), (3, 8), (6, 10)]


@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (4, 4), (4, 5), (4, -1)])
def test_windows_that_do_not_get_on(window: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"windows of {window} tokens that share {overlap}"):
        spans(9, window, overlap)


@pytest.mark.parametrize(
    "settings",
    [{"are_window": 0}, {"are_window": 4, "are_overlap": 4}, {"are_overlap": -1}],
)
def test_settings_that_do_not_get_on(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="are_"):
        get_editor("memit+are", settings)


def test_places_and_labels_of_pieces(tiny: Tiny) -> None:
    """Prompt `p0 … pk`, answer `a0 … a9`: windows of five that share two."""
    lm = tiny("gpt2")
    row = lm.row_of(LONG)
    ids, P = (*row.ids, row.labels[-1]), row.prompt_length
    pieces = pieces_of(LONG, spans(10, 5, 2), ends=False, at_subject=False)
    for piece, (start, stop) in zip(pieces, [(0, 5), (3, 8), (6, 10)], strict=True):
        answer, question = answer_of(lm, piece), question_of(lm, piece)
        assert answer.ids == ids[: P + stop - 1]
        assert answer.labels == ids[P + start : P + stop]
        assert answer.positions == tuple(range(P - 1 + start, P - 1 + stop))
        assert question.ids == ids[: P + start]
        assert answer.subject_last == question.subject_last == P - 1 + start
    last = answer_of(lm, pieces[2])
    assert [held_at(pieces[2], last, k) for k in (0, 1)] == [P - 1, P + 2]
    assert wholes(pieces) == [LONG]
    assert whole(pieces[1]) == LONG


def test_the_first_piece_stands_at_the_subject_if_it_is_told_so(tiny: Tiny) -> None:
    lm = tiny("llama")
    subject = lm.row_of(NAMED, subject=True).subject_last
    one, two = pieces_of(NAMED, [(0, 4), (4, 9)], ends=False, at_subject=True)
    rows = [answer_of(lm, piece, subject=True) for piece in (one, two)]
    border = rows[0].prompt_length - 1
    assert [row.subject_last for row in rows] == [subject, border + 4]
    assert held_at(two, rows[1], 0) == subject < border


# ---------------------------------------------------------------------- the host where it can be


@pytest.mark.parametrize("host", HOSTS)
def test_an_answer_of_one_window_is_the_hosts(
    host: str, tiny: Tiny, paired: Callable[..., Editor]
) -> None:
    lm = tiny("gpt2")
    paired(host).prepare(lm)  # what is read from the cache may differ from what was made by a bit
    (one,), (two,) = (paired(n).edit(lm, [EDITS[:2]]) for n in (host, f"{host}+are"))
    assert one.edits == two.edits
    assert one.state.keys() == two.state.keys()
    a, b = weight_deltas(lm, one.changes), weight_deltas(lm, two.changes)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("host", ["memit", "alphaedit"])
def test_keys_and_residuals_are_those_of_the_whole_text(
    host: str, tiny: Tiny, paired: Callable[..., Editor], seen: list[tuple[str, Any]]
) -> None:
    """One block, the bare prompt: keys of the text that holds the answer, values of AnyEdit."""
    lm = tiny("llama")
    pair = paired(
        f"{host}+are", layers=(1,), contexts="bare", kl_factor=0.0, are_window=4, are_first="prompt"
    )
    (patch,) = pair.edit(lm, [[NAMED]])
    (write,) = [event for kind, event in seen if kind == "write"]
    row = with_end(lm, lm.row_of(NAMED))
    length, P = len(row.labels), row.prompt_length
    cuts = spans(length, 4)
    own = pair.config.model_copy()
    object.__setattr__(own, "stop", "eos")
    wanted = plain_values(lm, NAMED, 1, cuts, own)
    assert list(wanted) == [P - 1 + start for start, _ in cuts]
    block, site = lm.module(lm.spec.blocks[1]), lm.module(lm.site(1).path)
    (keys,), (hidden,) = capture(lm, lm.batch([row], [0]), [site], [block])
    for n, (place, value) in enumerate(wanted.items()):
        torch.testing.assert_close(write.keys[n], keys.reshape(len(row.ids), -1)[place])
        residual = value - hidden[0, place]
        torch.testing.assert_close(write.residual[n], residual, rtol=SAME, atol=SAME)
    assert patch.edits == (NAMED,)


def test_the_long_answer_is_likelier_than_with_the_host(
    tiny: Tiny, paired: Callable[..., Editor]
) -> None:
    lm = tiny("gpt2")
    gains = []
    for name in ("unke", "unke+are"):
        more = {"are_window": 4} if "are" in name else {}
        (patch,) = paired(name, block_steps=12, block_lr=3e-3, steps=10, **more).edit(lm, [[LONG]])
        with patch.applied(lm):
            gains.append(sum(lm.score([lm.row_of(LONG)])[0].logprobs))
    assert gains[1] > gains[0] + 1


# ---------------------------------------------------------------------- what it needs, what it says


def test_pairs_need_no_subject() -> None:
    assert editors.load("memit").needs == ("subject", "moments")
    assert editors.entry("memit+are").facts["needs"] == ("moments",)
    assert editors.load("memit+are").needs == ("moments",)


def test_subjects(tiny: Tiny, paired: Callable[..., Editor]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(EditError, match="are_first=subject needs to know the subject"):
        paired("memit+are", are_first="subject").edit(lm, [[LONG]])
    elsewhere = Edit(LONG.prompt, LONG.target, subject="Lima")
    with pytest.raises(EditError, match="'Lima' does not occur"):
        paired("memit+are", are_first="subject").edit(lm, [[elsewhere]])
    paired("memit+are").edit(lm, [[elsewhere]])  # as if none were known


def test_contradictions_name_edits_and_not_pieces(
    tiny: Tiny, paired: Callable[..., Editor]
) -> None:
    other = Edit(LONG.prompt, "Otto lives in Lima and works in the old town of Bern")
    with pytest.raises(EditError) as caught:
        paired("memit+are", are_window=4).edit(tiny("gpt2"), [[LONG, other]])
    assert caught.value.edits == (other,)
    assert not any(isinstance(edit, Piece) for edit in caught.value.edits)


def test_a_text_beyond_the_context_is_refused_by_name(
    tiny: Tiny, paired: Callable[..., Editor]
) -> None:
    text = Edit("The mayor of Rome says", "Anna lives in Oslo. " * 200)
    for host in HOSTS:
        with pytest.raises(ModelError, match=r"The mayor of Rome says.*the model's context holds"):
            paired(f"{host}+are").edit(tiny("gpt2"), [[LONG], [text]])
