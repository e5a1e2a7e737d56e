"""What is measured along a sequence: drift, perplexity, general ability, recall."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.util import find_spec

import pytest
import torch

import errata
from errata.errors import ConfigError, DataError, MissingExtra
from errata.evaluation import evaluate
from errata.evaluation.drift import drift
from errata.evaluation.general import General, world_questions
from errata.evaluation.perplexity import TOKENS, WINDOW, load_text, perplexity, world_sentences
from errata.evaluation.scoring import Scorer
from errata.evaluation.summary import summarise
from errata.evaluation.tracking import spread
from errata.model.lm import LM
from errata.model.weights import weight_fingerprint
from errata.patch import Dense, LowRank, Patch
from tests.evaluation.conftest import make_case
from tests.evaluation.stubs import Planted

CLOSE = 1e-9
"""Relative tolerance in float64: sums of a few thousand products."""


@cache
def loaded() -> LM:
    return errata.load("pocket")


class TestDrift:
    def test_by_hand(self, lm):
        site = lm.site(1)
        weight = lm.model.get_parameter(site.weight)
        rng = torch.Generator().manual_seed(0)
        B, A = (
            torch.randn(shape, generator=rng, dtype=torch.float64)
            for shape in ((site.d_out, 3), (3, site.d_in))
        )
        extra = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
        patch = Patch((LowRank(site.path, B, A), Dense(site.weight, extra)))
        moved = ((B @ A).T if site.transposed else B @ A) + extra
        found = drift(lm, patch)
        assert set(found) == {site.weight}
        norm = math.sqrt((moved**2).sum())
        assert found[site.weight]["relative"] == pytest.approx(
            norm / math.sqrt((weight**2).sum()), rel=CLOSE
        )
        assert found[site.weight]["published"] == pytest.approx(norm / weight.numel(), rel=CLOSE)

    def test_is_that_of_the_weights(self, llama_lm):
        patch = Planted().edit_one(llama_lm, make_case(0).edits)
        name = llama_lm.site(1).weight
        before = llama_lm.model.get_parameter(name).clone()
        with patch.applied(llama_lm):
            after = llama_lm.model.get_parameter(name).clone()
        expected = (after - before).norm() / before.norm()
        assert drift(llama_lm, patch)[name]["relative"] == pytest.approx(float(expected), rel=CLOSE)

    def test_nothing_moved(self, lm):
        assert drift(lm, None) == {}
        assert drift(lm, Patch()) == {}


class TestPerplexity:
    def test_is_exp_of_the_loss_of_transformers(self, lm, tmp_path):
        text = "the town of Paris is the river of Rome"
        (tmp_path / "text.txt").write_text(text)
        found = load_text(lm, str(tmp_path / "text.txt"))
        assert found is not None
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            loss = lm.model(ids, labels=ids).loss
        assert found.tokens == ids.shape[1] - 1
        assert perplexity(Scorer(lm), found, None) == pytest.approx(float(loss.exp()), rel=1e-6)

    def test_under_a_patch(self, lm, tmp_path):
        (tmp_path / "text.txt").write_text("the town of Paris\n\nthe river")
        found = load_text(lm, str(tmp_path / "text.txt"))
        patch = Planted(3.0).edit_one(lm, make_case(0).edits)
        nll, count = 0.0, 0
        with patch.applied(lm), torch.no_grad():
            for row in found.rows:
                logits = lm.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
                nll -= sum(float(logits[p, label]) for p, label in enumerate(row.labels))
                count += len(row.labels)
        expected = math.exp(nll / count)
        assert perplexity(Scorer(lm), found, patch) == pytest.approx(expected, rel=1e-6)
        # how much a random change does to random weights depends on their draw; not 1e-6, as above
        assert perplexity(Scorer(lm), found, None) != pytest.approx(expected, rel=1e-4)

    def test_a_destroyed_model_has_none(self, lm, tmp_path):
        (tmp_path / "text.txt").write_text("the town of Paris")
        found = load_text(lm, str(tmp_path / "text.txt"))
        patch = Planted(1e300).edit_one(lm, make_case(0).edits)
        assert perplexity(Scorer(lm), found, patch) is None

    def test_long_documents_are_cut_and_the_whole_is_bounded(self, lm, tmp_path):
        path = tmp_path / "text.json"
        path.write_text(json.dumps(["river " * 4000] * 9))
        found = load_text(lm, str(path))
        longest = min(WINDOW, lm.max_length or WINDOW)
        assert max(len(row.labels) for row in found.rows) == longest - 1
        assert found.tokens == TOKENS

    def test_what_cannot_be_read(self, lm, tmp_path):
        with pytest.raises(DataError, match="no such file"):
            load_text(lm, str(tmp_path / "text.txt"))
        assert load_text(lm, None) is None
        assert load_text(lm, "auto") is None  # not the pocket model

    def test_the_world_s_sentences_were_never_in_its_text(self):
        from errata.world import build_world, texts

        seen = set(texts(build_world()))
        held = list(world_sentences())
        assert len(set(held)) > 190
        assert not seen & set(held)


class TestAlongASequence:
    @pytest.fixture
    def text(self, tmp_path):
        (tmp_path / "text.txt").write_text("the town of Paris is the river of Rome")
        return str(tmp_path / "text.txt")

    def test_points(self, lm, flat, text):
        editor = Planted(0.5)
        result = evaluate(
            lm, editor, flat, regime="sequential:7", batch=2, every=2, perplexity=text
        )
        (path,) = [r["trajectory"] for r in result.records if "trajectory" in r]
        assert path is result.records[-1]["trajectory"]
        assert [(point["step"], point["edits"]) for point in path] == [(0, 0), (2, 4), (4, 7)]
        stored = load_text(lm, text)
        patch = None
        for step, group in enumerate([flat[:2], flat[2:4], flat[4:6], flat[6:]], 1):
            patch = editor.edit_one(lm, [edit for case in group for edit in case.edits], patch)
            if step % 2:
                continue
            point = path[step // 2]
            assert point["drift"] == drift(lm, patch)
            assert point["perplexity"] == perplexity(Scorer(lm), stored, patch)
            rows = [lm.row(c.edits[0].prompt, c.edits[0].target) for c in flat[: 2 * step]]
            with patch.applied(lm):
                ranks = [score.ranks for score in lm.score(rows)]
            hits = [sum(r == 0 for r in own) / len(own) for own in ranks]
            assert point["recall"]["score"] == pytest.approx(sum(hits) / len(hits))
            assert point["recall"]["cases"] == len(hits)
        summary = result.summary
        base = perplexity(Scorer(lm), stored, None)
        assert summary["perplexity"] == {"before": base, "after": path[-1]["perplexity"]}
        assert summary["drift"] == path[-1]["drift"]
        assert [point["edits"] for point in summary["trajectory"]] == [0, 4, 7]
        assert summary["general"] is None
        json.dumps(summary, allow_nan=False)

    def test_only_both_ends_unless_asked(self, lm, flat):
        result = evaluate(lm, Planted(), flat, regime="sequential:7")
        assert [point["step"] for point in result.summary["trajectory"]] == [0, 7]
        assert result.summary["perplexity"] is None
        assert result.summary["drift"]

    def test_sequences_are_averaged_by_step(self, lm, flat, text):
        result = evaluate(
            lm, Planted(), flat, regime="sequential:3", every=1, perplexity=text, stack_size=4
        )
        paths = [r["trajectory"] for r in result.records if "trajectory" in r]
        assert [len(path) for path in paths] == [4, 4, 2]
        found = result.summary["trajectory"]
        assert [point["sequences"] for point in found] == [3, 3, 2, 2]
        mean = sum(path[1]["perplexity"] for path in paths) / 3
        assert found[1]["perplexity"] == pytest.approx(mean)
        ends = [path[-1]["drift"] for path in paths]
        name = lm.site(1).weight
        expected = sum(end[name]["relative"] for end in ends) / 3
        assert result.summary["drift"][name]["relative"] == pytest.approx(expected)

    def test_cases_that_fail_do_not_hide_it(self, lm):
        cases = [make_case(0), make_case(1, bad=True)]
        result = evaluate(lm, Planted(), cases, regime="sequential:2")
        assert result.summary["trajectory"][-1]["edits"] == 1
        (none,) = evaluate(lm, Planted(), cases[1:], regime="sequential:2").records
        assert none["trajectory"][-1]["drift"] == {}

    def test_a_perplexity_that_is_not_finite(self):
        record = {"id": "a", "error": None, "edits": 1, "questions": []}
        records = [
            record | {"trajectory": [{"step": 0, "edits": 0, "perplexity": value}]}
            for value in (3.0, None)
        ]
        found = summarise(records, {}, bootstrap=0)
        assert found["perplexity"] == {"before": None, "after": None}

    def test_other_regimes_have_none_and_refuse_to_be_asked(self, lm, flat):
        summary = evaluate(lm, Planted(), flat[:2]).summary
        assert summary["trajectory"] is summary["drift"] is summary["perplexity"] is None
        for asked in ({"every": 1}, {"general": "world"}, {"batch": 2}):
            with pytest.raises(ConfigError, match=f"{next(iter(asked))} belongs to sequences"):
                evaluate(lm, Planted(), flat[:2], regime="batch:2", **asked)

    def test_spread(self):
        assert spread(range(5), 5) == [0, 1, 2, 3, 4]
        assert spread(range(1000), 5) == [0, 249, 499, 749, 999]


def test_without_the_harness(lm, flat, monkeypatch):
    monkeypatch.setattr("errata.evaluation.ability.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="lm-eval"):
        evaluate(lm, Planted(), flat, regime="sequential:7", general="world")


def test_the_world_s_questions_are_about_facts_that_no_test_edits():
    from errata.world import build_world

    world = build_world()
    by_name: dict[str, set[str]] = {}
    for key, entity in world.entities.items():
        for name in (entity.label, *entity.aliases):
            by_name.setdefault(name, set()).add(key)
    questions = world_questions()
    assert len({question["question"] for question in questions}) == 100
    for question in questions:
        assert len(set(question["choices"])) == 4
        answers = by_name[question["choices"][question["answer"]]]
        asked = {
            key for name, keys in by_name.items() if name in question["question"] for key in keys
        }
        heads = [
            key for key in asked for fact in world.by_head.get(key, ()) if fact.tail in answers
        ]
        assert {world.split_of[head] for head in heads} & {"train", "val"}


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness")
class TestHarness:
    """With lm-evaluation-harness itself, where it is installed."""

    @pytest.fixture
    def pocket(self):
        return loaded()

    def task(self, folder, questions):
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        (folder / "questions.jsonl").write_text(lines)
        (folder / "task.yaml").write_text(
            "task: mine\ndataset_path: json\n"
            "dataset_kwargs:\n  data_files:\n    test: questions.jsonl\n"
            "test_split: test\noutput_type: multiple_choice\n"
            'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
            'doc_to_target: "{{answer}}"\nmetric_list:\n  - metric: acc\n'
        )
        return str(folder / "task.yaml")

    def test_agrees_with_our_own_likelihoods(self, pocket, tmp_path):
        questions = world_questions(12)
        general = General(pocket, self.task(tmp_path, questions))
        site = pocket.site(3)
        rng = torch.Generator().manual_seed(0)
        B, A = torch.randn(site.d_out, 4, generator=rng), torch.randn(4, site.d_in, generator=rng)
        patch = Patch.for_model(pocket, [LowRank(site.path, B, 0.3 * A)], editor="x")
        fingerprint = weight_fingerprint(pocket.model)
        for own in (None, patch):
            right = 0
            for question in questions:
                rows = [pocket.row(question["question"], choice) for choice in question["choices"]]
                scores = Scorer(pocket).score(rows, [own] * len(rows))
                sums = [sum(score.logprobs) for score in scores]
                right += sums.index(max(sums)) == question["answer"]
            assert general.measure(own) == {"mine/acc": right / len(questions)}
        assert weight_fingerprint(pocket.model) == fingerprint

    def test_in_a_sequence(self, pocket, tmp_path):
        task = self.task(tmp_path, world_questions(5))
        cases = errata.load_cases("world", limit=3, seed=0)
        result = evaluate(
            pocket, "none", cases, regime="sequential:3",
            general=task, every=2,
        )  # fmt: skip
        found = [point["general"] for point in result.summary["trajectory"]]
        assert found == [{"mine/acc": 1.0}] * 3
        assert result.summary["general"] == {
            "before": {"mine/acc": 1.0},
            "after": {"mine/acc": 1.0},
        }

    def test_the_world_as_task(self, pocket):
        assert General(pocket, "world").measure(None)["world/acc"] > 0.95

    @pytest.mark.parametrize(
        "text",
        [
            None,
            "- 1",
            "group: x",
            "task: x\ndataset_path: json",
            "task: x\ndataset_kwargs: {data_files: {test: none}}",
        ],
    )
    def test_what_is_no_task(self, pocket, tmp_path, text):
        path = tmp_path / "task.yaml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataError, match="task"):
            General(pocket, str(path))


def test_perplexity_of_pocket_is_measured_by_itself():
    cases = errata.load_cases("world", limit=2, seed=0)
    found = evaluate(loaded(), "none", cases, regime="sequential:2").summary
    assert found["perplexity"]["before"] == found["perplexity"]["after"]
    assert 5 < found["perplexity"]["before"] < 30
    assert found["tracked"]["perplexity"]["tokens"] > 2000
