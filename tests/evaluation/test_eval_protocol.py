"""The protocol on tiny random models with stub editors."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from errata.case import Case, Edit, Probe
from errata.errors import ConfigError, DataError, PatchError
from errata.evaluation import evaluate
from errata.patch import Patch
from tests.evaluation.conftest import make_case
from tests.evaluation.stubs import Broken, Planted


def plain(records):
    """Records without what may differ between equal runs."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def numbers(records):
    """Everything discrete that was measured, by record and question."""
    return [
        [(q["kind"], q["name"], q["hits"], q.get("hops"), q["argmax"]) for q in r["questions"]]
        for r in records
    ]


def rank_of(lm, prompt: str, target: str, patch: Patch | None = None) -> int:
    with (patch or Patch()).applied(lm):
        return max(lm.score([lm.row(prompt, target)])[0].ranks)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_unedited_model_keeps_its_own_answers(lm, cases, top_k):
    summary = evaluate(lm, "none", cases, top_k=top_k).summary
    assert summary["locality"] == 1.0
    assert summary["also"]["locality_top1"] == 1.0


def test_everything_is_general_when_the_whole_vocabulary_counts(lm, cases):
    result = evaluate(lm, Planted(), cases, top_k=lm.model.config.vocab_size)
    assert result.summary["generality"] == 1.0
    assert result.summary["hops"] == {"asked": 3, "known": 3, "edited": 0, "failed": 0}
    near = result.summary["by"]["name"]["locality"]["near"]
    assert near["mean"] < 1.0  # its own rank stays


def test_probes_are_scored_by_their_definition(lm):
    """One case, checked against ranks taken from plain passes under the same patch."""
    case = make_case(3)
    editor = Planted(3.0)
    record = evaluate(lm, editor, [case], top_k=40).records[0]
    patch = editor.edit_one(lm, case.edits)
    questions = [(case.edits[0], 1), *((p, p.top_k or 40) for p in case.probes)]
    for (asked, k), entry in zip(questions, record["questions"], strict=True):
        row = lm.row(asked.prompt, asked.target)
        if entry["kind"] == "locality":
            row = replace(row, labels=lm.score([row])[0].argmax)
        with patch.applied(lm):
            ranks = lm.score([row])[0].ranks
        assert entry["hits"] == [int(rank < k) for rank in ranks]
        assert entry["top1"] == sum(rank == 0 for rank in ranks) / len(ranks)
        assert entry["score"] == sum(entry["hits"]) / len(ranks)
        assert entry["k"] == k


