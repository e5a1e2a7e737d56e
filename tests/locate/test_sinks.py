"""Keys at attention sinks: found by measurement, and kept out of what an edit is computed from."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tests.locate.samples import EDITS, build

from errata.case import Edit
from errata.editors import get_editor
from errata.inspection.advice import advice
from errata.locate.contexts import Contexts, ContextSettings, get_contexts
from errata.locate.keys import edit_keys, subject_rows
from errata.locate.sinks import FACTOR, TEXTS, behind_sinks, find_sinks
from errata.model.lm import LM
from errata.patch import Patch

BLOCK = 1
"""Where the sink is planted."""

AT_ZERO = Edit("Anna has her home in", "Rome", "Anna")
BEHIND = Edit("The capital of France is", "Rome", "France")


def planted(strength: float = 30.0) -> LM:
    """Return a tiny GPT-2 whose block 1 answers the first position with vast keys."""
    lm = build("gpt2")
    model = deepcopy(lm.model)
    block = model.transformer.h[BLOCK]
    seen: list[torch.Tensor] = []
    handle = block.ln_2.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        # one direction for the first position, whatever token stands there
        model.transformer.wpe.weight[0] = 30.0 * torch.randn(
            model.transformer.wpe.weight.shape[1],
            generator=torch.Generator().manual_seed(0),
            dtype=model.dtype,
        )
        model(torch.tensor([[5, 6, 7]]))
        handle.remove()
        direction = seen[0][0, 0] / seen[0][0, 0].norm()
        few = slice(0, 20)  # neurons that fire there and nowhere else
        block.mlp.c_fc.weight[:, few] += strength * direction[:, None]
        block.mlp.c_fc.bias[few] -= strength * 0.8 * seen[0][0, 0].norm()
    return LM(model, lm.tokenizer, name="planted")


@pytest.fixture(scope="module")
def sunk() -> LM:
    return planted()


def behind(lm: LM) -> Contexts:
    return behind_sinks(lm, get_contexts(lm, ContextSettings()), [2], ContextSettings())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_a_random_model_has_no_sink(name: str) -> None:
    lm = build(name)
    for layer in range(lm.n_layers):
        found = find_sinks(lm, layer)
        assert not found.positions
        assert max(found.ratios) < FACTOR / 2
    contexts = get_contexts(lm, ContextSettings())
    assert behind_sinks(lm, contexts, [lm.n_layers - 1], ContextSettings()) is contexts


def test_a_planted_sink_is_found_from_its_block_on(sunk: LM) -> None:
    assert not find_sinks(sunk, BLOCK - 1).positions
    for layer in range(BLOCK, sunk.n_layers):
        found = find_sinks(sunk, layer)
        assert found.positions == {0}
        assert found.block == BLOCK


def test_keys_are_those_behind_the_neutral_text(sunk: LM) -> None:
    contexts = behind(sunk)
    assert contexts.sinks == {0}
    assert contexts.neutral
    found = edit_keys(sunk, [AT_ZERO], contexts, [2])[2].key[0]
    # by hand: what the projection of block 2 is given at the subject, read with a plain hook
    ids = sunk.tokenizer(contexts.neutral + AT_ZERO.prompt)["input_ids"]
    subject = len(sunk.tokenizer(contexts.neutral + "Anna")["input_ids"]) - 1
    seen: list[torch.Tensor] = []
    handle = sunk.model.transformer.h[2].mlp.c_proj.register_forward_hook(
        lambda m, args, out: seen.append(args[0])
    )
    sunk.model(torch.tensor([ids]))
    handle.remove()
    torch.testing.assert_close(found, seen[0].view(len(ids), -1)[subject], atol=1e-12, rtol=0)


def test_only_subjects_at_the_sink_are_moved(sunk: LM) -> None:
    contexts, plain = behind(sunk), get_contexts(sunk, ContextSettings())
    assert subject_rows(sunk, [BEHIND], contexts) == subject_rows(sunk, [BEHIND], plain)
    moved, as_written = (subject_rows(sunk, [AT_ZERO], c) for c in (contexts, plain))
    assert as_written[0].subject_last == 0
    assert all(row.subject_last > 0 for row in moved)
    assert moved[1:] == as_written[1:]


@pytest.mark.parametrize(
    "name", ["rome", "r_rome", "p_rome", "memit", "pmet", "emmet", "alphaedit", "rome+rep"]
)
def test_every_editor_stays_off_the_sink(sunk: LM, tmp_path: Path, name: str) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join([*TEXTS, *(edit.prompt for edit in EDITS)]))
    layers = {"layer": BLOCK} if "rome" in name else {"layers": (BLOCK,)}
    quick = {"moments_text": str(texts), "moments_samples": 20, "steps": 3, "ridge": 1e-2}
    quick |= {"rep_steps": 2, "rep_words": 5} if "rep" in name else {}
    quick |= {"nullspace_threshold": 1e9} if name == "alphaedit" else {}
    editors = [
        get_editor(name, {**layers, **quick, "sink_prefix": prefix}) for prefix in ("auto", "off")
    ]
    there, elsewhere = ([e.edit_one(sunk, [edit]) for e in editors] for edit in (AT_ZERO, BEHIND))
    assert weights(elsewhere[0]) == weights(elsewhere[1])
    assert weights(there[0]) != weights(there[1])


def weights(patch: Patch) -> list[bytes]:
    return [
        tensor.numpy().tobytes() for change in patch.changes for tensor in change.tensors().values()
    ]


@pytest.mark.parametrize("name", ["rome", "memit", "rome+rep"])
def test_no_setting_is_advised_where_none_helps(sunk: LM, tmp_path: Path, name: str) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join([*TEXTS, *(edit.prompt for edit in EDITS)]))
    layers = {"layer": BLOCK} if "rome" in name else {"layers": (BLOCK,)}
    few = {"moments_text": str(texts), "moments_samples": 20, "ridge": 1e-2}
    editor = get_editor(name, {**layers, **few})
    missed = {"says_after": "London", "tokens": 1, "right": 0}
    reason, *others = advice(sunk, editor, AT_ZERO, missed, group=1)
    assert reason.startswith("no setting: 'Anna' begins the text, where planted hardly tells")
    assert others == ["another editor: --editor grace", "another editor: --editor ft"]
    usual = advice(sunk, editor, BEHIND, missed, group=1)
    assert any("--set steps=" in line for line in usual)
    assert not any("no setting" in line for line in usual)


def test_without_a_text_in_front_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sunk = planted()  # each edit is told of once per model
    contexts = behind_sinks(
        sunk, get_contexts(sunk, ContextSettings()), [2], ContextSettings(sink_prefix="off")
    )
    with caplog.at_level(logging.WARNING):
        subject_rows(sunk, [AT_ZERO, BEHIND], contexts)
        subject_rows(sunk, [AT_ZERO], contexts)
    (record,) = caplog.records
    assert "'Anna' stands at the beginning of 'Anna has her home in'" in record.message
    assert "attention sink" in record.message


def test_a_codebook_key_at_the_sink_is_warned_of(
    sunk: LM, caplog: pytest.LogCaptureFixture
) -> None:
    editor = get_editor("grace", {"layer": 2, "steps": 2})
    with caplog.at_level(logging.WARNING):
        editor.edit_one(sunk, [Edit("The capital of France is", "Rome")])
        assert not caplog.records
        editor.edit_one(sunk, [Edit("Anna", "Rome")])
    assert any("attention-sink keys" in record.message for record in caplog.records)
