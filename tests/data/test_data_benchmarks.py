"""zsRE, CounterFact and MQuAKE: the mapping of every form, on small files written by hand."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

from errata.case import Edit, Probe
from errata.data import datasets, load_cases
from errata.errors import ConfigError, DataError

MEND = {
    "subject": "Ada",
    "src": "What is the city of Ada?",
    "pred": "Lyon",
    "rephrase": "Which city is Ada's?",
    "alt": "Rome",
    "answers": ["Paris", "City of Paris"],
    "loc": "nq question: who wrote it",
    "loc_ans": "Bob",
    "cond": "Lyon >> Rome || What is the city of Ada?",
}
ROW = {
    "input": "Where is A?",
    "prediction": "x",
    "alternatives": ["b", "c", "d"],
    "filtered_rephrases": ["Where is A?", "A is where?", "Which place holds A?"],
    "output": [{"answer": "true", "provenance": []}, {"answer": "also"}],
}
FLAT = {
    "case_id": 10,
    "prompt": "BBC One, by",
    "target_new": "Sega",
    "subject": "BBC One",
    "ground_truth": "BBC",
    "rephrase_prompt": "Nothing. BBC One is owned by",
    "locality_prompt": "BBC Radio, by",
    "locality_ground_truth": "BBC",
}
NESTED = {
    "case_id": 34,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "In {braces}, {} worked in",
        "relation_id": "P937",
        "target_new": {"str": "Oslo", "id": "Q1"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "subject": "L {0} C",
    },
    "paraphrase_prompts": ["a", "b"],
    "neighborhood_prompts": ["n1", "n2", "n3"],
    "attribute_prompts": ["t1"],
    "generation_prompts": ["g1", "g2"],
}
# Ada is a citizen of Peru (edited) -> Peru's capital (kept) -> that city's river (edited)
CHAIN = {
    "case_id": 7,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Peru", "id": "Q2"},
            "target_true": {"str": "Chad", "id": "Q3"},
            "subject": "Ada",
            "question": "What is the country of Ada?",
        },
        {
            "prompt": "The river of {} is",
            "relation_id": "P9",
            "target_new": {"str": "Nile", "id": "Q6"},
            "target_true": {"str": "Po", "id": "Q7"},
            "subject": "Lima",
            "question": "What is the river of Lima?",
        },
    ],
    "questions": ["q one?", "q two?", "q three?"],
    "answer": "Po",
    "answer_alias": ["Padus"],
    "new_answer": "Nile",
    "new_answer_alias": ["the Nile"],
    "single_hops": [],
    "new_single_hops": [
        {"question": "c?", "cloze": "Ada is a citizen of", "answer": "Peru", "answer_alias": []},
        {"question": "k?", "cloze": "The capital of Peru is", "answer": "Lima", "answer_alias": []},
        {"question": "r?", "cloze": "The river of Lima is", "answer": "Nile", "answer_alias": []},
    ],
    "orig": {
        "triples": [],
        "triples_labeled": [],
        "new_triples": [["Q1", "P27", "Q2"], ["Q2", "P36", "Q5"], ["Q5", "P9", "Q6"]],
        "new_triples_labeled": [
            ["Ada", "citizen", "Peru"],
            ["Peru", "capital", "Lima"],
            ["Lima", "river", "Nile"],
        ],
        "edit_triples": [["Q1", "P27", "Q2"], ["Q5", "P9", "Q6"]],
    },
}


def dump(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def load(name, path, value, **keywords):
    return load_cases(f"{name}:{dump(path, value)}", **keywords)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "records.json"


def test_zsre_json(file):
    (case,) = load("zsre", file, [MEND]).cases
    answer = " The answer is: "
    assert case.id == "0"
    assert case.edits == (Edit(MEND["src"] + answer, "Rome", "Ada", "Paris", "0", joiner=" "),)
    assert case.probes == (
        Probe(
            MEND["rephrase"] + answer,
            "Rome",
            "generality",
            "rephrase",
            subject="Ada",
            joiner=" ",
        ),
        Probe("nq question: who wrote it", "Bob", "locality", "NQ"),
    )


def test_zsre_options(file):
    (case,) = load("zsre", file, [MEND], options={"suffix": "", "target": "answer"}).cases
    assert (case.edits[0].prompt, case.edits[0].target) == (MEND["src"], "Paris")
    assert case.probes[0].target == "Paris"
    with pytest.raises(ConfigError, match=r"unknown setting 'sufix'\nDid you mean 'suffix'"):
        load("zsre", file, [MEND], options={"sufix": ""})


def test_zsre_without_answers_takes_the_prediction_as_true(file):
    (case,) = load("zsre", file, [MEND | {"answers": []}]).cases
    assert case.edits[0].target_true == "Lyon"


def test_zsre_jsonl_draws_one_alternative_and_one_rephrasing(tmp_path):
    path = tmp_path / "structured_zeroshot-dev-new_annotated_final.jsonl"
    rows = [
        ROW,
        ROW | {"alternatives": []},
        ROW | {"filtered_rephrases": ["Where is A?"]},
        *[ROW] * 30,
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_cases(f"zsre:{tmp_path}", seed=1)
    assert len(loaded) == 31
    assert loaded.skipped == ()
    assert loaded.notes == ("2 rows without alternatives or rephrased questions left out",)
    suffix = " The answer is: "
    targets, prompts = set(), set()
    for case in loaded.cases:
        (edit,), (probe,) = case.edits, case.probes
        assert (edit.prompt, edit.subject) == ("Where is A?" + suffix, None)
        assert edit.target_true == "true"
        assert probe.target == edit.target
        targets.add(edit.target)
        prompts.add(probe.prompt)
    assert targets == {"b", "c", "d"}
    assert prompts == {"A is where?" + suffix, "Which place holds A?" + suffix}
    # what a row becomes depends on the seed and the row, not on how many are loaded
    few = load_cases(f"zsre:{tmp_path}", seed=1, limit=4).cases
    assert few == loaded.cases[:4]


def test_counterfact_flat(file):
    (case,) = load("counterfact", file, [FLAT]).cases
    assert case.edits == (Edit("BBC One, by", "Sega", "BBC One", "BBC", "10"),)
    assert case.probes == (
        Probe(
            FLAT["rephrase_prompt"], "Sega", "generality", "rephrase", foil="BBC", subject="BBC One"
        ),
        Probe("BBC Radio, by", "BBC", "locality", "locality", foil="Sega"),
    )


def test_counterfact_flat_with_lists(file):
    record = {k: v for k, v in FLAT.items() if k != "ground_truth"} | {
        "target_true": "BBC",
        "rephrase_prompt": ["a", "b"],
        "locality_prompt": ["c", "d", "e"],
        "subject_rephrase": ["The BBC One"],
    }
    (case,) = load("counterfact", file, [record]).cases
    assert [p.prompt for p in case.probes] == ["a", "b", "c", "d", "e"]
    assert case.meta["subject_rephrase"] == ("The BBC One",)


def test_counterfact_nested_splices_the_subject(file):
    (case,) = load("counterfact", file, [NESTED]).cases
    subject = "L {0} C"
    assert case.edits == (Edit("In {braces}, L {0} C worked in", "Oslo", subject, "Paris", "34"),)
    assert case.of("generality") == tuple(
        Probe(p, "Oslo", "generality", "rephrase", foil="Paris", subject=subject) for p in "ab"
    )
    assert case.of("locality") == tuple(
        Probe(f"n{i}", "Paris", "locality", "neighborhood", foil="Oslo") for i in (1, 2, 3)
    )
    assert case.meta["relation_id"] == "P937"
    assert case.meta["generation_prompts"] == ("g1", "g2")
    assert case.meta["attribute_prompts"] == ("t1",)


def test_mquake_edits_everything_and_asks_three_questions(file):
    (case,) = load("mquake", file, [CHAIN]).cases
    assert case.edits == (
        Edit("Ada is a citizen of", "Peru", "Ada", "Chad", "7.0"),
        Edit("The river of Lima is", "Nile", "Lima", "Po", "7.1"),
    )
    hop = Edit("The capital of Peru is", "Lima", "Peru")
    assert case.probes == tuple(
        Probe(q, "Nile", "generality", "multi_hop", hops=(hop,), answers=("the Nile",))
        for q in CHAIN["questions"]
    )
    assert case.meta["answer"] == "Po"
    assert case.meta["conflicts"] == ()


def test_mquake_options(file):
    options = {"suffix": " The answer is:", "hops": "question"}
    (case,) = load("mquake", file, [CHAIN], options=options).cases
    assert case.probes[0].prompt == "q one? The answer is:"
    # the head is not in this question, so the hop has no subject
    assert case.probes[0].hops == (Edit("k? The answer is:", "Lima", None),)


def test_mquake_t_keeps_the_extended_answers(file):
    (case,) = load("mquake", file, [CHAIN | {"answer_extended": ["Po", "Adda"]}]).cases
    assert case.meta["answer_extended"] == ("Po", "Adda")
    assert case.probes[0].answers == ("the Nile",)


def test_mquake_notes_conflicting_cases(file):
    other = copy.deepcopy(CHAIN) | {"case_id": 8}
    other["orig"]["edit_triples"] = [["Q2", "P36", "Q99"]]
    other["orig"]["new_triples"][1] = ["Q2", "P36", "Q99"]
    loaded = load("mquake", file, [CHAIN, other])
    assert loaded.cases[0].meta["conflicts"] == ("8",)
    assert loaded.cases[1].meta["conflicts"] == ()
    assert "1 of 2 cases" in loaded.notes[0]
    assert load_cases(f"mquake:{file}", limit=1).notes == ()


def broken(record, path, value):
    record = copy.deepcopy(record)
    *parents, last = path
    inner = record
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("name", "record", "path", "value", "field"),
    [
        ("zsre", MEND, ("alt",), "", "'alt' is ''"),
        ("zsre", MEND, ("src",), None, "'src' is missing"),
        ("zsre", MEND, ("loc_ans",), " ", "'loc_ans' is ' '"),
        ("zsre", MEND, ("answers",), "Paris", "'answers' is 'Paris'; expected a list of texts"),
        ("counterfact", FLAT, ("target_new",), 3, "'target_new' is 3"),
        ("counterfact", FLAT, ("case_id",), None, "'case_id' is missing"),
        (
            "counterfact",
            NESTED,
            ("requested_rewrite", "target_new", "str"),
            None,
            "'requested_rewrite.target_new.str' is missing",
        ),
        (
            "counterfact",
            NESTED,
            ("requested_rewrite", "target_true"),
            "Paris",
            "'requested_rewrite.target_true' is 'Paris'; expected an object",
        ),
        (
            "counterfact",
            NESTED,
            ("requested_rewrite", "prompt"),
            "no place",
            "'requested_rewrite.prompt' is 'no place'; expected a text with exactly one {}",
        ),
        ("counterfact", NESTED, ("neighborhood_prompts", 1), "", "'neighborhood_prompts[1]' is ''"),
        (
            "mquake",
            CHAIN,
            ("requested_rewrite", 1, "target_new", "str"),
            "\n",
            "'requested_rewrite[1].target_new.str' is '\\n'",
        ),
        ("mquake", CHAIN, ("requested_rewrite",), [], "a list of at least 1 objects"),
        ("mquake", CHAIN, ("orig", "new_triples", 1), ["Q1"], "'orig.new_triples[1]'"),
        ("mquake", CHAIN, ("new_single_hops",), [], "'orig.new_triples' is a list of 3"),
        ("mquake", CHAIN, ("new_single_hops", 1, "cloze"), None, "'new_single_hops[1].cloze'"),
    ],
)
def test_a_broken_record_names_file_record_and_field(file, name, record, path, value, field):
    bad = broken(record, path, value)
    good = record | {"case_id": 1} if "case_id" in record else record
    with pytest.raises(DataError) as caught:
        load(name, file, [good, bad])
    assert f"{file}: record 1" in caught.value.message
    assert field in caught.value.message
    assert "--skip-bad" in str(caught.value)
    loaded = load_cases(f"{name}:{file}", skip_bad=True)
    assert len(loaded) == 1
    assert loaded.skipped == (caught.value.message,)


def test_repeated_case_ids_are_refused(file):
    with pytest.raises(DataError, match=r"id '10' is already used by record 0"):
        load("counterfact", file, [FLAT, FLAT])


def test_files_that_are_not_lists_of_records(file):
    with pytest.raises(DataError, match="holds an object; expected a list of records"):
        load("counterfact", file, {"a": 1})
    with pytest.raises(DataError, match="record 0: is 'x'; expected an object"):
        load("counterfact", file, ["x"])
    file.write_text('[{"case_id": 1,\n "prompt": "a')
    with pytest.raises(DataError, match=r":2: not valid JSON at column 12(.|\n)*ends too early"):
        load_cases(f"counterfact:{file}")
    file.write_bytes(b"[\xff]")
    with pytest.raises(DataError, match="not UTF-8"):
        load_cases(f"counterfact:{file}")


def test_folders_and_splits(tmp_path):
    dump(tmp_path / "counterfact-val.json", [FLAT])
    assert load_cases(f"counterfact:{tmp_path}").cases[0].id == "10"  # the only file there
    dump(tmp_path / "counterfact-train.json", [FLAT | {"case_id": 11}])
    assert load_cases(f"counterfact:{tmp_path}", "train").cases[0].id == "11"
    with pytest.raises(
        DataError, match=r"counterfact-train\.json, counterfact-val\.json; expected"
    ):
        load_cases(f"counterfact:{tmp_path}")
    with pytest.raises(ConfigError, match=r"no split 'trian'\nDid you mean 'train'"):
        load_cases(f"counterfact:{tmp_path}", "trian")
    with pytest.raises(DataError, match="no such file"):
        load_cases(f"counterfact:{tmp_path}/absent.json")


def test_the_version_is_of_the_bytes_and_the_mapping(file, tmp_path):
    version = load("zsre", file, [MEND]).version
    copied = load("zsre", tmp_path / "renamed.json", [MEND])
    assert copied.version == version
    assert len(version) == 64
    assert load("zsre", file, [MEND], options={"suffix": ""}).version != version
    assert load("zsre", file, [MEND, MEND]).version != version


def test_specs(tmp_path, file):
    with pytest.raises(ConfigError, match=r"unknown data set 'countrefact'\nDid you mean"):
        load_cases("countrefact")
    with pytest.raises(ConfigError, match="names no path"):
        load_cases("zsre:")
    with pytest.raises(ConfigError, match=r"Use --data FILE\.jsonl"):
        load_cases("jsonl")
    dump(file, [{"question": "a", "answer": "b"}])
    with pytest.raises(ConfigError, match=r"any known data set; which is it\?\nUse --data NAME:"):
        load_cases(str(file))


def test_every_data_set_can_be_listed_without_import():
    entries = datasets.entries
    assert set(entries) == {
        *("counterfact", "jsonl", "knowedit", "locft", "mquake", "qaedit", "rep", "uniedit"),
        *("akew", "rippleedits", "ultraeditbench", "unkebench", "wikibigedit", "world", "zsre"),
    }
    for entry in entries.values():
        assert isinstance(entry.facts["title"], str)
        assert isinstance(entry.facts["paper"], str)
        assert isinstance(entry.facts["splits"], tuple)
        assert entry.summary


def test_data_needs_neither_torch_nor_the_hub():
    code = (
        "import sys, errata.data; heavy = {'torch', 'transformers', 'huggingface_hub'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- parts of a file


def test_parts_of_a_file_never_share_a_record(tmp_path):
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([{**MEND, "src": f"Who is {i}?"} for i in range(10)]))

    def asked(part, **more):
        return [
            c.edits[0].prompt.split()[2] for c in load_cases(f"zsre:{path}{part}", **more).cases
        ]

    assert asked("[:3]") == ["0?", "1?", "2?"]
    assert asked("[7:]") == ["7?", "8?", "9?"]
    assert asked("[1::4]") == ["1?", "5?", "9?"]
    for seed in range(5):
        first, second = asked("[::2]", seed=seed, limit=4), asked("[1::2]", seed=seed, limit=4)
        assert len(first) == len(second) == 4
        assert not set(first) & set(second)
        assert all(int(name[0]) % 2 == 0 for name in first)
    whole, part = load_cases(f"zsre:{path}"), load_cases(f"zsre:{path}[0:10]")
    assert whole.version != load_cases(f"zsre:{path}[0:9]").version
    assert [c.id for c in whole.cases] == [c.id for c in part.cases]  # names stay the same
    assert part.source.endswith("records [0:10:1]")


def test_a_part_without_records(tmp_path):
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([MEND]))
    for part in ("[3:3]", "[4:2]", "[::0]"):
        with pytest.raises(ConfigError, match="takes no record"):
            load_cases(f"zsre:{path}{part}")
    with pytest.raises(DataError, match="no usable record"):
        load_cases(f"zsre:{path}[5:]")