class TestHops:
    """Known hops are left alone, unknown ones edited before the question and undone after it."""

    @pytest.fixture
    def setting(self, lm):
        """A case whose first and third hop are unknown under the patch and the second known."""
        editor = Planted()
        words = ["Berlin", "Paris", "Rome", "French", "town", "river", "Anna"]
        edit = Edit("Anna lives in", "Berlin", "Anna")
        patch = editor.edit_one(lm, [edit])
        prompts = ["The river of the town is", "The mayor works for", "The city of Danielle is"]
        ranked = [
            sorted(words, key=lambda word, p=prompt: rank_of(lm, p, word, patch))
            for prompt in prompts
        ]
        unknown = Edit(prompts[0], ranked[0][-1])
        patch1 = editor.edit_one(lm, [unknown], patch)
        known = Edit(prompts[1], min(words, key=lambda w: rank_of(lm, prompts[1], w, patch1)))
        top_k = rank_of(lm, known.prompt, known.target, patch1) + 1
        last = Edit(prompts[2], max(words, key=lambda w: rank_of(lm, prompts[2], w, patch1)))
        assert rank_of(lm, unknown.prompt, unknown.target, patch) >= top_k
        assert rank_of(lm, last.prompt, last.target, patch1) >= top_k
        case = Case(
            "hops",
            (edit,),
            (
                Probe("Who is it?", "Anna", "generality", "chain", hops=(unknown, known, last)),
                Probe("Who is it?", "Anna", "generality", "plain"),
                Probe("The town is", "Rome", "locality", "far", hops=(unknown,)),
            ),
        )
        editor.calls.clear()
        return case, editor, top_k

    def test_unknown_hops_are_edited_in_order_on_top_of_each_other(self, lm, setting):
        case, editor, top_k = setting
        record = evaluate(lm, editor, [case], top_k=top_k).records[0]
        first, _, last = case.probes[0].hops
        assert editor.edited == [case.edits[0].prompt, first.prompt, last.prompt]
        bases = [before[0].edits for _, before in editor.calls]
        assert bases == [(), case.edits, (*case.edits, first)]
        entries = {entry["name"]: entry for entry in record["questions"]}
        assert entries["chain"]["hops"] == {"asked": 3, "known": 1, "edited": 2, "failed": []}
        assert "hops" not in entries["far"]  # locality hops are never edited

    def test_the_question_sees_them_and_the_next_does_not(self, lm, setting):
        case, editor, top_k = setting
        record = evaluate(lm, editor, [case], top_k=top_k).records[0]
        entries = {entry["name"]: entry for entry in record["questions"]}
        first, _, last = case.probes[0].hops
        edited = editor.edit_one(lm, case.edits)
        hopped = editor.edit_one(lm, [first, last], edited)
        row = lm.row("Who is it?", "Anna")
        for name, patch in (("chain", hopped), ("plain", edited)):
            with patch.applied(lm):
                assert entries[name]["argmax"] == list(lm.score([row])[0].argmax)
                assert entries[name]["hits"] == [int(r < top_k) for r in lm.score([row])[0].ranks]

    def test_the_known_check_uses_the_global_rank(self, lm, setting):
        case, editor, top_k = setting
        strict = replace(case.probes[0], top_k=1)
        record = evaluate(lm, editor, [replace(case, probes=(strict,))], top_k=top_k).records[0]
        assert record["questions"][1]["hops"]["known"] == 1
        assert record["questions"][1]["k"] == 1

    def test_a_hop_is_known_only_if_all_its_tokens_are(self, lm, setting):
        case, editor, _ = setting
        hop = Edit("The river of the town is", "Paris and Rome")
        with editor.edit_one(lm, case.edits).applied(lm):
            ranks = lm.score([lm.row(hop.prompt, hop.target)])[0].ranks
        assert min(ranks) < max(ranks)
        probe = replace(case.probes[0], hops=(hop,))
        for top_k, known in ((min(ranks) + 1, 0), (max(ranks), 0), (max(ranks) + 1, 1)):
            result = evaluate(lm, editor, [replace(case, probes=(probe,))], top_k=top_k)
            assert result.records[0]["questions"][1]["hops"]["known"] == known

    def test_a_hop_that_cannot_be_edited_is_recorded(self, lm, setting):
        case, editor, _ = setting
        bad = Edit("FAIL this", "Berlin")
        probe = replace(case.probes[0], hops=(bad, *case.probes[0].hops))
        result = evaluate(lm, editor, [replace(case, probes=(probe,))], top_k=1)
        hops = result.records[0]["questions"][1]["hops"]
        assert hops["failed"] == ["cannot edit 'FAIL this'"]
        assert result.summary["hops"]["failed"] == 1
        assert result.summary["failed"] == 0

    def test_equal_hops_of_one_case_are_edited_once(self, lm, setting):
        case, editor, top_k = setting
        twice = replace(case, probes=(case.probes[0], replace(case.probes[0], prompt="Is it?")))
        record = evaluate(lm, editor, [twice], top_k=top_k).records[0]
        assert len(editor.edited) == 3
        assert [q["hops"]["edited"] for q in record["questions"][1:]] == [2, 2]


