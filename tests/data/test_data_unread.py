"""Fields that nothing is made of are counted and named, in every loader."""

from __future__ import annotations

import json
import logging

import pytest

from errata.data import datasets, load_cases, load_edits, sample_of
from errata.data._records import Record
from errata.data._tally import NAMED, Tally

NAMES = sorted(name for name in datasets.entries if sample_of(name) is not None)


def tallied(tally, value, *fields):
    record = Record(value, "file", "record 0")
    record.counted_by(tally)
    for field in fields:
        record.get(field) if field.endswith("!") else record.optional_text(field)
    record.count()


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_no_field_that_is_not_read_or_passed_over(name):
    assert not [note for note in load_cases(f"{name}:sample").notes if "not read" in note]


@pytest.mark.parametrize("name", NAMES)
def test_a_field_too_many_is_counted_and_named(name, tmp_path, caplog):
    sample = sample_of(name)
    assert sample is not None
    if sample.is_dir():
        sample = next(iter(sorted(sample.rglob("*.json"))))
    text = sample.read_text(encoding="utf-8")
    if sample.suffix == ".jsonl":
        records = [json.loads(line) for line in text.splitlines()]
        records = [record | {"zzz_extra": 1} for record in records[:-1]] + records[-1:]
        text = "\n".join(map(json.dumps, records))
    else:
        records = json.loads(text)
        entries = list(records.values()) if isinstance(records, dict) else records
        for entry in entries[:-1]:
            entry["zzz_extra"] = {"a": [1]}
        records = (
            {str(n): e for n, e in enumerate(entries)} if isinstance(records, dict) else records
        )
        text = json.dumps(records)
    count = len(records) - 1
    path = tmp_path / f"more{sample.suffix}"
    path.write_text(text, encoding="utf-8")
    if not count:
        pytest.skip("one record")
    have = "1 record has" if count == 1 else f"{count} records have"
    note = f"{have} a field 'zzz_extra' that is not read"
    with caplog.at_level(logging.WARNING, "errata.data"):
        data = load_cases(f"{name}:{path}")
    assert data.notes[-1] == note
    assert data.warned == (note,)
    assert caplog.messages == [f"{path}: {note}"]
    assert data.cases == load_cases(f"{name}:{path}").cases


def test_fields_inside_fields_are_named_by_their_path(tmp_path):
    sample = sample_of("knowedit")
    assert sample is not None
    records = json.loads(sample.read_text(encoding="utf-8"))
    for record in records:
        for questions in record["locality"].values():
            for question in questions:
                question["kind"] = "x"
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    (note,) = load_cases(f"knowedit:{path}").warned
    assert note == (
        "fields that are not read, with the records that have them:"
        " 'locality.Forgetfulness.kind' (24), 'locality.Relation_Specificity.kind' (15)"
    )


def test_edits_with_fields_of_other_programs(tmp_path, caplog):
    path = tmp_path / "edits.jsonl"
    lines = [{"prompt": "p", "target": "t", "comment": "mine"}, {"prompt": "q", "target": "t"}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with caplog.at_level(logging.WARNING, "errata.data"):
        assert len(load_edits(path)) == 2
    assert caplog.messages == [f"{path}: 1 record has a field 'comment' that is not read"]


def test_a_field_that_some_record_was_asked_for_counts_as_read():
    tally = Tally()
    tallied(tally, {"a": "1", "b": "2"}, "a")
    tallied(tally, {"a": "1", "b": "2"}, "b")
    assert tally.unread_notes() == []


def test_what_is_passed_over_is_not_named():
    tally = Tally(("a.*.b", "c"))
    tallied(tally, {"a": {"0": {"b": 1}, "1": {"b": {"x": 1}, "d": 2}}, "c": {"e": 1}})
    assert tally.unread_notes() == ["1 record has a field 'a.1.d' that is not read"]


def test_a_value_that_is_taken_as_it_is_counts_with_all_that_is_in_it():
    tally = Tally()
    record = Record({"meta": {"a": {"b": 1}}, "more": {"a": 1}}, "file", "record 0")
    record.counted_by(tally)
    record.get("meta")
    record.at("more")
    record.count()
    assert tally.unread_notes() == ["1 record has a field 'more.a' that is not read"]
    assert record.value["more"] == {"a": 1}  # now all of it was taken
    assert tally.unread_notes() == []


def test_many_fields_are_counted_rather_than_named():
    tally = Tally()
    tallied(tally, {f"field {n}": n for n in range(NAMED + 3)})
    (note,) = tally.unread_notes()
    assert note.endswith(" (1) and 3 more")
    assert note.count("field ") == NAMED


def test_broken_records_are_not_counted(tmp_path):
    path = tmp_path / "records.json"
    good = {"prompt": "p", "target_new": "t", "more": 1}
    path.write_text(json.dumps([good, good | {"target_new": ""}]), encoding="utf-8")
    data = load_cases(f"locft:{path}", skip_bad=True)
    assert data.warned == ("1 record has a field 'more' that is not read",)
