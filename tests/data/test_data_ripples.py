"""RippleEdits, AKEW, and the sets of KnowEdit that are of other forms: hand-made records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.case import Condition, Edit, Probe
from errata.data import load_cases, save_cases
from errata.data.knowedit import OPINIONS
from errata.errors import DataError


def written(folder: Path, value: Any, name: str = "records.json") -> str:
    path = folder / name
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


# ---------------------------------------------------------------------- RippleEdits


def query(prompt: str, *answers: list[str], subject: str = "Q1", target: str = "Q9",
          phrase: str | None = None) -> dict[str, Any]:  # fmt: skip
    return {
        "prompt": prompt,
        "answers": [{"value": first, "aliases": more} for first, *more in answers],
        "query_type": "regular",
        "subject_id": subject,
        "relation": "MOTHER",
        "target_ids": [target],
        "phrase": phrase,
    }


def asking(*queries: dict[str, Any], when: tuple[dict[str, Any], ...] = (), how: str = "OR") -> Any:
    return {"test_queries": list(queries), "test_condition": how, "condition_queries": list(when)}


MOTHER = query("The name of the mother of Ada of Lund is", ["Eve", "Eva Lund", "E"])
RIPPLE: dict[str, Any] = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Ada of Lund is New Zealand.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q2",
        "previous_fact": {
            "prompt": "The name of the country of citizenship of Ada of Lund is New Caledonia.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q3",
        },
    },
    "Relation_Specificity": [asking(MOTHER, when=(MOTHER,))],
    "Logical_Generalization": [],
    "Subject_Aliasing": [],
    "Compositionality_I": [
        asking(
            query("The capital of the country of Ada of Lund is", ["Wellington"], phrase="x"),
            query(
                "The currency of the country of Ada of Lund is", ["dollar"], ["cent"], phrase="x"
            ),
            when=(query("The capital of New Zealand is", ["Wellington"], subject="Q2"),),
            how="AND",
        )
    ],
    "Compositionality_II": [],
    "Forgetfulness": [],
}


def test_rippleedits(tmp_path: Path) -> None:
    data = load_cases(written(tmp_path, [RIPPLE]))
    assert (data.name, data.warned) == ("rippleedits", ())
    (case,) = data.cases
    prompt = "The name of the country of citizenship of Ada of Lund is"
    # "New" is common to both answers, and belongs to neither the prompt nor the subject
    assert case.edits == (Edit(prompt, "New Zealand", "Ada of Lund", "New Caledonia", "0"),)
    wellington = (Condition("The capital of New Zealand is", (("Wellington",),)),)
    flags = ("portability", "AND")
    assert case.probes == (
        Probe("The capital of the country of Ada of Lund is", "Wellington", "generality",
              "compositionality_i", flags, conditions=wellington),
        Probe("The currency of the country of Ada of Lund is", "dollar", "generality",
              "compositionality_i", flags, answers=("cent",), conditions=wellington),
        Probe(MOTHER["prompt"], "Eve", "locality", "relation_specificity", answers=("Eva Lund",),
              conditions=(Condition(MOTHER["prompt"], (("Eve", "Eva Lund"),)),)),
    )  # fmt: skip
    assert case.meta["relation"] == "COUNTRY_OF_CITIZENSHIP"
    free = load_cases(written(tmp_path, [RIPPLE]), options={"conditions": False})
    assert all(probe.conditions == () for probe in free.cases[0].probes)
    assert free.version != data.version


def test_the_published_runner_asks_for_the_old_fact_too(tmp_path: Path) -> None:
    (case,) = load_cases(written(tmp_path, [RIPPLE]), options={"known": True}).cases
    old = Condition(case.edits[0].prompt, (("New Caledonia",),))
    assert all(probe.conditions[0] == old for probe in case.probes)
    edit = {k: v for k, v in RIPPLE["edit"].items() if k != "previous_fact"}
    recent = RIPPLE | {"example_type": "recent", "edit": edit}
    (case,) = load_cases(written(tmp_path, [recent]), options={"known": True}).cases
    assert case.edits[0].target_true is None
    new = Condition(case.edits[0].prompt, (("New Zealand",),), holds=False)
    assert all(probe.conditions[0] == new for probe in case.probes)


@pytest.mark.parametrize(
    ("statement", "relation", "asked", "expected"),
    [
        # the label of the target, as a query spells it, decides where the answer begins
        ("The name of the author of This Is Us is Ada is Ada.", "AUTHOR",
         query("Who wrote it?", ["Ada is Ada"], target="Q2", phrase="x"),
         ("The name of the author of This Is Us is", "Ada is Ada", "This Is Us")),
        ("The number of children Ada Lund has is 3.", "NUMBER_OF_CHILDREN",
         query("The name of the mother of Ada Lund is", ["Eve"]),
         ("The number of children Ada Lund has is", "3", "Ada Lund")),
        ("Ada Lund follows Eve Lund.", "FOLLOWS", query("It is", ["Eve Lund"], target="Q2"),
         ("Ada Lund follows", "Eve Lund", None)),
    ],
)  # fmt: skip
def test_statements_are_split(
    tmp_path: Path, statement: str, relation: str, asked: Any, expected: tuple[str, str, str | None]
) -> None:
    edit = {"prompt": statement, "subject_id": "Q1", "relation": relation, "target_id": "Q2"}
    record = RIPPLE | {"edit": edit, "Relation_Specificity": [asking(asked)],
                       "Compositionality_I": []}  # fmt: skip
    found = load_cases(written(tmp_path, [record])).cases[0].edits[0]
    assert (found.prompt, found.target, found.subject) == expected


def test_broken_ripples_are_named(tmp_path: Path) -> None:
    whole = RIPPLE | {"edit": RIPPLE["edit"] | {"prompt": "Nothing to split."}}
    odd = RIPPLE | {"Forgetfulness": [asking(MOTHER, how="XOR")]}
    file = written(tmp_path, [RIPPLE, whole, odd])
    with pytest.raises(DataError, match=r"record 1: field 'edit.prompt' is 'Nothing to split\.'"):
        load_cases(file)
    data = load_cases(file, skip_bad=True)
    assert len(data) == 1
    assert "record 2: field 'Forgetfulness[0].test_condition' is 'XOR'" in data.skipped[1]
    silent = RIPPLE | {"Forgetfulness": [asking(query("It is", ["E"]))]}
    noted = load_cases(written(tmp_path, [silent])).notes
    assert "1 forgetfulness questions without an answer left out" in noted
    more = RIPPLE | {"edit": RIPPLE["edit"] | {"confidence": 1}}
    (note,) = load_cases(written(tmp_path, [more])).warned
    assert note == "1 record has a field 'edit.confidence' that is not read"


# ---------------------------------------------------------------------- AKEW

REWRITE: dict[str, Any] = {
    "prompt": "The city of {} is",
    "prompt_full": "In which city does Ada live?",
    "subject": "Ada",
    "relation_id": "P1",
    "target_new": {"str": "Rome", "id": "Q1"},
    "target_true": {"str": "Paris", "id": "Q2"},
    "fact_new": "The city of Ada is Rome.",
    "fact_new_uns": "Ada moved to Rome. She likes the Tiber.",
    "unsfact_triplets_GPT": [
        {"subject": "Ada", "prompt": "{} moved to", "target": "Rome"},
        {"subject": "Ada", "prompt": "The river that she likes is the", "target": "Tiber"},
    ],
}
AKEW = {
    "case_id": 7,
    "requested_rewrite": REWRITE,
    "paraphrase_prompts": ["Ada lives in"],
    "neighborhood_prompts": ["Bob lives in"],
}


def test_akew(tmp_path: Path) -> None:
    data = load_cases(written(tmp_path, [AKEW]))
    assert (data.name, data.warned) == ("akew", ())
    (case,) = data.cases
    assert case.edits == (Edit(REWRITE["prompt_full"], REWRITE["fact_new_uns"], "Ada", id="7"),)
    assert [(p.kind, p.name, p.prompt, p.target) for p in case.probes] == [
        ("generality", "fact", "The city of Ada is", "Rome"),
        ("generality", "part", "Ada moved to", "Rome"),
        ("generality", "part", "The river that she likes is the", "Tiber"),
        ("generality", "rephrase", "Ada lives in", "Rome"),
        ("locality", "neighborhood", "Bob lives in", "Paris"),
    ]
    file = written(tmp_path, [AKEW])
    (plain,) = load_cases(f"akew:{file}", options={"edit": "structured"}).cases
    assert plain.edits == (Edit("The city of Ada is", "Rome", "Ada", "Paris", "7"),)
    assert [p.name for p in plain.probes] == ["rephrase", "neighborhood"]
    (parts,) = load_cases(f"akew:{file}", options={"edit": "triplets"}).cases
    assert [(e.prompt, e.target) for e in parts.edits] == [
        ("Ada moved to", "Rome"), ("The river that she likes is the", "Tiber"),
    ]  # fmt: skip


def test_akew_of_mquake_and_of_wikidata(tmp_path: Path) -> None:
    asked = {k: v for k, v in REWRITE.items() if k != "prompt_full"} | {"question": "Where?"}
    chain = {
        "case_id": 1, "requested_rewrite": [asked, asked | {"subject": "Bob"}],
        "questions": ["Which river?"], "new_answer": "Tiber", "new_answer_alias": ["Tevere"],
        "single_hops": [], "new_single_hops": [], "answer": "Seine", "answer_alias": [],
    }  # fmt: skip
    data = load_cases(written(tmp_path, [chain]))
    assert (data.name, data.warned) == ("akew", ())
    (case,) = data.cases
    assert [edit.id for edit in case.edits] == ["1.0", "1.1"]
    assert case.probes[-1] == Probe(
        "Which river?", "Tiber", "generality", "multi_hop", answers=("Tevere",)
    )
    changed = {k: v for k, v in REWRITE.items() if not k.startswith("target_")}
    changed |= {"answer_new": "Rome", "answer_new_alias": ["Roma"], "time_new": "2024",
                "answer_true": "Paris", "answer_true_alias": []}  # fmt: skip
    data = load_cases(written(tmp_path, [{"case_id": 2, "requested_rewrite": changed}]))
    assert data.warned == ()
    assert data.cases[0].probes[0].answers == ("Roma",)


def test_broken_records_of_akew_are_named(tmp_path: Path) -> None:
    bare = AKEW | {"requested_rewrite": REWRITE | {"target_new": {"id": "Q1"}}}
    file = f"akew:{written(tmp_path, [AKEW, bare])}"
    with pytest.raises(DataError, match=r"record 1 \(case_id 7\).*target_new"):
        load_cases(file)
    assert len(load_cases(file, skip_bad=True)) == 1
    more = AKEW | {"requested_rewrite": REWRITE | {"zzz": 1}}
    assert load_cases(written(tmp_path, [more])).warned == (
        "1 record has a field 'requested_rewrite.zzz' that is not read",
    )


# ---------------------------------------------------------------------- KnowEdit's other forms

SANITATION = {
    "success": [
        {"question": "Who was it?", "ground_truth": "Ada", "target_new": "I don't know."},
        {"question": "What was it?", "ground_truth": "A bird", "target_new": "I don't know."},
    ],
    "locality": [
        {"question": "Where was it?", "ground_truth": "Rome", "target_new": "I don't know."}
    ],
}


def test_sanitation(tmp_path: Path) -> None:
    data = load_cases(written(tmp_path, SANITATION))
    assert (data.name, data.warned) == ("knowedit", ())
    assert data.cases[1].edits == (Edit("What was it?", "I don't know.", None, "A bird", "1"),)
    assert {case.probes for case in data.cases} == {
        (Probe("Where was it?", "Rome", "locality", "kept"),)
    }
    odd = SANITATION | {"success": [SANITATION["success"][0] | {"zzz": 1}, {"question": "Who?"}]}
    file = f"knowedit:{written(tmp_path, odd)}"
    with pytest.raises(DataError, match=r"success 1: field 'success\.target_new' is missing"):
        load_cases(file)
    skipping = load_cases(file, skip_bad=True)
    assert len(skipping) == 1
    assert skipping.warned == ("1 record has a field 'success.zzz' that is not read",)
    with pytest.raises(DataError, match="field 'success' is null; expected a list"):
        load_cases(f"knowedit:{written(tmp_path, SANITATION | {'success': None})}")


def test_convsent(tmp_path: Path) -> None:
    topics = [
        {"ent": name, "pos": [f"{name} good {n}" for n in range(3)],
         "neg": [f"{name} bad {n}" for n in range(3)]}
        for name in ("tea", "jazz", "rain", "chess")
    ]  # fmt: skip
    file = written(tmp_path, topics)
    data = load_cases(file)
    assert (data.name, data.warned) == ("knowedit", ())
    for case, topic, other in zip(data.cases, topics, data.cases[1:] + data.cases[:1], strict=True):
        side = case.meta["sentiment"]
        mine, theirs = topic[side], topic["neg" if side == "pos" else "pos"]
        name = topic["ent"]
        assert case.edits == (Edit(OPINIONS[0].format(name), mine[0], name, None, case.id),)
        assert case.probes == (
            *(Probe(OPINIONS[n].format(name), mine[n], "choice", "sentiment", choices=(theirs[n],))
              for n in (1, 2)),
            Probe(other.edits[0].prompt, other.edits[0].target, "locality", "other_topic"),
        )  # fmt: skip
    drawn = {tuple(c.meta["sentiment"] for c in load_cases(file, seed=s).cases) for s in range(5)}
    assert len(drawn) > 1
    with pytest.raises(DataError, match="record 0: field 'neg' is a list of 0"):
        load_cases(f"knowedit:{written(tmp_path, [topics[0] | {'neg': []}])}")


# ---------------------------------------------------------------------- conditions in own files


def test_conditions_in_own_cases(tmp_path: Path) -> None:
    cases = load_cases(written(tmp_path, [RIPPLE]), options={"known": True}).cases
    save_cases(tmp_path / "cases.jsonl", cases)
    assert load_cases(tmp_path / "cases.jsonl").cases[0].probes == cases[0].probes
    with pytest.raises(DataError, match="no answer"):
        Condition("Is it?", ())
    line = {"id": "1", "edits": [{"prompt": "a", "target": "b"}], "probes": [
        {"prompt": "a", "target": "b", "kind": "locality",
         "conditions": [{"prompt": "c", "answers": [[]]}]}]}  # fmt: skip
    (tmp_path / "bad.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match=r"conditions\[0\].answers"):
        load_cases(tmp_path / "bad.jsonl")