@pytest.mark.parametrize("kind", ["low_rank", "dense", "norm"])
def test_batching_changes_no_number(llama_lm, cases, kind, monkeypatch):
    results = []
    for stack_size, max_tokens in ((16, 2048), (1, 2048), (3, 40)):
        monkeypatch.setattr(llama_lm, "max_tokens", max_tokens)
        editor = Planted(0.3, kind)
        results.append(evaluate(llama_lm, editor, cases, stack_size=stack_size, top_k=20))
    assert 0 < results[0].summary["locality"] < 1
    for other in results[1:]:
        assert plain(other.records) == plain(results[0].records)
        assert {**other.summary, "seconds": 0} == {**results[0].summary, "seconds": 0}


def test_stacked_and_in_place_agree(llama_lm, cases, monkeypatch):
    stacked = evaluate(llama_lm, Planted(0.3), cases, top_k=20)
    dense = evaluate(llama_lm, Planted(0.3, "dense"), cases, top_k=20)
    monkeypatch.setattr("errata.evaluation.scoring.STACKED_RANK", 0)
    in_place = evaluate(llama_lm, Planted(0.3), cases, top_k=20)
    assert numbers(stacked.records) == numbers(in_place.records) == numbers(dense.records)


def test_the_model_is_untouched(lm, cases):
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    for kind in ("low_rank", "norm"):
        evaluate(lm, Planted(kind=kind), cases)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())


class TestRegimes:
    def test_batch_edits_jointly(self, lm, flat):
        editor = Planted()
        result = evaluate(lm, editor, flat, regime="batch:3")
        groups = [group for call, _ in editor.calls for group in call]
        assert [len(group) for group in groups] == [3, 3, 1]
        assert [record["unit"] for record in result.records] == [0, 0, 0, 1, 1, 1, 2]
        joint = editor.edit_one(lm, [edit for case in flat[:3] for edit in case.edits])
        row = lm.row(flat[1].edits[0].prompt, flat[1].edits[0].target)
        with joint.applied(lm):
            assert result.records[1]["questions"][0]["argmax"] == list(lm.score([row])[0].argmax)

    def test_units_count_edits_and_partial_ones_can_be_left_out(self, lm, flat):
        double = replace(flat[0], edits=(*flat[0].edits, Edit("Rome is", "Paris")))
        editor = Planted()
        many = [double, *flat[1:6]]
        result = evaluate(lm, editor, many, regime="batch:2", drop_partial=True)
        assert [len(g) for call, _ in editor.calls for g in call] == [2, 2, 2]
        assert [record["unit"] for record in result.records] == [0, 1, 1, 2, 2]
        assert result.summary["skipped"] == 1
        assert result.summary["edits"] == 6
        with pytest.raises(DataError, match="do not fill one unit"):
            evaluate(lm, editor, many, regime="batch:20", drop_partial=True)

    def test_sequential_edits_on_top_of_each_other(self, lm, flat):
        editor = Planted()
        result = evaluate(lm, editor, flat, regime="sequential:4", retention=True, stack_size=1)
        bases = [len(before[0].edits) for _, before in editor.calls]
        assert bases == [0, 1, 2, 3, 0, 1, 2]
        assert [record["age"] for record in result.records] == [3, 2, 1, 0, 2, 1, 0]
        for unit in (flat[:4], flat[4:]):
            patch = None
            for case in unit:
                patch = editor.edit_one(lm, case.edits, patch)
                row = lm.row(case.edits[0].prompt, case.edits[0].target)
                with patch.applied(lm):
                    ranks = lm.score([row])[0].ranks
                record = next(r for r in result.records if r["id"] == case.id)
                assert record["immediate"] == [sum(rank == 0 for rank in ranks) / len(ranks)]
        retention = result.summary["retention"]
        assert [group["age"] for group in retention["by_age"]] == [[0, 0], [1, 1], [2, 2], [3, 3]]
        assert [group["cases"] for group in retention["by_age"]] == [2, 2, 2, 1]
        assert retention["final"] == pytest.approx(result.summary["reliability"])
        newest = retention["by_age"][0]
        assert newest["final"] == newest["immediate"]  # nothing came after them

    def test_sequences_run_side_by_side_with_the_same_numbers(self, lm, flat):
        results = [
            evaluate(lm, Planted(), flat, regime="sequential:2", top_k=30, stack_size=size)
            for size in (1, 16)
        ]
        assert plain(results[0].records) == plain(results[1].records)

    def test_steps_edit_several_cases_at_once(self, lm, flat):
        editor = Planted()
        result = evaluate(lm, editor, flat[:5], regime="sequential:5", batch=2)
        assert [len(call[0]) for call, _ in editor.calls] == [2, 2, 1]
        assert [record["age"] for record in result.records] == [3, 3, 1, 1, 0]

    def test_high_ranks_run_in_place(self, lm, flat, monkeypatch):
        many = [make_case(i) for i in range(9)]
        stacked = evaluate(lm, Planted(0.3), many, regime="sequential:9", top_k=20)
        monkeypatch.setattr("errata.evaluation.scoring.STACKED_RANK", 8)
        assert numbers(
            evaluate(lm, Planted(0.3), many, regime="sequential:9", top_k=20).records
        ) == numbers(stacked.records)

    @pytest.mark.parametrize(
        "text", ["both", "batch", "batch:0", "batch:x", "single:3", "batch:-1"]
    )
    def test_bad_regimes(self, lm, cases, text):
        with pytest.raises(ConfigError, match="regime"):
            evaluate(lm, "none", cases, regime=text)


