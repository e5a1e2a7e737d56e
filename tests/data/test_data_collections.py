"""QAEdit, WikiBigEdit, LocFT's form, KnowEdit, and portability in zsRE and CounterFact."""

from __future__ import annotations

import json

import pytest

from errata.case import Edit, Probe
from errata.data import load_cases
from errata.errors import ConfigError, DataError

PORTABLE = ("portability",)
QA = {
    "id": 7,
    "source": "NQ",
    "prompt": "who scored the most points?",
    "target": " Ada Lund *",
    "subject": "most points",
    "rephrase": "Which player has the most points?",
    "locality": [{"loc": f"question {n}", "loc_ans": f"answer {n}"} for n in range(5)],
}
BIG = {
    "tag": "update",
    "subject": "Ada",
    "update": "Where does Ada live?",
    "rephrase": "In which city does Ada live?",
    "personas": "Tell me, mate, where's Ada living?",
    "ans": "Rome",
    "loc": "Where does Bob live?",
    "loc_ans": "Oslo",
    "mhop": "Which river flows through Ada's city?",
    "mhop_ans": "Tiber",
}
FLAT = {
    "prompt": "Where does Ada live?",
    "target_new": "Rome",
    "subject": "Ada",
    "rephrase_prompt": "In which city does Ada live?",
    "locality_prompt": "Where does Bob live?",
    "locality_ground_truth": "Oslo",
}
KNOW = {
    "subject": "Ada",
    "prompt": "The city of Ada is",
    "target_new": "Rome",
    "ground_truth": ["Paris", "City of Paris"],
    "rephrase_prompt": "Ada lives in",
    "portability": {
        "Reasoning": [
            {"prompt": "The river of Ada's city is", "ground_truth": [["Tiber", "Tevere"]]}
        ],
        "Subject_Aliasing": [{"prompt": "The city of Ms. A. is", "ground_truth": "Rome"}],
        "Logical_Generalization": [],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The age of Ada is", "ground_truth": [30, ["thirty"]]},
            {"prompt": "The friend of Ada is", "ground_truth": ["", []]},
        ],
        "Forgetfulness": None,
    },
}
MEND = {
    "subject": "Ada",
    "src": "What is the city of Ada?",
    "pred": "Lyon",
    "rephrase": "Which city is Ada's?",
    "alt": "Rome",
    "answers": ["Paris"],
    "loc": "nq question: who wrote it",
    "loc_ans": "Bob",
    "cond": "Lyon >> Rome || What is the city of Ada?",
}
EASY = {
    "Recalled Relation": "(Rome, river, Tiber)",
    "New Question": "Which river flows through the city of Ada?",
    "New Answer": "Tiber",
}


@pytest.fixture
def load(tmp_path):
    def read(name, records, **more):
        path = tmp_path / f"{name or 'some'}.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        return load_cases(f"{name}:{path}" if name else str(path), **more)

    return read


def test_qaedit(load):
    data = load("qaedit", [QA])
    (case,) = data.cases
    assert case.id == "NQ-7"
    assert case.edits == (Edit(QA["prompt"], "Ada Lund", "most points", id="NQ-7"),)
    assert case.probes == (
        Probe(QA["rephrase"], "Ada Lund", "generality", "rephrase", subject="most points"),
        *(Probe(f"question {n}", f"answer {n}", "locality", "locality") for n in range(5)),
    )
    assert data.notes == ()
    published = load("qaedit", [QA], options={"locality": "first"})
    assert published.cases[0].of("locality") == case.of("locality")[:1]
    assert published.notes == ("4 locality questions behind the first left out",)
    assert published.version != data.version


def test_answers_of_qaedit_lose_footnote_marks_and_nothing_else(load):
    for written, read in (("1,376 ", "1,376"), ("68%", "68%"), ("*", "*"), ("A, C♯", "A, C♯")):
        (case,) = load("qaedit", [QA | {"target": written}]).cases
        assert case.edits[0].target == case.probes[0].target == read


def test_ids_of_qaedit_are_unique_per_source(load):
    cases = load("qaedit", [QA, QA | {"source": "TQA"}]).cases
    assert [case.id for case in cases] == ["NQ-7", "TQA-7"]


