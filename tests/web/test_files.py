"""Downloads are whole, uploads are a stranger's."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from errata.errors import ConfigError, PatchError
from errata.web import files


def archive(path: Path, members: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            made.writestr(info, data)
    return path


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


PATCH = {"tokyo/patch.json": b"{}", "tokyo/patch.safetensors": b"123"}


def test_an_archive_gives_the_files_that_are_known_and_no_others(tmp_path: Path, into: Path):
    more = {"tokyo/evil.py": b"import os", "../../patch.txt": b"", "README.md": b"text"}
    files.unpacked([archive(tmp_path / "p.zip", PATCH | more)], into)
    assert {p.name: p.read_bytes() for p in into.iterdir()} == {
        "patch.json": b"{}", "patch.safetensors": b"123",
    }  # fmt: skip


def test_names_that_lead_elsewhere_stay_in_the_folder(tmp_path: Path, into: Path):
    hostile = {"../../../patch.json": b"{}", "/etc/patch.safetensors": b"123"}
    files.unpacked([archive(tmp_path / "p.zip", hostile)], into)
    assert sorted(p.name for p in into.iterdir()) == ["patch.json", "patch.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["into", "p.zip"]


def test_loose_files_and_a_gguf_file_by_any_name(tmp_path: Path, into: Path):
    loose = tmp_path / "my-Adapter.GGUF"
    loose.write_bytes(b"GGUF")
    files.unpacked([loose], into)
    assert [p.name for p in into.iterdir()] == ["adapter.gguf"]


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"a.txt": b"x"}, "no patch and no adapter"),
        ({}, "no patch and no adapter"),
        (PATCH | {"b/patch.json": b"{}"}, "patch.json twice"),
        (PATCH | {"adapter_config.json": b"{}"}, "more than one"),
    ],
)
def test_archives_of_something_else_are_refused(tmp_path: Path, into: Path, members, match):
    with pytest.raises(PatchError, match=match):
        files.unpacked([archive(tmp_path / "p.zip", members)], into)


def test_links_are_refused(tmp_path: Path, into: Path):
    hostile = archive(tmp_path / "p.zip", {"patch.json": b"/etc/passwd"}, links=("patch.json",))
    with pytest.raises(PatchError, match="no plain file"):
        files.unpacked([hostile], into)
    assert list(into.iterdir()) == []


def test_bombs_are_stopped_by_what_they_hold_not_by_what_they_say(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "LIMIT", 1 << 20)
    monkeypatch.setattr(files, "CHUNK", 1 << 16)
    bomb = archive(tmp_path / "p.zip", PATCH | {"tokyo/patch.safetensors": bytes(8 << 20)})
    with zipfile.ZipFile(bomb) as made:
        assert made.getinfo("tokyo/patch.safetensors").compress_size < 1 << 20
    with pytest.raises(PatchError, match="more than"):
        files.unpacked([bomb], into)
    assert sum(p.stat().st_size for p in into.iterdir()) <= files.LIMIT
    big = tmp_path / "big.gguf"
    big.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(PatchError, match="more than"):
        files.unpacked([big], into)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", b"plain text"])
def test_damaged_archives_are_refused(tmp_path: Path, into: Path, damage: bytes):
    path = tmp_path / "p.zip"
    path.write_bytes(damage)
    with pytest.raises(PatchError, match="zip archive"):
        files.unpacked([path], into)


def test_an_archive_with_a_damaged_member_is_refused(tmp_path: Path, into: Path):
    path = archive(tmp_path / "p.zip", PATCH)
    data = bytearray(path.read_bytes())
    data[50] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(PatchError, match=r"zip archive|unpacked"):
        files.unpacked([path], into)


def test_nothing_chosen_and_unknown_forms(into: Path):
    with pytest.raises(PatchError, match="no file was chosen"):
        files.unpacked([], into)
    with pytest.raises(ConfigError, match="unknown form"):
        files.written(None, None, "exe", into)  # type: ignore[arg-type]


def test_packed_whole_and_under_one_folder(into: Path):
    (into / "b.txt").write_text("b")
    (into / "a.txt").write_text("a")
    made = files.packed(into)
    with zipfile.ZipFile(made) as read:
        assert read.namelist() == ["into/a.txt", "into/b.txt"]
    assert sorted(p.name for p in into.parent.iterdir()) == ["into", "into.zip"]


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (("France → Tokyo", ""), "france-tokyo"),
        (("日本 → 東京", "lora"), "lora"),
        (("../../etc → x", "gguf"), "etc-x-gguf"),
        (("→",), "patch"),
        (("a" * 200,), "a" * 60),
    ],
)
def test_names_of_files_are_plain(texts, name):
    assert files.slug(*texts) == name