class TestFailures:
    @pytest.mark.parametrize("regime", ["single", "batch:3", "sequential:3"])
    def test_a_case_that_cannot_be_edited_costs_only_itself(self, lm, regime):
        many = [make_case(i, bad=i in {1, 4}) for i in range(6)]
        result = evaluate(lm, Planted(), many, regime=regime, top_k=30)
        errors = [record["error"] for record in result.records]
        assert [i for i, error in enumerate(errors) if error] == [1, 4]
        assert "cannot edit 'FAIL" in errors[1]
        assert result.summary["failed"] == 2
        assert result.summary["cases"] == 6
        assert result.summary["edits"] == 4
        good = [case for i, case in enumerate(many) if i not in {1, 4}]
        regime = regime.replace("3", "2")
        alone = evaluate(lm, Planted(), good, regime=regime, top_k=30, bootstrap=0)
        assert numbers(alone.records) == numbers([r for r in result.records if not r["error"]])
        for metric in ("reliability", "generality", "locality", "average"):
            assert alone.summary[metric] == result.summary[metric]

    @pytest.mark.parametrize("regime", ["batch:5", "sequential:5"])
    def test_an_error_that_names_edits_costs_only_them(self, lm, flat, regime):
        """Together these cases fail, and each alone works: only the error tells them apart."""
        many = flat[:5]
        clash = tuple(many[i].edits[0].prompt for i in (1, 3, 4))
        editor = Planted()
        editor.clash = clash
        size = {"batch": 5} if regime.startswith("seq") else {}
        result = evaluate(lm, editor, many, regime=regime, top_k=30, **size)
        assert [bool(record["error"]) for record in result.records] == [0, 0, 0, 1, 1]
        assert "in conflict" in result.records[3]["error"]
        tried = [[len(group) for group in groups] for groups, _ in editor.calls]
        assert tried == [[5], [4], [3]]  # never one by one
        good = evaluate(lm, Planted(), many[:3], regime=regime, top_k=30, **size)
        assert numbers(good.records) == numbers(result.records[:3])

    def test_an_error_that_names_edits_spares_the_other_groups(self, lm, flat):
        editor = Planted()
        many = [*flat, make_case(7)]
        editor.clash = tuple(many[i].edits[0].prompt for i in (4, 5))
        result = evaluate(lm, editor, many, regime="batch:2", top_k=30)
        assert [bool(r["error"]) for r in result.records] == [0, 0, 0, 0, 0, 1, 0, 0]
        tried = [[len(group) for group in groups] for groups, _ in editor.calls]
        assert tried == [[2], [2, 2, 2], [2, 2], [2], [1]]  # the first unit goes alone

    def test_nothing_can_be_edited(self, lm):
        summary = evaluate(lm, Planted(), [make_case(0, bad=True)]).summary
        assert summary["failed"] == 1
        assert summary["reliability"] is None
        assert summary["average"] is None
        json.dumps(summary, allow_nan=False)

    def test_nan_patches_are_refused(self, lm, cases):
        result = evaluate(lm, Broken(), cases[:2])
        assert result.summary["failed"] == 2
        assert "NaN" in result.records[0]["error"]

    def test_a_question_that_is_too_long_fails_its_case(self, lm, cases):
        long = Probe("river " * 300, "Rome", "locality", "far")
        many = [replace(cases[0], probes=(long,)), cases[1]]
        result = evaluate(lm, Planted(), many)
        assert "context holds" in result.records[0]["error"]
        assert result.records[1]["error"] is None

    def test_a_patch_for_another_model_is_no_failure_but_an_error(self, lm, llama_lm, cases):
        foreign = Planted().edit_one(llama_lm, cases[0].edits)
        editor = Planted()
        editor._finish = lambda lm, before, added, group: foreign
        with pytest.raises(PatchError, match="made for"):
            evaluate(lm, editor, cases)


