"""The loaders on the published files themselves; skipped where these are absent."""

from __future__ import annotations

import pytest

from errata.data import load_cases
from errata.errors import DataError


@pytest.fixture(scope="module")
def data(shared):
    if not (shared / "data" / "counterfact").is_dir():
        pytest.skip("needs the public benchmark files")
    return shared / "data"


def test_counterfact_flat(data):
    val = load_cases(f"counterfact:{data}/counterfact", "val")
    train = load_cases(f"counterfact:{data}/counterfact", "train")
    assert (len(val), len(train)) == (1919, 10_000)
    assert not {case.id for case in val.cases} & {case.id for case in train.cases}
    for case in (*val.cases, *train.cases):
        (edit,) = case.edits
        assert edit.subject is not None
        assert edit.subject in edit.prompt
        assert [probe.name for probe in case.probes] == ["rephrase", "locality"]
        assert case.probes[1].target == edit.target_true


def test_counterfact_nested(data):
    loaded = load_cases(f"counterfact:{data}/counterfact/counterfact-nested-1129.json")
    assert len(loaded) == 1129
    for case in loaded.cases:
        (edit,) = case.edits
        assert edit.subject is not None
        assert edit.subject in edit.prompt
        assert "{" not in edit.prompt
        assert [p.name for p in case.probes] == ["rephrase"] * 2 + ["neighborhood"] * 10
        assert len(case.meta["generation_prompts"]) == 10


def test_the_two_forms_of_counterfact_agree_where_they_overlap(data):
    folder = data / "counterfact"
    flat = {
        case.id: case
        for split in ("val", "train")
        for case in load_cases(f"counterfact:{folder}", split).cases
    }
    nested = load_cases(f"counterfact:{folder}/counterfact-nested-1129.json").cases
    both = [(flat[case.id], case) for case in nested if case.id in flat]
    assert len(both) == 62
    for one, other in both:
        assert one.edits == other.edits
        prompts = [probe.prompt for probe in other.of("generality")]
        assert one.probes[0].prompt in [*prompts, *other.meta["generation_prompts"]]


def test_zsre(data):
    spec = f"zsre:{data}/zsre/zsre_mend_train-1k.json"
    with pytest.raises(DataError, match="record 534: field 'alt' is ''"):
        load_cases(spec)
    loaded = load_cases(spec, skip_bad=True)
    assert (len(loaded), len(loaded.skipped)) == (998, 2)
    assert "record 534" in loaded.skipped[0]
    assert "record 723" in loaded.skipped[1]
    assert len(load_cases(spec, limit=500)) == 500
    # with the true answers nothing is empty
    assert len(load_cases(spec, options={"target": "answer"})) == 1000
    for case in loaded.cases:
        assert case.edits[0].subject is not None
        assert case.edits[0].subject in case.edits[0].prompt
        assert case.probes[1].prompt.startswith("nq question: ")


def test_mquake(data):
    loaded = load_cases(f"mquake:{data}/mquake")
    assert len(loaded) == 3000
    edits = [len(case.edits) for case in loaded.cases]
    assert [edits.count(n) for n in (1, 2, 3, 4)] == [1093, 1067, 572, 268]
    hops = [len(case.probes[0].hops) for case in loaded.cases]
    assert [hops.count(n) for n in (0, 1, 2, 3)] == [1065, 1109, 602, 224]
    assert all(len(case.probes) == 3 for case in loaded.cases)
    without = sum(hop.subject is None for case in loaded.cases for hop in case.probes[0].hops)
    assert without == 0
    # version 1 contradicts itself across cases; this is what version 2 mends
    assert sum(bool(case.meta["conflicts"]) for case in loaded.cases) == 998


def test_rep_under_its_own_name(data):
    loaded = load_cases(f"rep:{data}/rep/counterfact_para_subject-valid.json")
    assert len(loaded) == 100
    assert loaded.notes == ("3 blank rephrased prompts left out",)


def test_qaedit(data):
    loaded = load_cases(f"{data}/lifelong/qaedit_inter_1k.json")
    assert (loaded.name, len(loaded), loaded.skipped, loaded.warned) == ("qaedit", 1000, (), ())
    for case in loaded.cases:
        (edit,) = case.edits
        assert edit.subject is not None
        assert edit.subject in edit.prompt
        assert edit.target == edit.target.strip()
        assert [probe.kind for probe in case.probes] == ["generality", *["locality"] * 5]
        assert case.probes[0].target == edit.target
    sources = [case.meta["source"] for case in loaded.cases]
    assert [sources.count(name) for name in ("NQ", "TQA", "SQA")] == [247, 364, 389]
    assert next(c for c in loaded.cases if c.id == "NQ-1104").edits[0].target == "Wilt Chamberlain"


@pytest.mark.parametrize("name", ["locft", "wikibigedit", None])
def test_wikibigedit_in_the_form_of_locft(data, name):
    path = f"{data}/lifelong/wikibigedit_3k.json"
    loaded = load_cases(f"{name}:{path}" if name else path)
    assert (loaded.name, len(loaded), loaded.warned) == (name or "locft", 3000, ())
    for case in loaded.cases:
        assert case.edits[0].subject is not None
        assert case.edits[0].subject in case.edits[0].prompt
        assert [probe.name for probe in case.probes] == ["rephrase", "locality"]


def test_zsre_of_locft(data):
    path = f"{data}/lifelong/locft_zsre_3k.json"
    plain, zsre = load_cases(f"locft:{path}"), load_cases(path)
    assert (plain.name, zsre.name, len(plain), len(zsre)) == ("locft", "zsre", 3000, 3000)
    for one, other in zip(plain.cases, zsre.cases, strict=True):
        assert one.edits[0].prompt + " The answer is: " == other.edits[0].prompt
        assert one.edits[0].target == other.edits[0].target
        assert one.of("locality") == other.of("locality")


def test_no_public_file_has_a_field_that_is_not_read(data):
    for name in ("counterfact", "mquake", "rep", "zsre", "lifelong"):
        for path in sorted((data / name).iterdir()):
            assert load_cases(path, skip_bad=True).warned == (), path


def test_rep_robustness_file(data):
    spec = f"counterfact:{data}/rep/counterfact_para_subject-valid.json"
    loaded = load_cases(spec, skip_bad=True)
    assert (len(loaded), len(loaded.skipped)) == (97, 3)
    assert all(len(case.meta["subject_rephrase"]) == 10 for case in loaded.cases)
