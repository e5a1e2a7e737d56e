"""Files under a wrong name or without one: known by the fields of their records."""

from __future__ import annotations

import itertools
import json

import pytest

from errata.case import Edit
from errata.data import datasets, load_cases, load_edits, resolve, sample_of
from errata.data._formats import first_record, format_of, marks_of, recognised
from errata.data._reading import read_records
from errata.errors import ConfigError, DataError

NAMES = sorted(name for name in datasets.entries if sample_of(name) is not None)
# a form that a data set reads under its own name although another has it too
SHARED = {("locft", "wikibigedit"), ("zsre", "locft"), ("rep", "counterfact")}


@pytest.fixture(params=NAMES)
def named(request, tmp_path):
    """A sample of each format under a name that says nothing."""
    name = request.param
    sample = sample_of(name)
    assert sample is not None
    if sample.is_dir():
        sample = next(iter(sorted(sample.rglob("*.json"))))
    path = tmp_path / f"records{sample.suffix}"
    path.write_bytes(sample.read_bytes())
    return name, path


def test_a_file_without_a_name_is_known_by_its_fields(named):
    name, path = named
    assert resolve(str(path)) == (name, path)
    data = load_cases(path)
    assert data.name == name
    assert data.cases == load_cases(f"{name}:{path}").cases
    told = () if name == "jsonl" else (f"taken as {name}, whose fields the file has",)
    assert data.notes[: len(told)] == told


def test_the_format_under_every_other_name_is_recognised(named):
    name, path = named
    for other in NAMES:
        if other == name or (name, other) in SHARED:
            continue
        with pytest.raises(DataError) as caught:
            load_cases(f"{other}:{path}")
        assert f"This looks like {name}: --data {name}:{path}" in str(caught.value), other
        with pytest.raises(DataError) as caught:
            load_cases(f"{other}:{path}", skip_bad=True)
        assert f"This looks like {name}: --data {name}:{path}" in str(caught.value), other


def test_what_maps_by_accident_is_refused_too(tmp_path):
    """LocFT's form needs no locality, so that KnowEdit's records would lose theirs."""
    path = tmp_path / "records.json"
    record = {"prompt": "p", "target_new": "t", "locality": {}, "portability": {}}
    path.write_text(json.dumps([record]), encoding="utf-8")
    with pytest.raises(DataError, match=r"the fields are those of knowedit, not of locft"):
        load_cases(f"locft:{path}")


def test_a_record_that_lacks_a_field_does_not_make_the_file_another(tmp_path):
    """Without its case_id a record of CounterFact has the fields of LocFT's form."""
    sample = json.loads(sample_of("rep").read_text(encoding="utf-8"))[:2]  # pyright: ignore
    del sample[1]["case_id"]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(sample), encoding="utf-8")
    with pytest.raises(DataError, match="field 'case_id' is missing") as caught:
        load_cases(f"rep:{path}")
    assert "looks like" not in str(caught.value)
    assert len(load_cases(f"rep:{path}", skip_bad=True)) == 1


def test_no_two_data_sets_have_the_same_marks():
    forms = [
        (name, frozenset(form)) for name, marks in marks_of(datasets).items() for form in marks
    ]
    for (one, form), (other, same) in itertools.combinations(forms, 2):
        assert one == other or form != same, (one, other)
    assert set(marks_of(datasets)) == set(datasets.entries) - {"world"}


def test_a_record_of_two_formats_is_told_apart_by_the_user(tmp_path, monkeypatch):
    both = {"a": 1, "b": 2}
    entries = datasets.entries
    for name, mark in (("qaedit", "a"), ("locft", "b")):
        monkeypatch.setitem(entries[name].facts, "marks", ((mark,),))
    assert recognised(both, datasets) == ("locft", "qaedit")
    path = tmp_path / "records.json"
    path.write_text(json.dumps([both]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"may be of locft or qaedit; which.*\nExample: locft:"):
        load_cases(path)


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "{}", "x", '[{"prompt": "a', "null", "[[[[", '"text"', "\ufeff[1]"]
)
def test_what_is_no_record_is_of_no_format(tmp_path, text):
    path = tmp_path / "records.json"
    path.write_text(text, encoding="utf-8")
    assert format_of(path, datasets) is None
    with pytest.raises(ConfigError, match="has not the fields of any known data set"):
        load_cases(path)


def test_a_first_record_longer_than_what_is_looked_at(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps([{"prompt": "p" * 100_000, "target": "t"}]), encoding="utf-8")
    assert format_of(path, datasets) == "jsonl"
    assert first_record(path)["target"] == "t"


def test_folders_are_known_by_their_first_file(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    sample = sample_of("mquake")
    assert sample is not None
    (folder / "MQuAKE-CF-3k-v2.json").write_bytes(sample.read_bytes())
    (tmp_path / "README.md").write_text("about them", encoding="utf-8")
    assert load_cases(folder).name == "mquake"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="which is it"):
        load_cases(empty)


def test_lists_and_lines_are_told_apart_by_how_they_begin(tmp_path):
    record = {"prompt": "p", "target_new": "t"}
    line = json.dumps(record)
    for name, text, keys in (
        ("a.json", f"[{line}, {line}]", ["0", "1"]),
        ("b.jsonl", f"{line}\n\n{line}\n", ["1", "3"]),
        ("c.json", f"\ufeff{line}\r\n{line}\n", ["1", "2"]),
        ("d.jsonl", f"  [{line},\n{line}]", ["0", "1"]),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert [
            record.key for record in read_records(path) if not isinstance(record, DataError)
        ] == keys
    path.write_text('{"a": {\n"b": 1}}', encoding="utf-8")
    (tmp_path / "e.json").write_text('{"a": {\n"b": 1}}', encoding="utf-8")
    with pytest.raises(DataError, match="holds an object; expected a list of records"):
        list(read_records(tmp_path / "e.json"))


def test_edits_are_taken_from_any_format(tmp_path):
    for name in NAMES:
        sample = sample_of(name)
        assert sample is not None
        edits = [edit for case in load_cases(f"{name}:sample").cases for edit in case.edits]
        assert load_edits(f"{name}:sample[:2]" if name == "qaedit" else f"{name}:sample") == (
            edits[:2] if name == "qaedit" else edits
        )
        if sample.is_file() and name != "jsonl":
            assert load_edits(sample) == edits
    path = tmp_path / "edits.txt"  # lines in a file of any name, as ever
    path.write_text('{"prompt": "p", "target": "t"}\n', encoding="utf-8")
    assert load_edits(path) == [Edit("p", "t")]