def test_collisions_are_left_out_unless_kept(lm, cases):
    meta = {"edit_keys": (("Q1", "Q2"),), "locality_keys": ((("Q1", "Q2"),), (("Q3", "Q4"),)),
            "loc_type": ("none", "none")}  # fmt: skip
    many = [replace(cases[0], meta=meta), cases[1]]
    dropped = evaluate(lm, "none", many)
    assert dropped.summary["collisions"] == 1
    assert [q["name"] for q in dropped.records[0]["questions"] if q["kind"] == "locality"] == [
        "near"
    ]
    assert evaluate(lm, "none", many, keep_collisions=True).summary["collisions"] == 0


def test_records_say_what_made_them(lm, cases):
    result = evaluate(
        lm, Planted(), cases[:2], data_name="small", data_version="abc", seed=7, top_k=9
    )
    for record, case in zip(result.records, cases, strict=False):
        assert record["id"] == case.id
        assert record["editor"] == "planted"
        assert record["model"] == "tiny-gpt2"
        assert lm.fingerprint.startswith(record["fingerprint"])
        assert (record["data"], record["data_version"], record["seed"]) == ("small", "abc", 7)
        assert record["errata"]
        assert record["config_hash"]
        assert record["regime"] == "single"
        assert set(record["seconds"]) >= {"edit", "evaluate"}
        assert record["patch_bytes"] > 0
    json.dumps(result.records, allow_nan=False)
    wanted = {"editor", "model", "data", "regime", "cases", "reliability", "generality",
              "locality", "average", "by", "seconds", "ci95", "edits", "skipped"}  # fmt: skip
    assert wanted <= set(result.summary)
    assert "planted" in result.table()
    assert "<table>" in result._repr_html_()


def test_progress_counts_cases(lm, cases):
    seen = []
    evaluate(
        lm, "none", cases, stack_size=3, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(0, 7), (1, 7), (4, 7), (7, 7)]


def test_bad_calls(lm, cases):
    with pytest.raises(DataError, match="no case"):
        evaluate(lm, "none", [])
    with pytest.raises(DataError, match="two cases"):
        evaluate(lm, "none", [cases[0], cases[0]])
    with pytest.raises(ConfigError, match="top_k"):
        evaluate(lm, "none", cases, top_k=0)
