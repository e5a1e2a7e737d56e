"""Fluency and consistency: entropies and vectors by hand, and the sampling they rest on."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from errata.case import Case, Edit
from errata.errors import ConfigError, DataError
from errata.evaluation import evaluate
from errata.evaluation.consistency import References, TfIdf
from errata.evaluation.fluency import entropy, fluency, prompts_of, sample, words
from errata.model.tokens import patched
from errata.patch.stack import Stack
from tests.evaluation.stubs import Planted

EXACT = 1e-12
"""Relative tolerance of sums of a few float64 products."""


class TestEntropy:
    def test_a_constant_text_has_none(self):
        assert entropy(["so"] * 20, 2) == 0.0
        assert fluency("so " * 20) == 0.0

    @pytest.mark.parametrize("text", ["", "one", " \n"])
    def test_a_text_without_n_grams_has_none(self, text):
        assert fluency(text) == 0.0

    def test_distinct_n_grams_have_the_logarithm_of_their_number(self):
        text = " ".join(f"word{i}" for i in range(33))
        assert entropy(words(text), 2) == pytest.approx(5.0, rel=EXACT)  # 32 bigrams
        assert entropy(words(text), 3) == pytest.approx(math.log2(31), rel=EXACT)
        expected = (2 / 3 * 5.0 + 4 / 3 * math.log2(31)) / 2
        assert fluency(text) == pytest.approx(expected, rel=EXACT)

    def test_frequencies_weigh(self):
        # a b a b a c: bigrams ab 2, ba 2, ac 1; trigrams aba 2, bab 1, bac 1
        tokens = "a b a b a c".split()
        two = -2 * 0.4 * math.log2(0.4) - 0.2 * math.log2(0.2)
        assert entropy(tokens, 2) == pytest.approx(two, rel=EXACT)
        assert entropy(tokens, 3) == pytest.approx(1.5, rel=EXACT)

    def test_words(self):
        text = "Anna's well-known “town” (3.5 km, 1,000 people) isn't far; it'll do..."
        assert words(text) == [
            "Anna", "'s", "well-known", "“", "town", "”", "(", "3.5", "km", ",", "1,000",
            "people", ")", "is", "n't", "far", ";", "it", "'ll", "do", ".", ".", ".",
        ]  # fmt: skip

    def test_plain_sentences_split_as_nltk_does(self):
        nltk = pytest.importorskip("nltk.tokenize.destructive")
        text = "The town isn't far, and Anna's well-known house (hill 3) costs 1,000, we'll see."
        assert words(text) == nltk.NLTKWordTokenizer().tokenize(text)


class TestTfIdf:
    DOCUMENTS = ("the red house", "the red red boat", "a boat")

    def test_by_hand(self):
        own = TfIdf(self.DOCUMENTS)
        # n = 3; "a" has one letter and is no term
        one, two = math.log(4 / 2) + 1, math.log(4 / 3) + 1
        assert own.idf == {"the": two, "red": two, "house": one, "boat": two}
        assert own.vector("Red, red house! unknown") == {"red": 2 * two, "house": one}
        # cos((red 2b, house a), (red b, boat b))
        expected = 2 * two**2 / (math.hypot(2 * two, one) * math.hypot(two, two))
        assert own.cosine("red red house", "red boat") == pytest.approx(expected, rel=EXACT)

    def test_bounds(self):
        own = TfIdf(self.DOCUMENTS)
        assert own.cosine("red house", "RED house house"[:9]) == pytest.approx(1.0, rel=EXACT)
        assert own.cosine("house", "boat") == 0.0
        assert own.cosine("unknown", "boat") == 0.0
        assert TfIdf([]).cosine("a", "b") == 0.0

    def test_the_same_as_scikit_learn(self):
        text = pytest.importorskip("sklearn.feature_extraction.text")
        vectors = text.TfidfVectorizer().fit(self.DOCUMENTS)
        pair = ("The red, red boat of a house", "house boat, red house")
        left, right = vectors.transform(pair).toarray()  # rows have norm 1
        assert TfIdf(self.DOCUMENTS).cosine(*pair) == pytest.approx(left @ right, rel=EXACT)


class TestReferences:
    CASE = Case(
        "one",
        (Edit("Anna lives in", "Rome", "Anna"),),
        meta={"relation_id": "P1", "target_new.id": "Q2", "relation": "P551",
              "attribute_prompts": ("Paris lives in", "The mayor lives in")},
    )  # fmt: skip

    def test_attribute_prompts_are_completed(self):
        found = References([self.CASE])
        assert found.texts["one"] == ("Paris lives in Rome.", "The mayor lives in Rome.")
        assert found.consistency("one", ["Paris lives in Rome. The mayor lives in Rome."]) == (
            pytest.approx(1.0, rel=EXACT)
        )

    def test_snippets(self, tmp_path):
        path = tmp_path / "snippets.json"
        entry = {"relation_id": "P1", "target_id": "Q2", "samples": [{"text": "Rome has hills"}]}
        path.write_text(json.dumps([entry]))
        other = replace(self.CASE, id="two", meta={})
        found = References([self.CASE, other], path)
        assert found.texts == {"one": ("Rome has hills",), "two": ()}
        assert found.consistency("one", ["hills"]) == pytest.approx(1 / math.sqrt(3), rel=EXACT)
        assert found.consistency("two", ["hills"]) is None

    @pytest.mark.parametrize("text", [None, "{", '[{"relation_id": "P1"}]', "7"])
    def test_a_broken_file(self, tmp_path, text):
        path = tmp_path / "snippets.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataError, match="reference texts"):
            References([self.CASE], path)

    def test_the_world_has_sentences_about_other_subjects(self):
        from errata.data import load_cases

        cases = load_cases("world", limit=20, seed=0).cases
        found = References(cases, world=True)
        assert sum(bool(texts) for texts in found.texts.values()) > 15
        for case in cases:
            for text in found.texts[case.id]:
                assert text.endswith(f"{case.edits[0].target}.")


class TestSampling:
    PROMPTS = ("Anna lives in", "The mayor", "Danielle works for", "The city of Paris is")

    def test_whole_texts_of_the_asked_length(self, lm):
        texts = sample(lm, self.PROMPTS, list("abcd"), length=30)
        for prompt, text in zip(self.PROMPTS, texts, strict=True):
            assert text.startswith(prompt)
            assert len(lm.row(text).ids) >= 20  # neighbouring pieces may be tokenised as one

    def test_texts_do_not_depend_on_their_company(self, lm, llama_lm):
        for model in (lm, llama_lm):
            together = sample(model, self.PROMPTS, list("abcd"), length=30)
            alone = [
                sample(model, [prompt], [seed], length=30)[0]
                for prompt, seed in zip(self.PROMPTS, "abcd", strict=True)
            ]
            assert together == alone
            assert together != sample(model, self.PROMPTS, list("efgh"), length=30)

    def test_cached_keys_change_nothing(self, lm, monkeypatch):
        cached = sample(lm, self.PROMPTS, list("abcd"), length=30)
        assert lm.prefix_cache_works
        monkeypatch.setitem(lm.__dict__, "prefix_cache_is_exact", False)
        assert not lm.prefix_cache_works
        assert sample(lm, self.PROMPTS, list("abcd"), length=30) == cached

    def test_one_candidate_is_greedy(self, lm):
        (text,) = sample(lm, self.PROMPTS[:1], ["a"], length=20, top_k=1)
        rest = lm.generate(self.PROMPTS[:1], 20 - len(lm.row(self.PROMPTS[0]).ids))
        assert text == self.PROMPTS[0] + rest[0]

    def test_frequencies_are_those_of_the_model(self, lm):
        """Of 4,000 draws of one token, the shares lie within five standard errors."""
        prompt, n = self.PROMPTS[0], 4000
        row = lm.row(prompt)
        texts = sample(lm, [prompt] * n, [str(i) for i in range(n)], length=len(row.ids) + 1)
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            values, tokens = lm.model(ids).logits[0, -1].softmax(-1).topk(5)
        expected: Counter[str] = Counter()  # several tokens may be the same text: none, for one
        for value, token in zip((values / values.sum()).tolist(), tokens.tolist(), strict=True):
            expected[lm.text([*row.ids, token])] += value
        for text, value in expected.items():
            share = texts.count(text) / n
            assert abs(share - value) < 5 * math.sqrt(value * (1 - value) / n)

    def test_under_patches(self, lm):
        patch = Planted(5.0).edit_one(lm, [Edit("Anna lives in", "Rome")])
        with patch.applied(lm):
            inside = sample(lm, self.PROMPTS, list("abcd"), length=25)
        stack = Stack(lm, [patch])
        with stack:
            rows = patched(lm.rows(self.PROMPTS), [0, -1, 0, -1])
            routed = sample(lm, rows, list("abcd"), length=25)
        base = sample(lm, self.PROMPTS, list("abcd"), length=25)
        assert routed == [inside[0], base[1], inside[2], base[3]]
        assert inside != base

    def test_a_prompt_that_fills_the_context_is_returned(self, lm):
        prompt = "river " * 40
        assert sample(lm, [prompt.strip()], ["a"], length=10) == [
            lm.text(lm.row(prompt.strip()).ids)
        ]


def test_in_an_evaluation(lm, flat):
    cases = [
        replace(
            case, meta={**case.meta, "generation_prompts": (f"{case.edits[0].subject} is",) * 2}
        )
        for case in flat
    ]
    assert prompts_of(cases[0]) == ("Anna is", "Anna is")
    assert prompts_of(flat[0]) == (flat[0].edits[0].prompt,)
    result = evaluate(lm, Planted(), cases, fluency=3, regime="batch:4", seed=2)
    done = [record for record in result.records if "sampled" in record]
    assert [record["id"] for record in done] == ["case-0", "case-3", "case-6"]
    for record in done:
        assert len(set(record["sampled"]["texts"])) == 2  # equal prompts, own draws
        scores = [fluency(text) for text in record["sampled"]["texts"]]
        assert record["sampled"]["fluency"] == pytest.approx(sum(scores) / 2)
        assert record["sampled"]["consistency"] is None
    expected = sum(record["sampled"]["fluency"] for record in done) / 3
    assert result.summary["fluency"] == pytest.approx(expected)
    assert result.summary["consistency"] is None
    assert result.summary["ci95"]["fluency"][0] <= expected
    assert evaluate(lm, Planted(), cases[:2]).summary["fluency"] is None
    with pytest.raises(ConfigError, match="'fluency' is -1"):
        evaluate(lm, Planted(), cases, fluency=-1)
    with pytest.raises(DataError, match="no such file"):
        evaluate(lm, Planted(), cases, fluency=1, references="missing.json")