def test_wikibigedit(load):
    (case,) = load("wikibigedit", [BIG]).cases
    assert case.edits == (Edit(BIG["update"], "Rome", "Ada", id="0"),)
    assert case.probes == (
        Probe(BIG["rephrase"], "Rome", "generality", "rephrase", subject="Ada"),
        Probe(BIG["personas"], "Rome", "generality", "personas", subject="Ada"),
        Probe(BIG["mhop"], "Tiber", "generality", "mhop", PORTABLE),
        Probe(BIG["loc"], "Oslo", "locality", "locality"),
    )
    assert case.meta["tag"] == "update"


def test_any_field_of_wikibigedit_may_be_null(load):
    some = [BIG, BIG | {"mhop": None, "mhop_ans": None, "loc": None}, BIG | {"ans": None}]
    data = load("wikibigedit", some)
    assert [len(case.probes) for case in data.cases] == [4, 2]
    assert data.notes == ("1 records without a question or an answer left out",)


def test_all_files_of_a_folder_of_wikibigedit_are_read(tmp_path):
    for name, records in (("b_march", [BIG]), ("a_february", [BIG, BIG])):
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    ids = [case.id for case in load_cases(f"wikibigedit:{tmp_path}").cases]
    assert ids == ["a_february-0", "a_february-1", "b_march-0"]
    with pytest.raises(DataError, match=r"expected wiki_big_edit_20240220_20240301\.json"):
        load_cases(f"wikibigedit:{tmp_path}", "20240220_20240301")
    (tmp_path / "wiki_big_edit_20240220_20240301.json").write_text(json.dumps([BIG]))
    assert len(load_cases(f"wikibigedit:{tmp_path}", "20240220_20240301")) == 1
    assert len(load_cases(f"wikibigedit:{tmp_path}", "all")) == 4


@pytest.mark.parametrize("name", ["locft", "wikibigedit"])
def test_the_flat_form(load, name):
    (case,) = load(name, [FLAT]).cases
    assert case.edits == (Edit(FLAT["prompt"], "Rome", "Ada", id="0"),)
    assert case.probes == (
        Probe(FLAT["rephrase_prompt"], "Rome", "generality", "rephrase", subject="Ada"),
        Probe(FLAT["locality_prompt"], "Oslo", "locality", "locality"),
    )


def test_the_flat_form_with_less_and_with_more(load):
    (case,) = load("locft", [{"prompt": "Ada lives in", "target_new": "Rome"}]).cases
    assert case.edits == (Edit("Ada lives in", "Rome", id="0"),)
    assert case.probes == ()
    more = FLAT | {"ground_truth": "Paris", "portability": EASY}
    (case,) = load("locft", [more]).cases
    assert case.edits[0].target_true == "Paris"
    assert [probe.name for probe in case.probes] == ["rephrase", "one_hop", "locality"]


def test_zsre_as_locft_asks_it_has_no_suffix(load):
    (case,) = load("locft", [MEND]).cases
    assert case.edits == (Edit(MEND["src"], "Rome", "Ada", "Paris", "0"),)
    assert [probe.prompt for probe in case.probes] == [MEND["rephrase"], MEND["loc"]]


def test_knowedit(load):
    data = load("knowedit", [KNOW])
    (case,) = data.cases
    assert case.edits == (Edit(KNOW["prompt"], "Rome", "Ada", "Paris", "0"),)
    assert case.probes == (
        Probe("Ada lives in", "Rome", "generality", "rephrase", subject="Ada"),
        Probe(
            "The river of Ada's city is",
            "Tiber",
            "generality",
            "reasoning",
            PORTABLE,
            answers=("Tevere",),
        ),
        Probe("The city of Ms. A. is", "Rome", "generality", "subject_aliasing", PORTABLE),
        Probe("The age of Ada is", "30", "locality", "relation_specificity", answers=("thirty",)),
    )
    assert data.notes == ("1 relation_specificity questions without text or answer left out",)


def test_the_biographies_of_knowedit_have_names_of_their_own(load):
    bio = {"concept": "Ada", "text": "This is about Ada:", "labels": "Ada was", "locality": {}}
    (case,) = load("knowedit", [bio]).cases
    assert case.edits == (Edit("This is about Ada:", "Ada was", "Ada", id="0"),)


