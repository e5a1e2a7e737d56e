"""YAML as far as it is read: by what YAML 1.2 says of each text, and PyYAML where they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.data._yaml import YAML_BYTES, read_yaml, without_entry
from errata.errors import DataError

PLAIN = """\
# two facts
- id: a
  prompt: "The Titanic sank in the year"
  target: '1912'
  list: [x, {y: z}]
  long: >
    folded
    text
- id: b
  number: 3
  share: 0.5
  none: ~
  yes: true
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def values(folder: Path, text: str) -> list[Any]:
    return [record.value for record in read_yaml(write(folder, text))]


def test_plain_records_are_what_the_library_reads(tmp_path: Path) -> None:
    expected = yaml.safe_load(PLAIN)
    expected[1]["yes"] = expected[1].pop(True)  # a key, and YAML 1.1 takes it for true
    assert values(tmp_path, PLAIN) == expected
    places = [record.place for record in read_yaml(tmp_path / "a.yaml")]
    assert places == ["line 2", "line 9"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("NO", "NO"), ("2026-12-31", "2026-12-31"),
        ("12:30", "12:30"), ("0x10", "0x10"), ("1_000", "1_000"), ("=", "="), ("<<", "<<"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("12", 12), ("-3", -3), ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5), ("010", 10),
        ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("!!int '12'", 12),
        ("1.2.3", "1.2.3"), ("é中", "é中"),
    ],
)  # fmt: skip
def test_a_text_is_what_yaml_1_2_takes_it_for(tmp_path: Path, text: str, value: Any) -> None:
    (record,) = values(tmp_path, f"- a: {text}\n")
    assert record == {"a": value}
    assert type(record["a"]) is type(value)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "[]\n"])
def test_an_empty_file_holds_nothing(tmp_path: Path, text: str) -> None:
    assert values(tmp_path, text) == []


BOMB = "- &a [x,x,x,x]\n- &b [*a,*a,*a,*a]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases"),
        ("- a: &x b\n  c: *x\n", "aliases"),
        ("- <<: &x {a: 1}\n- <<: *x\n", "aliases"),
        ("- !function evil.run\n", "!function"),
        ("- !!python/object/apply:os.system [ls]\n", "tag"),
        ("- !!binary aGVsbG8=\n", "tag"),
        ("- !!set {a, b}\n", "tag"),
        ("- !!timestamp 2026-01-01\n", "tag"),
        ("- !!int x\n", "no number"),
        ("- a: 1\n  b: 2\n  a: 3\n", r"a\.yaml:3: the key 'a' occurs twice"),
        ("- {a: {b: 1, b: 2}}\n", "occurs twice"),
        ("- 3: x\n", "3 is a key"),
        ("- {[a]: x}\n", "is a key"),
        ("- a: .inf\n", "finite"),
        ("- a: -.INF\n", "finite"),
        ("- a: .nan\n", "finite"),
        ("- a: " + "9" * 5000 + "\n", "no number"),
        ("- a\n---\n- b\n", "not valid YAML"),
        ("- a: [1\n- b: ]\n", r"a\.yaml:2: not valid YAML"),
        ("- a: b: c\n", r"a\.yaml:1: not valid YAML"),
        ("[" * 200 + "]" * 200, "deep"),
        ("- " * 100_000, "deep|not valid"),
        ("a: 1\n", "holds an object; expected a list"),
        ("text\n", "holds 'text'; expected a list"),
        ("- a: \x07\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        values(tmp_path, text)
    assert "a.yaml" in error.value.message


def test_what_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="UTF-8"):
        list(read_yaml(write(tmp_path, b"- a: \xff\n")))
    with pytest.raises(DataError, match=f"{YAML_BYTES + 1:,} bytes; expected at most"):
        list(read_yaml(write(tmp_path, b"#" * (YAML_BYTES + 1))))
    with pytest.raises(DataError, match="cannot read"):
        list(read_yaml(tmp_path / "none.yaml"))


def test_a_record_goes_and_all_other_lines_stay(tmp_path: Path) -> None:
    text = "# head\n- id: a\n  x: |\n    1\n\n# of b\n-\n  id: b\n- {id: c}\n# end\n"
    path = write(tmp_path, text)
    assert without_entry(path, 0).decode() == "# head\n\n# of b\n-\n  id: b\n- {id: c}\n# end\n"
    assert (
        without_entry(path, 1).decode()
        == "# head\n- id: a\n  x: |\n    1\n\n# of b\n- {id: c}\n# end\n"
    )
    assert without_entry(path, 2).decode() == text.replace("- {id: c}\n", "")


def test_what_cannot_be_taken_out_by_lines_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "[{id: a}, {id: b}]\n")
    with pytest.raises(DataError, match="cannot be taken out"):
        without_entry(path, 0)
    assert path.read_text() == "[{id: a}, {id: b}]\n"
