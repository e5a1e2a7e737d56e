"""errata's own JSONL: exact round trip, and every way in which a file can be broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MappingProxyType

import pytest

from errata.case import Case, Edit, Probe
from errata.data import load_cases, load_edits, save_cases, save_edits
from errata.errors import ConfigError, DataError

LINE = {"id": "a", "edits": [{"prompt": "p", "target": "t"}]}


def write(path, *lines, newline="\n"):
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes(newline.join(rows).encode() + newline.encode())
    return path


def test_cases_round_trip_exactly(tmp_path):
    hop = Edit("The currency of Peru is", "sol", "Peru", id="h")
    cases = (
        Case("1", (Edit("a b", "c"),)),
        Case(
            "two",
            (Edit("é\u2028 x", " t ", "é", "old", "e1"), Edit("q", "r")),
            (
                Probe("p", "t", "generality", "uni_gen", ("MH", "SER"), (hop, hop), 1),
                Probe("p", "t", "locality", "NQ", foil="f", answers=("x", "y"), subject="s"),
            ),
            MappingProxyType({"n": 1, "f": 0.1, "deep": MappingProxyType({"t": (1, ("a",))})}),
        ),
    )
    path = tmp_path / "cases.jsonl"
    save_cases(path, cases)
    loaded = load_cases(str(path))
    assert loaded.cases == cases
    assert loaded.name == "jsonl"
    save_cases(tmp_path / "again.jsonl", loaded.cases)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_edits_round_trip_exactly(tmp_path):
    edits = [Edit("a", "b"), Edit("c", "d", "c", "e", "7"), Edit("a", "b")]
    save_edits(tmp_path / "e.jsonl", edits)
    assert load_edits(tmp_path / "e.jsonl") == edits


def test_blank_lines_a_byte_order_mark_and_crlf_are_fine(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a", "target": "b", "id": 3}\r\n\r\n  \r\n')
    assert load_edits(path) == [Edit("a", "b", id="3")]


def test_probe_name_defaults_to_its_kind(tmp_path):
    probe = {"prompt": "p", "target": "t", "kind": "locality"}
    path = write(tmp_path / "c.jsonl", LINE | {"probes": [probe]})
    assert load_cases(path).cases[0].probes == (Probe("p", "t", "locality", "locality"),)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "a", "target": "b"', "not valid JSON"),
        ('{"prompt": "a", "target": "b', "not valid JSON"),
        ('["a"]', "is a list of 1; expected an object"),
        ('{"prompt": "a"}', "field 'target' is missing"),
        ('{"prompt": "a", "target": ""}', "field 'target' is ''"),
        ('{"prompt": " \\t", "target": "b"}', "field 'prompt' is ' \\t'"),
        ('{"prompt": "a", "target": 5}', "field 'target' is 5"),
        ('{"prompt": "a", "target": null}', "field 'target' is null"),
        ('{"prompt": "a", "target": "b", "subject": ""}', "field 'subject' is ''"),
        ('{"prompt": "a", "target": "\\ud800"}', "unpaired surrogates"),
        ('{"prompt": "a", "target": "b", "target": "c"}', "'target' occurs twice"),
        ('{"prompt": "a", "target": NaN}', "NaN is not JSON"),
        ('{"prompt": "a", "target": "b", "id": true}', "field 'id' is true"),
    ],
)
def test_a_broken_edit_names_file_line_and_field(tmp_path, line, expected):
    path = write(tmp_path / "e.jsonl", {"prompt": "x", "target": "y"}, "", line)
    with pytest.raises(DataError) as caught:
        load_edits(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message
    assert "3" in caught.value.message.replace(str(path), "")


def test_an_unknown_field_brings_the_closest_known_one(tmp_path):
    path = write(tmp_path / "e.jsonl", {"prompt": "x", "targte": "y"})
    with pytest.raises(DataError, match=r"line 1: unknown field 'targte'\nDid you mean 'target'"):
        load_edits(path)
    probe = {"prompt": "p", "target": "t", "kind": "localty"}
    with pytest.raises(DataError, match=r"'probes\[0\]\.kind' is 'localty'(.|\n)*'locality'"):
        load_cases(write(tmp_path / "c.jsonl", LINE | {"probes": [probe]}))
    edits = [{"prompt": "p", "target": "t", "subjct": "s"}]
    path = write(tmp_path / "d.jsonl", {"id": 1, "edits": edits})
    with pytest.raises(DataError, match=r"unknown field 'edits\[0\]\.subjct'"):
        load_cases(path)


@pytest.mark.parametrize("top_k", [0, 1.5, True, "5"])
def test_top_k_is_a_positive_whole_number(tmp_path, top_k):
    probe = {"prompt": "p", "target": "t", "kind": "locality", "top_k": top_k}
    with pytest.raises(DataError, match="top_k"):
        load_cases(write(tmp_path / "c.jsonl", LINE | {"probes": [probe]}))


def test_a_repeated_id_names_both_lines(tmp_path):
    path = write(tmp_path / "c.jsonl", LINE, LINE | {"id": "b"}, "", LINE)
    with pytest.raises(DataError, match="line 4: id 'a' is already used by line 1"):
        load_cases(path)
    edit = {"prompt": "p", "target": "t", "id": "x"}
    with pytest.raises(DataError, match="line 2: id 'x' is already used by line 1"):
        load_edits(write(tmp_path / "e.jsonl", edit, edit))


def test_wrong_encodings_name_the_line(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"prompt": "a", "target": "b"}\n{"prompt": "caf\xe9", "target": "b"}\n')
    with pytest.raises(DataError, match=r"e\.jsonl:2: not UTF-8: byte 0xe9 at byte 16"):
        load_edits(path)
    path.write_bytes('{"prompt": "a", "target": "b"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="looks like UTF-16"):
        load_edits(path)


def test_skip_bad_counts_and_lists(tmp_path):
    path = tmp_path / "c.jsonl"
    good = json.dumps(LINE).encode()
    blank = json.dumps({"id": "z", "edits": [{"prompt": "p", "target": " "}]}).encode()
    other = json.dumps(LINE | {"id": "b"}).encode()
    path.write_bytes(b"\n".join([good, b'{"id":', b'{"id": "\xff"}', good, blank, other]))
    with pytest.raises(DataError, match=r"c\.jsonl:2: not valid JSON(.|\n)*"):
        load_cases(path)
    loaded = load_cases(path, skip_bad=True)
    assert [case.id for case in loaded.cases] == ["a", "b"]
    assert len(loaded.skipped) == 4
    assert "c.jsonl:2: not valid JSON" in loaded.skipped[0]
    assert "c.jsonl:3: not UTF-8" in loaded.skipped[1]
    assert "already used by line 1" in loaded.skipped[2]
    assert "line 5: field 'edits[0].target' is ' '" in loaded.skipped[3]


def test_files_without_cases_are_refused(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\n")
    with pytest.raises(DataError, match="no usable record"):
        load_cases(path)
    with pytest.raises(DataError, match="no edit"):
        load_edits(path)
    with pytest.raises(DataError, match="'edits' is a list of 0; expected a list of at least 1"):
        load_cases(write(path, {"id": 1, "edits": []}))
    with pytest.raises(DataError, match="1 broken"):
        load_cases(path, skip_bad=True)
    with pytest.raises(DataError, match="no such file"):
        load_cases(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        load_edits(tmp_path / "absent.jsonl")


def test_what_json_would_change_is_not_written(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("before")
    edit = (Edit("p", "t"),)
    nan = float("nan")
    for meta, word in (({"x": {1: 2}}, "key 1"), ({"x": {3}}, "JSON"), ({"x": nan}, "JSON")):
        with pytest.raises(DataError, match=word):
            save_cases(path, [Case("a", edit, meta=meta)])
    with pytest.raises(DataError, match="occurs twice"):
        save_cases(path, [Case("a", edit), Case("a", edit)])
    assert path.read_text() == "before"


def test_limit_and_seed(tmp_path):
    path = write(tmp_path / "c.jsonl", *(LINE | {"id": str(i)} for i in range(20)))
    ids = [case.id for case in load_cases(path, limit=5).cases]
    assert ids == ["0", "1", "2", "3", "4"]
    shuffled = load_cases(path, seed=3)
    assert [case.id for case in shuffled.cases] != [str(i) for i in range(20)]
    assert load_cases(path, seed=3, limit=5).cases == shuffled.cases[:5]
    assert load_cases(path, seed=4, limit=5).cases != shuffled.cases[:5]
    with pytest.raises(ConfigError, match="limit is 0"):
        load_cases(path, limit=0)


def test_the_examples_in_the_documentation_are_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    edits, cases = re.findall(r"```json\n(.*?)```", text, flags=re.S)
    (tmp_path / "edits.jsonl").write_text(edits)
    assert [edit.id for edit in load_edits(tmp_path / "edits.jsonl")] == [None, "louvre"]
    (case,) = load_cases(write(tmp_path / "cases.jsonl", json.loads(cases))).cases
    assert [len(probe.hops) for probe in case.probes] == [0, 1, 0]
    assert case.probes[2].name == "locality"