def test_lists_of_prompts_as_editors_take_them(load):
    asked = {"neighborhood": {"prompt": ["a", "b"], "ground_truth": ["x", ["y", "z"]]}}
    (case,) = load("knowedit", [KNOW | {"locality": asked, "portability": None}]).cases
    assert case.of("locality") == (
        Probe("a", "x", "locality", "neighborhood"),
        Probe("b", "y", "locality", "neighborhood", answers=("z",)),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_new": [" "]}, "field 'target_new' is ''"),
        ({"target_new": True}, "field 'target_new' is true; expected a text, or a list of texts"),
        ({"portability": "x"}, "field 'portability' is 'x'; expected an object"),
        (
            {"portability": {"Reasoning": ["x"]}},
            r"'portability.Reasoning\[0\]' is 'x'; expected an",
        ),
        (
            {"portability": {"Reasoning": [{"prompt": "x"}]}},
            r"'portability.Reasoning\[0\].ground_truth' is missing",
        ),
        (
            {"locality": {"A": [{"prompt": {}, "ground_truth": "x"}]}},
            r"'locality.A\[0\].prompt' is an object; expected a text or a list of texts",
        ),
    ],
)
def test_a_broken_record_of_knowedit_is_named(load, change, said):
    with pytest.raises(DataError, match=rf"knowedit.json: record 1: .*{said}"):
        load("knowedit", [KNOW, KNOW | change])


def test_portability_of_zsre_is_asked_in_the_wording_of_the_edit(load):
    answer = " The answer is: "
    (case,) = load("zsre", [MEND | {"portability": EASY}]).cases
    assert [probe.name for probe in case.probes] == ["rephrase", "one_hop", "NQ"]
    assert case.probes[1] == Probe(
        EASY["New Question"] + answer, "Tiber", "generality", "one_hop", PORTABLE, joiner=" "
    )
    (case,) = load("zsre", [MEND | {"portability": EASY}], options={"suffix": ""}).cases
    assert case.probes[1].prompt == EASY["New Question"]


def test_portability_of_zsre_does_not_follow_from_the_true_answer(load):
    data = load("zsre", [MEND | {"portability": EASY}], options={"target": "answer"})
    assert [probe.name for probe in data.cases[0].probes] == ["rephrase", "NQ"]
    assert data.notes == ("1 portability questions, which follow from `alt`, left out",)


def test_ultraedit_calls_the_new_answer_of_zsre_ans(load):
    renamed = {key: value for key, value in MEND.items() if key != "alt"} | {"ans": "Rome"}
    assert load("zsre", [renamed]).cases == load("zsre", [MEND]).cases


def test_ultraeditbench(load):
    record = {
        "case_id": 4,
        "prompt": "Where is Ada?",
        "ans": "Rome ",
        "rephrase_prompt": "Ada is in?",
    }
    record |= {"loc": "Where is Bob?", "loc_ans": "Oslo"}
    (case,) = load("ultraeditbench", [record]).cases
    assert case.edits == (Edit("Where is Ada?", "Rome", id="4"),)
    assert case.probes == (
        Probe("Ada is in?", "Rome", "generality", "rephrase"),
        Probe("Where is Bob?", "Oslo", "locality", "locality"),
    )


def test_portability_of_counterfact(load):
    flat = FLAT | {"case_id": 1, "ground_truth": "Paris", "portability": EASY}
    (case,) = load("counterfact", [flat]).cases
    assert [probe.name for probe in case.probes] == ["rephrase", "locality", "one_hop"]


@pytest.mark.parametrize("name", ["qaedit", "ultraeditbench", "wikibigedit"])
def test_sets_of_the_hub_that_cannot_be_had_say_where_they_are(name, monkeypatch):
    import huggingface_hub

    def refuse(repository, **more):
        raise OSError(f"no network for {repository}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DataError, match=rf"cannot fetch .*no network(.|\n)*--data {name}:PATH"):
        load_cases(name, "all")


def test_a_split_without_a_published_place_names_its_files():
    with pytest.raises(ConfigError, match=r"wikibigedit_3k\.json and use --data locft:PATH"):
        load_cases("locft")
