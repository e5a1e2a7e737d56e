"""IKE: its wording, its demonstrations, the room there is, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.locate.samples import EDITS
from tests.tiny_models import tiny_tokenizer

import errata
from errata.case import Case, Edit, Probe
from errata.data import load_cases, save_cases
from errata.editors import editors, get_editor
from errata.editors.base import Editor
from errata.editors.ike import encoder
from errata.editors.ike.demos import FORMS, KINDS, demo_of, drawn, encode, read_cases
from errata.editors.ike.editor import Ike
from errata.errors import ConfigError, EditError, ModelError, PatchError
from errata.model.lm import LM
from errata.model.passes import capture
from errata.model.tokens import Row
from errata.patch import Context, LowRank, Patch
from errata.patch.export import to_lora
from errata.patch.stack import Stack
from errata.testing.measured import likelihood, low_rank

SAME = 1e-9
"""Float64: the same number by another way."""

FRANCE, ANNA = EDITS[:2]
TOLD = "The capital of France is Rome"

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def ike(make: Make, **settings: Any) -> Ike:
    editor = make("ike", **settings)
    assert isinstance(editor, Ike)
    return editor


def bare(make: Make, **settings: Any) -> Ike:
    return ike(make, demo_count=0, **settings)


def context(patch: Patch) -> Context:
    (found,) = [change for change in patch.changes if isinstance(change, Context)]
    return found


def text(lm: LM, editor: Ike, edits: Sequence[Edit], after: Patch | None = None) -> str:
    return context(editor.edit_one(lm, edits, after)).text


def behind(ids: Sequence[int], row: Row) -> Row:
    """The row as it stands behind a context, spelled out."""
    n = len(ids)
    moved = tuple(p + n for p in row.positions)
    return Row((*ids, *row.ids), moved, row.labels, n + row.prompt_length)


def records(tmp_path: Path, count: int, **more: Any) -> str:
    cases = [
        Case(
            str(i),
            (Edit(f"Town {i} lies in", f"Land {i}"),),
            (
                Probe(f"The country of town {i} is", f"Land {i}", "generality", "a", **more),
                Probe(f"Land {i} borders", f"Sea {i}", "locality", "b"),
            ),
        )
        for i in range(count)
    ]
    save_cases(path := tmp_path / f"{count}.jsonl", cases)
    return str(path)


# ---------------------------------------------------------------------- wording


def test_the_edits_are_stated_as_published(tiny: Tiny, make: Make) -> None:
    lm, both = tiny("gpt2"), [FRANCE, ANNA]
    assert text(lm, bare(make), both) == (
        "<New Facts>:\nThe capital of France is Rome\nAnna lives in Paris\n<Query Answer>:\n"
    )
    assert text(lm, bare(make, form="easyedit"), [FRANCE]) == f"New Fact: {TOLD}\nPrompt: "
    assert text(lm, bare(make, form="bare"), both) == f"{TOLD}\nAnna lives in Paris\n"


def test_a_space_of_the_tokenizers_own_is_not_doubled() -> None:
    lm = errata.load("pocket")
    editor = get_editor("ike", {"form": "easyedit", "demo_count": 0})
    found = context(editor.edit_one(lm, [FRANCE]))
    assert found.text == f"New Fact: {TOLD}\nPrompt:"
    joint = lm.tokenizer(f"{found.text} It is")["input_ids"]
    assert found.ids.tolist() + list(lm.row("It is").ids) == joint


def test_demonstrations_come_first(tiny: Tiny, make: Make, demos_file: str) -> None:
    lm = tiny("gpt2")
    editor = ike(make, demo_count=3, demo_tokens=None, reserve=1)
    said = text(lm, editor, [FRANCE])
    assert said.endswith(f"\n\n<New Facts>:\n{TOLD}\n<Query Answer>:\n")
    shown = said.split("\n\n")[:-1]
    assert len(shown) == 3
    for block in shown:
        assert block.startswith("<New Facts>:\n")
        assert "\n<Query Answer>:\n" in block
    assert editor.made_of(lm) == ike(make, demo_count=3).made_of(lm)
    assert editor.made_of(lm) != ike(make, demo_count=3, seed=2).made_of(lm)
    assert said == text(lm, ike(make, demo_count=3, demo_tokens=None, reserve=1), [FRANCE])


# ---------------------------------------------------------------------- demonstrations


def test_the_three_kinds_take_turns(tiny: Tiny, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    hop = Edit("Land borders", "Sea")
    cases = load_cases(records(tmp_path, 12, hops=(hop,))).cases
    demos = drawn(lm, cases, 5)
    kinds = []
    for case, demo in zip(cases, demos, strict=True):
        edit, (gen, loc) = case.edits[0], case.probes
        fact = f"{edit.prompt} {edit.target}"
        kind = KINDS[[edit.prompt, gen.prompt, loc.prompt].index(demo.prompt)]
        kinds.append(kind)
        assert demo.facts == ((fact, "Land borders Sea") if kind == "generalise" else (fact,))
        if kind == "locality":  # the model's own words, as many tokens as the data set's answer
            row = lm.row(loc.prompt, loc.target)
            ids = list(lm.row(loc.prompt).ids)
            for _ in row.labels:
                ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert demo.answer == lm.text(ids[-len(row.labels) :])
        else:
            assert demo.answer == edit.target
    triples = [tuple(kinds[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(triple) == sorted(KINDS) for triple in triples)
    assert len(set(triples)) > 1
    assert drawn(lm, cases, 5) == demos != drawn(lm, cases, 6)


def test_a_case_without_questions_is_copied(tiny: Tiny) -> None:
    case = Case("x", (FRANCE,))
    assert {demo_of(case, kind).prompt for kind in KINDS} == {FRANCE.prompt}
    assert [demo.answer for demo in drawn(tiny("gpt2"), [case] * 3, 0)] == [FRANCE.target] * 3


def test_the_last_demonstration_reaches_the_limit(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm, source = tiny("gpt2"), records(tmp_path, 8)

    def blocks(**settings: Any) -> list[str]:
        editor = ike(make, demos=source, reserve=1, form="bare", **settings)
        return text(lm, editor, [FRANCE]).split("\n\n")[:-1]

    every = blocks(demo_count=4, demo_tokens=None)
    assert len(every) == 4
    sizes = [len(lm.row(block + "\n\n").ids) for block in every]
    assert blocks(demo_count=4, demo_tokens=sizes[0]) == every[:1]
    assert blocks(demo_count=4, demo_tokens=sizes[0] + 1) == every[:2]
    assert blocks(demo_count=4, demo_tokens=0) == []


def test_where_demonstrations_come_from(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(spec: str, split: str | None, limit: int | None, seed: int) -> Any:
        asked.append((spec, split, limit, seed))
        return Case

    monkeypatch.setattr("errata.data.load_cases", load)
    monkeypatch.setattr(Case, "cases", (), raising=False)
    lm = tiny("gpt2")
    pocket = LM(lm.model, lm.tokenizer, name="pocket")
    read_cases(lm, "auto", 5, 1)
    read_cases(pocket, "auto", None, 2)
    read_cases(lm, "counterfact:x.json", 5, 1)
    read_cases(lm, "my.jsonl", 5, 1)
    assert asked == [
        ("uniedit", "train", 5, 1),
        ("world", "train", None, 2),
        ("counterfact:x.json", "train", 5, 1),
        ("my.jsonl", None, 5, 1),
    ]


def test_an_unknown_data_set_is_refused(tiny: Tiny, make: Make) -> None:
    with pytest.raises(ConfigError, match="unknown data set"):
        ike(make, demos="counterfacts").edit_one(tiny("gpt2"), [FRANCE])
    assert ike(make, demos="counterfacts", demo_count=0).edit_one(tiny("gpt2"), [FRANCE])


# ---------------------------------------------------------------------- retrieval


def alike(a: Sequence[float], b: Sequence[float]) -> float:
    one, two = torch.tensor(a), torch.tensor(b)
    return float(one @ two / one.norm() / two.norm())


def test_the_nearest_are_retrieved(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm, source = tiny("gpt2"), records(tmp_path, 5)
    settings = {"demos": source, "retrieve": "knn", "encoder": "own", "form": "easyedit"}
    editor = ike(make, **settings, demo_count=4, demo_tokens=None, reserve=1)

    def mean(words: str) -> list[float]:
        row = lm.row(words)
        (hidden,), _ = capture(lm, lm.batch([row], [0]), [lm.module(lm.spec.head)])
        return hidden[0].mean(0).tolist()

    blocks = {
        FORMS["easyedit"].show(demo_of(c, k)) for c in load_cases(source).cases for k in KINDS
    }
    assert len(blocks) == 15
    edits = [FRANCE, ANNA]
    queries = [mean(f"New Fact: {e.prompt} {e.target}\nPrompt: {e.prompt}\n\n") for e in edits]
    best = sorted(blocks, key=lambda b: -max(alike(mean(b), query) for query in queries))
    assert text(lm, editor, edits).startswith("".join(best[:4]) + f"New Fact: {TOLD}\nNew Fact: A")
    # the answer is the same whether the edits came together or in turn
    first = editor.edit_one(lm, edits[:1])
    assert text(lm, editor, edits[1:], first) == text(lm, editor, edits)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> str:
    folder = tmp_path / "encoder"
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=256,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(config).eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_an_encoder_of_its_own(
    tiny: Tiny, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "AT_ONCE", 2)  # so that padding differs
    words = ["Rome", "The capital of France is Rome.", "Anna", "Who is the mayor of Berlin?"]
    network = transformers.AutoModel.from_pretrained(encoder_folder)
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        alone = [network(torch.tensor([tokenizer(w)["input_ids"]]))[0][0].mean(0) for w in words]
    expected = torch.stack([vector / vector.norm() for vector in alone])
    found = encoder.get_encoder(tiny("gpt2"), encoder_folder)(words)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_missing_encoder_says_what_to_do(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    editor = ike(make, retrieve="knn", encoder=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        editor.edit_one(tiny("gpt2"), [FRANCE])
    assert "retrieve=random" in str(caught.value.hint)


# ---------------------------------------------------------------------- at work


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_questions_are_answered_behind_the_context(tiny: Tiny, make: Make, kind: str) -> None:
    lm = tiny(kind)
    patches = ike(make, demo_count=2).edit(lm, [EDITS[:1], EDITS[1:3]])
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    for patch in patches:
        ids = context(patch).ids.tolist()
        expected = [score.logprobs for score in lm.score([behind(ids, row) for row in rows])]
        with patch.applied(lm):
            found = [score.logprobs for score in lm.score(rows)]
        for a, b in zip(found, expected, strict=True):
            assert a == pytest.approx(b, abs=SAME)
    with Stack(lm, patches) as stack:
        owners = [0, 1, -1, 1]
        stacked = lm.score(rows, stack=stack, groups=owners)
    for row, owner, score in zip(rows, owners, stacked, strict=True):
        ids = context(patches[owner]).ids.tolist() if owner >= 0 else []
        (alone,) = lm.score([behind(ids, row)])
        assert score.logprobs == pytest.approx(alone.logprobs, abs=SAME)


def test_texts_go_on_behind_the_context(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    patch = bare(make).edit_one(lm, [FRANCE])
    ids = [*context(patch).ids.tolist(), *lm.row(FRANCE.prompt).ids]
    start = len(ids)
    while len(ids) < start + 6:
        ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    with patch.applied(lm):
        assert lm.generate([FRANCE.prompt], 6) == [lm.text(ids[start:])]


def test_no_edit_runs_the_model(tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, editor = tiny("gpt2"), ike(make)
    editor.prepare(lm)
    monkeypatch.setattr(LM, "run", lambda *a, **k: pytest.fail("a forward pass"))
    editor.edit(lm, [EDITS[:1], EDITS[1:]])


# ---------------------------------------------------------------------- one after another


def test_a_sequence_states_all_its_facts(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm, editor = tiny("gpt2"), ike(make, demo_count=1)
    patch = editor.edit_one(lm, [FRANCE], low_rank(lm))
    patch = Patch.load(patch.save(tmp_path / "patch"))
    patch = editor.edit_one(lm, [ANNA], patch)
    assert context(patch).text == text(lm, editor, [FRANCE, ANNA])
    assert [type(change) for change in patch.changes] == [LowRank, Context]
    assert patch.edits == (EDITS[0], FRANCE, ANNA)
    # told again: the later answer, once
    again = editor.edit_one(lm, [replace(FRANCE, target="Oslo")], patch)
    assert context(again).text.count("The capital of France is") == 1
    assert "Anna lives in Paris\nThe capital of France is Oslo\n" in context(again).text


def test_other_contexts_stay_in_front(tiny: Tiny, make: Make) -> None:
    lm, editor = tiny("gpt2"), bare(make)
    ids = lm.row("Once upon a time").ids
    hand = Patch.for_model(lm, [Context(torch.tensor(ids), "Once upon a time")], editor="hand")
    first = editor.edit_one(lm, [FRANCE], hand)
    second = editor.edit_one(lm, [ANNA], first)
    assert second.changes[0] is hand.changes[0]
    assert len(second.changes) == 2
    own = second.changes[1]
    assert isinstance(own, Context)
    assert own.text == text(lm, editor, [FRANCE, ANNA])
    # and they take room
    room = len(own.ids)
    tight = bare(make, reserve=256 - room - len(ids))
    assert len(tight.edit_one(lm, [ANNA], first).changes) == 2
    with pytest.raises(EditError, match="room"):
        bare(make, reserve=257 - room - len(ids)).edit_one(lm, [ANNA], first)


def test_patches_of_other_versions_are_refused(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm, editor = tiny("gpt2"), bare(make)
    patch = editor.edit_one(lm, [FRANCE])
    folder = patch.save(tmp_path / "patch")
    document = json.loads((folder / "patch.json").read_text(encoding="utf-8"))
    document["state"]["ike"]["version"] = 99
    (folder / "patch.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(PatchError, match=r"another version of IKE \(99; this is 1\)"):
        editor.edit_one(lm, [ANNA], Patch.load(folder))
    with pytest.raises(PatchError, match="context is gone"):
        editor.edit_one(lm, [ANNA], replace(patch, changes=()))


@pytest.mark.parametrize("name", [e.name for e in editors.entries.values() if e.is_own])
def test_every_editor_edits_behind_a_context(name: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    after = bare(make).edit_one(lm, [Edit("Max lives in", "Bern")])
    (patch,) = make(name).edit(lm, [[FRANCE]], after=after)
    with after.applied(lm):
        before = likelihood(lm, [FRANCE])
    with patch.applied(lm):
        now = likelihood(lm, [FRANCE])
    if name == "ike":  # a random model does not read
        assert "Max lives in Bern\nThe capital of France" in context(patch).text
    else:
        assert patch.changes[0] is after.changes[0]
        if name in ("rag", "erase"):  # nor does it here; and what erase takes was never known
            assert now != before
        else:
            assert now == before if name == "none" else now > before


# ---------------------------------------------------------------------- room


def test_demonstrations_give_way_to_facts(
    tiny: Tiny, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    own = {"demos": records(tmp_path, 8), "form": "bare", "demo_tokens": None}
    editor = ike(make, **own)
    every = list(editor.demos(lm).blocks)
    assert len(every) == 8
    counts = []
    for reserve in range(20, 220, 20):
        tight = ike(make, **own, reserve=reserve)
        monkeypatch.setattr(tight, "demos", editor.demos)  # made once
        found = context(tight.edit_one(lm, [FRANCE]))
        *shown, told = found.text.split("\n\n")
        counts.append(len(shown))
        assert told == f"{TOLD}\n"
        assert [block + "\n\n" for block in shown] == every[: len(shown)]
        assert len(found.ids) <= 256 - reserve
        more = "".join(every[: len(shown) + 1]) + told
        assert len(shown) == 8 or len(encode(lm, more)) > 256 - reserve
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 2


def test_too_many_facts_are_refused_by_name(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    size = len(lm.row(f"{TOLD}\nAnna lives in Paris\n").ids)
    editor = bare(make, form="bare", reserve=256 - size)
    first = editor.edit_one(lm, [FRANCE])
    with pytest.raises(EditError, match=f"room for {size} tokens") as caught:
        editor.edit_one(lm, [ANNA, *EDITS[2:]], first)
    assert caught.value.edits == tuple(EDITS[2:])
    assert editor.edit_one(lm, [ANNA], first)
    tight = bare(make, form="bare", reserve=256 - size + 1)
    with pytest.raises(EditError) as caught:
        tight.edit_one(lm, [FRANCE, ANNA])
    assert caught.value.edits == (ANNA,)
    with pytest.raises(EditError, match="room for 0 tokens") as caught:
        bare(make, reserve=300).edit_one(lm, [FRANCE])
    assert caught.value.edits == (FRANCE,)


def test_the_oldest_facts_may_be_forgotten(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    size = len(lm.row(f"{TOLD}\nAnna lives in Paris\n").ids)
    editor = bare(make, form="bare", reserve=256 - size, overflow="forget")
    patch = editor.edit_one(lm, [FRANCE, ANNA])
    later = editor.edit_one(lm, [Edit("Anna is in", "Rome")], patch)
    assert context(later).text == "Anna lives in Paris\nAnna is in Rome\n"
    assert len(later.edits) == 3
    with pytest.raises(EditError, match="room"):  # nothing is older than what is asked for
        editor.edit_one(lm, EDITS, patch)


# ---------------------------------------------------------------------- refusals


def test_two_answers_to_one_prompt_are_refused(tiny: Tiny, make: Make) -> None:
    other = replace(FRANCE, target="Oslo")
    with pytest.raises(EditError, match="conflict") as caught:
        bare(make).edit_one(tiny("gpt2"), [FRANCE, ANNA, other])
    assert caught.value.edits == (other,)
    assert bare(make).edit_one(tiny("gpt2"), [FRANCE, FRANCE])


def test_a_context_is_no_weight(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    patch = bare(make).edit_one(lm, [FRANCE])
    with pytest.raises(PatchError, match="context"):
        to_lora(lm, patch, tmp_path / "lora")
    with pytest.raises(PatchError, match="context"):
        patch.scaled(2.0)
