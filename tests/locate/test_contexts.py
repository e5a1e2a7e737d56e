from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.locate.samples import EDITS

from errata.case import Edit
from errata.errors import ConfigError, EditError
from errata.locate import contexts as contexts_module
from errata.locate.contexts import (
    RECIPES,
    Contexts,
    ContextSettings,
    clean,
    get_contexts,
    given_contexts,
    sample_prefixes,
)
from errata.locate.keys import edit_keys, read
from errata.model.lm import LM
from errata.model.tokens import Row

EXACT = 1e-12
CONTEXTS = given_contexts(["{}", "I think so. {}", "He said that it was late. {}"])


def test_templates_are_given_with_the_bare_prompt_first() -> None:
    assert given_contexts(["I think so. {}", "{}"]).prefixes == ("", "I think so. ")
    assert given_contexts([]).prefixes == ("",)


@pytest.mark.parametrize("template", ["no place", "{} after", "{} and {}"])
def test_a_malformed_template_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="does not end"):
        given_contexts([template])


def test_weights_of_both_means() -> None:
    assert CONTEXTS.weights("flat").tolist() == pytest.approx([1 / 3] * 3)
    assert CONTEXTS.weights("two_level").tolist() == [0.5, 0.25, 0.25]
    assert Contexts(("",)).weights("two_level").tolist() == [1.0]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_recipes_give_the_published_number(tiny: Callable[..., LM], recipe: str) -> None:
    expected = {"rome": 21, "easyedit": 21, "uniedit": 11, "wise": 11, "memit": 6, "bare": 1}[
        recipe
    ]
    found = get_contexts(tiny("gpt2"), ContextSettings(contexts=recipe))
    assert found.prefixes[0] == ""
    # a text that cleans to nothing is left out, which a random model may well produce
    assert expected - 2 <= len(found) <= expected
    assert all(p.endswith(". ") and "{" not in p for p in found.prefixes[1:])


def test_sampled_texts_have_the_published_length(tiny: Callable[..., LM]) -> None:
    lm = tiny("llama", "float32", True)
    rows = []
    original = lm.tokenizer.decode
    lm.tokenizer.decode = lambda ids, **kw: rows.append(list(ids)) or original(ids, **kw)
    try:
        sample_prefixes(lm, "rome", 0)
    finally:
        del lm.tokenizer.decode
    assert [len(row) for row in rows] == [5] * 10 + [10] * 10
    assert all(row[0] == lm.tokenizer.bos_token_id for row in rows)


def test_sampling_is_seeded_and_leaves_the_global_state_alone(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    before = torch.get_rng_state()
    one, again = sample_prefixes(lm, "memit", 0), sample_prefixes(lm, "memit", 0)
    other = sample_prefixes(lm, "memit", 1)
    assert one == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_contexts_are_sampled_once_per_model_and_seed(
    tiny: Callable[..., LM], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = contexts_module.sample_prefixes
    monkeypatch.setattr(
        contexts_module, "sample_prefixes", lambda *args: calls.append(args) or original(*args)
    )
    settings = ContextSettings(contexts="memit")
    first = get_contexts(tiny("gpt2"), settings)
    assert get_contexts(tiny("gpt2"), settings) == first
    assert len(calls) == 1
    get_contexts(tiny("gpt2"), settings.model_copy(update={"seed": 1}))
    get_contexts(tiny("gptj"), settings)
    assert len(calls) == 3
    for path in cache_folder.rglob("*.json"):
        path.write_text(path.read_text()[:-20])
    assert get_contexts(tiny("gpt2"), settings) == first
    assert len(calls) == 4


def test_an_unknown_recipe_is_refused(tiny: Callable[..., LM]) -> None:
    with pytest.raises(ConfigError, match="unknown recipe"):
        get_contexts(tiny("gpt2"), ContextSettings(contexts="rom"))


def test_cleaning() -> None:
    assert clean(" a\n\nb {c} ﬁ ") == "a b  c  fi"


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon"])
@pytest.mark.parametrize("mean", ["flat", "two_level"])
def test_keys_are_means_over_contexts(tiny: Callable[..., LM], name: str, mean: str) -> None:
    lm = tiny(name)
    found = edit_keys(lm, EDITS, CONTEXTS, [0, 2], mean=mean, hidden=True)  # type: ignore[arg-type]
    weights = CONTEXTS.weights(mean)  # type: ignore[arg-type]
    for layer in (0, 2):
        site = lm.site(layer)
        for e, edit in enumerate(EDITS):
            keys, values = [], []
            for prefix in CONTEXTS.prefixes:
                row = lm.row(edit.prompt, None, edit.subject, prefix=prefix)
                seen = {}
                module = lm.module(site.path)
                handle = module.register_forward_hook(
                    lambda m, a, out, seen=seen: seen.update(k=a[0].clone(), v=out.clone())
                )
                lm.run(lm.batch([row], [0]))  # the whole row, not only up to the subject
                handle.remove()
                keys.append(seen["k"][0, row.subject_last])
                values.append(seen["v"][0, row.subject_last])
            for got, want in (
                (found[layer].mean_key[e], torch.einsum("c,cx->x", weights, torch.stack(keys))),
                (
                    found[layer].mean_value[e],
                    sum(w * v for w, v in zip(weights, values, strict=True)),
                ),
                (found[layer].key[e], keys[0]),
                (found[layer].value[e], values[0]),
            ):
                torch.testing.assert_close(got, want, rtol=1e-9, atol=EXACT)


def test_reading_keeps_the_order_of_rows(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    rows = [Row(tuple(range(2, 2 + n)), (n - 1,), (), n) for n in (7, 2, 5, 3, 6)]
    at = [6, 0, 4, 2, 1]
    whole = read(lm, rows, at, [1], hidden=True)[1]
    monkeypatch.setattr(lm, "max_tokens", 7)
    for i, row in enumerate(rows):
        alone = read(lm, [row], [at[i]], [1], hidden=True)[1]
        for a, b in (
            (whole.keys, alone.keys),
            (whole.values, alone.values),
            (whole.hidden, alone.hidden),
        ):
            torch.testing.assert_close(a[i], b[0], rtol=EXACT, atol=EXACT)
    small = read(lm, rows, at, [1])[1]
    torch.testing.assert_close(small.keys, whole.keys, rtol=EXACT, atol=EXACT)
    assert small.hidden is None


def test_a_subject_in_the_context_is_not_taken_for_the_one_in_the_prompt(
    tiny: Callable[..., LM],
) -> None:
    lm = tiny("gpt2")
    edit = Edit("The capital of France is", "Rome", subject="France")
    contexts = given_contexts(["France is large. {}"])
    keys = edit_keys(lm, [edit], contexts, [1])[1]
    row = lm.row("France is large. The capital of France is")
    at = lm.row(edit.prompt, None, "France", prefix="France is large. ").subject_last
    assert at > len(lm.row("France is large.").ids)
    other = read(lm, [row], [at], [1])[1]
    torch.testing.assert_close(
        2 * keys.mean_key[0] - keys.key[0], other.keys[0], rtol=1e-9, atol=EXACT
    )


def test_an_edit_whose_subject_is_missing_is_refused(tiny: Callable[..., LM]) -> None:
    with pytest.raises(EditError, match="does not occur"):
        edit_keys(tiny("gpt2"), [Edit("It is", "so", subject="France")], CONTEXTS, [0])
