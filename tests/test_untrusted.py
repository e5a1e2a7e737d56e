"""The guard through which files of strangers are read, and what stands behind it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

import errata
from errata.config import Settings, read_toml, settings_from
from errata.documents import Document, checked
from errata.errors import ConfigError, DataError, ErrataError, ModelError, PatchError, RunError
from errata.patch import LowRank, Patch
from errata.store.runs import RunFolder, load_run
from errata.untrusted import DEPTH, Refused, check_file, parse, read_bytes, read_json, read_object


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        (nested(DEPTH + 2), "deep in each other"),
        (nested(200_000), "deep in each other"),
        ('{"a": 1e999}', "finite"),
        ("[NaN]", "finite"),
        ('"\\ud800"', "half a character"),
        ('{"\\udfff": 1}', "half a character"),
        ("9" * 5000, "not valid JSON"),
    ],
)
def test_json_is_bounded(text: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        parse(text, finite=True)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(_VALUES)
def test_what_json_holds_is_read_as_it_is(value: Any) -> None:
    assert parse(json.dumps(value), finite=True) == value


def pipe(path: Path) -> None:
    os.mkfifo(path)


SPECIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (pipe, "is a pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "a folder": (Path.mkdir, "is a folder"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("read", [read_json, read_bytes, read_toml, errata.load_cases])
def test_what_is_no_file_is_refused_and_nothing_waits(
    read: Callable[[Any], Any], name: str, tmp_path: Path
) -> None:
    make, _ = SPECIAL[name]
    make(tmp_path / "x.jsonl")
    with pytest.raises(ErrataError, match=r"expected a (JSON )?file"):
        read(tmp_path / "x.jsonl")


def test_a_file_stays_in_its_folder_and_its_size(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.json").write_text("{}")
    (tmp_path / "inside" / "a.json").write_text("{}")
    (tmp_path / "inside" / "b.json").symlink_to("a.json")
    (tmp_path / "inside" / "c.json").symlink_to("../outside.json")
    inside = tmp_path / "inside"
    assert read_object(inside / "a.json", within=inside) == {}
    assert read_object(inside / "b.json", within=inside) == {}
    for name in ("c.json", "../outside.json"):
        with pytest.raises(Refused, match="outside of its folder"):
            read_object(inside / name, within=inside)
    with pytest.raises(Refused, match="at most 1"):
        check_file(inside / "a.json", limit=1)


def test_blobs_of_the_hub_are_where_they_should_be(tmp_path: Path) -> None:
    home = tmp_path / "models--a--b"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "blobs" / "1").write_text("{}")
    (home / "snapshots" / "abc" / "x.json").symlink_to("../../blobs/1")
    assert read_object(home / "snapshots/abc/x.json", within=home / "snapshots" / "abc") == {}


class _Inner(Document):
    number: int = 0


class _Outer(Document):
    texts: list[str] = Field(default_factory=list)
    inner: _Inner | None = None
    share: float


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "it is a list of 0; expected an object"),
        ({}, "share is missing"),
        ({"share": "1"}, "share is '1'; expected a number"),
        ({"share": True}, "share is true; expected a number"),
        ({"share": 1, "texts": ["a", 2]}, r"texts\[1\] is 2; expected a text"),
        ({"share": 1, "inner": {"number": 1.5}}, "inner.number is 1.5; expected a whole number"),
    ],
)
def test_a_document_is_said_field_by_field(document: Any, said: str) -> None:
    with pytest.raises(PatchError, match=said):
        checked(_Outer, document, PatchError)


# ---------------------------------------------------------------------- settings


class _Own(Settings):
    lr: float = 0.1
    steps: int = 3
    on: bool = True
    either: bool | int = 1
    several: dict[str, Any] = Field(default_factory=dict)


@pytest.mark.parametrize(
    "pair",
    ["lr=true", "lr=inf", "lr=nan", "lr=1e999", "steps=true", "steps=false",
     "steps=99999999999999999999"],
)  # fmt: skip
def test_a_number_is_a_number(pair: str) -> None:
    with pytest.raises(ConfigError, match=pair.partition("=")[0]):
        settings_from(_Own, overrides=[pair])


def test_truth_values_where_they_belong() -> None:
    made = settings_from(_Own, {"several": {"x": True}}, overrides=["on=false", "either=true"])
    assert made.on is False
    assert made.either is True
    assert made.several == {"x": True}


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = 1e999", b"a = inf", b"a = " + b"[" * 5000])
def test_a_recipe_is_read_or_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"r\.toml"):
        read_toml(tmp_path / "r.toml")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x"])
def test_a_path_that_cannot_be(name: str) -> None:
    with pytest.raises(PatchError, match=r"cannot use|no patch folder"):
        Patch.load(name)
    with pytest.raises(ModelError, match="cannot use"):
        errata.load(name)
    with pytest.raises(DataError, match="cannot use"):
        errata.load_cases(f"{name}.jsonl")


# ---------------------------------------------------------------------- patches, networks, runs


@pytest.fixture(scope="module")
def lm() -> Any:
    return errata.load("pocket")


def test_a_network_of_another_shape_is_named(lm: Any, tmp_path: Path) -> None:
    from errata.patch import Module

    path = lm.spec.blocks[2]
    for shape in ((5,), (2, 3), (lm.embedding.shape[1], 2)):
        patch = Patch.for_model(
            lm, [Module(path, "shift", {}, {"vector": torch.ones(shape)})], editor="x"
        )
        with pytest.raises(PatchError, match="does not fit the model"), patch.applied(lm):
            lm.top([lm.row("The capital of France is", "Rome")], 1)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_change_of_what_is_given_no_hidden_states_is_named(lm: Any, stacked: bool) -> None:
    """Attention is called by names only, and so is the model itself (an altered, empty path)."""
    from errata.patch import Module
    from errata.patch.stack import Stack

    vector = {"vector": torch.ones(lm.embedding.shape[1])}
    change = Module(f"{lm.spec.blocks[2]}.self_attn", "shift", {}, vector)
    object.__setattr__(change, "where", "both")
    patch = Patch.for_model(lm, [change], editor="x")
    applied = Stack(lm, [patch]) if stacked else patch.applied(lm)
    row = replace(lm.row("The capital of France is", "Rome"), patch=0 if stacked else -1)
    with pytest.raises(PatchError, match="no hidden states in front"), applied:
        lm.score([row])


def test_units_of_other_matrices_are_named(lm: Any, tmp_path: Path) -> None:
    from errata.patch.export import to_merged

    fact = errata.Edit("The capital of France is the city named", "Rome", "France")
    patch = errata.edit(lm, fact, editor="t_patcher", steps=2, ask=False)
    (unit,) = patch.changes
    config = {**unit.config, "inputs": ["elsewhere" for _ in unit.config["inputs"]]}
    altered = replace(patch, changes=(replace(unit, config=config),))
    with pytest.raises(PatchError, match=r"does not fit the model: .* is not in list"):
        to_merged(lm, altered, tmp_path / "m")


def test_a_link_out_of_a_patch_is_refused(lm: Any, tmp_path: Path) -> None:
    site = lm.site(3)
    change = LowRank(site.path, torch.ones(site.d_out, 1), torch.ones(1, site.d_in))
    folder = Patch.for_model(lm, [change], editor="test").save(tmp_path / "p")
    (folder / "patch.safetensors").rename(tmp_path / "elsewhere")
    (folder / "patch.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PatchError, match="outside of its folder"):
        Patch.load(folder)


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    from errata.nets.weights import SHIPPED

    return Path(shutil.copytree(SHIPPED / "mend", tmp_path / "mend"))


def test_shipped_networks_carry_their_checksum(lm: Any, networks: Path) -> None:
    assert "sha256" in read_object(networks / "config.json")
    errata.get_editor("mend", {"weights": str(networks)}).prepare(lm)


def test_altered_weights_of_networks_are_noticed(lm: Any, networks: Path) -> None:
    path = networks / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="checksum"):
        errata.get_editor("mend", {"weights": str(networks)}).prepare(lm)


def test_a_pipe_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {"run": {}}) as folder:
        folder.append([{"id": "1"}])
    (tmp_path / "r" / "records.jsonl").unlink()
    os.mkfifo(tmp_path / "r" / "records.jsonl")
    with pytest.raises(ErrataError, match="a pipe"):
        RunFolder.create(tmp_path / "r", {"run": {}}, resume=True)


def test_records_behind_a_link_are_not_read(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {"run": {}}) as folder:
        folder.append([{"id": "1"}])
    (tmp_path / "r" / "records.jsonl").rename(tmp_path / "mine")
    (tmp_path / "r" / "records.jsonl").symlink_to(tmp_path / "mine")
    for call in (lambda: load_run(tmp_path / "r"),
                 lambda: RunFolder.create(tmp_path / "r", {"run": {}}, resume=True)):  # fmt: skip
        with pytest.raises((RunError, DataError), match="outside of its folder"):
            call()
