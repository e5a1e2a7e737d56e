"""Weights that somebody writes to after errata has read them: nothing of the old ones is used."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.tiny_models import gpt2, llama, tiny_tokenizer

from errata.case import Edit
from errata.editors import get_editor
from errata.errors import PatchError
from errata.model.lm import LM
from errata.patch import LowRank, Patch
from errata.patch.stack import Stack

EDIT = Edit("The mother tongue of Danielle is", "English", "Danielle")
SETTINGS = {"layer": 1, "steps": 3}


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return {"gpt2": gpt2, "llama": llama}[request.param]().double()


def lm_of(model) -> LM:
    return LM(model, tiny_tokenizer(), name="tiny")


def some_patch(lm: LM) -> Patch:
    site = lm.site(1)
    B, A = torch.full((site.d_out, 1), 0.3), torch.full((1, site.d_in), 0.2)
    return Patch.for_model(lm, [LowRank(site.path, B, A)], editor="by hand")


def by_hand(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)


def by_an_optimiser(model) -> None:
    model.requires_grad_(True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(6)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    model.requires_grad_(False)


def by_a_state(model) -> None:
    model.load_state_dict({name: 1.5 * value for name, value in model.state_dict().items()})


def by_another_parameter(model) -> None:
    norm = next(m for m in model.modules() if "Norm" in type(m).__name__)
    norm.weight = torch.nn.Parameter(2 * norm.weight.detach(), requires_grad=False)


WAYS = [by_hand, by_an_optimiser, by_a_state, by_another_parameter]


@pytest.mark.parametrize("write", WAYS)
def test_fingerprints_are_those_of_the_weights_as_they_are(model, write, caplog):
    lm = lm_of(model)
    old = lm.fingerprint
    assert lm.fingerprint == old
    write(model)
    with caplog.at_level(logging.WARNING):
        new = lm.fingerprint
    assert new != old
    assert new == lm_of(model).fingerprint
    assert sum("wrote to the weights of tiny" in record.message for record in caplog.records) == 1


def test_an_edit_is_that_of_a_model_that_was_loaded_so(model):
    lm, editor = lm_of(model), get_editor("rome", SETTINGS)
    first = editor.edit_one(lm, [EDIT])  # moments, contexts and their keys are kept now
    by_hand(model)
    again = editor.edit_one(lm, [EDIT])
    fresh = get_editor("rome", SETTINGS).edit_one(lm_of(model), [EDIT])
    assert again.meta["fingerprint"] == fresh.meta["fingerprint"] != first.meta["fingerprint"]
    for one, other in zip(again.changes, fresh.changes, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


@pytest.mark.parametrize("use", [lambda lm, patch: patch.applied(lm), lambda lm, p: Stack(lm, [p])])
def test_a_patch_of_the_old_weights_is_refused(model, use):
    lm = lm_of(model)
    patch = some_patch(lm)
    with use(lm, patch):
        pass
    by_hand(model)
    with pytest.raises(PatchError, match="weights"), use(lm, patch):
        pass


def test_what_patches_write_counts_as_nobodys(model, caplog):
    lm, other = lm_of(model), lm_of(model)
    kept = lm.once("kept", object)
    beside = other.once("kept", object)
    patch, fingerprint = some_patch(lm), lm.fingerprint
    with caplog.at_level(logging.WARNING):
        with patch.applied(lm), patch.applied(lm):
            assert lm.once("kept", object) is kept
            lm.check_finite()
        with pytest.raises(RuntimeError), patch.applied(lm):
            raise RuntimeError
        lm.check_finite()
        other.check_finite()
    assert lm.once("kept", object) is kept
    assert other.once("kept", object) is beside
    assert lm.fingerprint == fingerprint
    assert not [r for r in caplog.records if "wrote to" in r.message]


def test_what_an_editor_kept_goes_too(model):
    lm, owner = lm_of(model), lm_of(model)
    first, own = lm.once("a", object), lm.once("a", object, owner=owner)
    by_hand(model)
    lm.check_finite()
    assert lm.once("a", object) is not first
    assert lm.once("a", object, owner=owner) is not own


def test_a_write_during_a_patch_is_noticed_afterwards(model):
    lm = lm_of(model)
    first = lm.once("a", object)
    with some_patch(lm).applied(lm), torch.no_grad():
        lm.embedding.add_(1.0)
    lm.check_finite()
    assert lm.once("a", object) is not first
