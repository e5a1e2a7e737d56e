"""Files of errata are whole, and as private as the user's umask says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import errata
from errata.errors import ErrataError
from errata.patch import LowRank, Patch
from errata.store.files import open_to_others, write_together


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}


def test_everything_written_has_the_rights_of_the_umask(umask: int, tmp_path: Path) -> None:
    import torch

    lm = errata.load("pocket")
    site = lm.site(3)
    change = LowRank(site.path, torch.ones(site.d_out, 1), torch.ones(1, site.d_in))
    patch = Patch.for_model(lm, [change], editor="test")
    written = [
        patch.save(tmp_path / "patch"),
        patch.to_lora(lm, tmp_path / "lora").folder,
        patch.to_merged(lm, tmp_path / "merged"),
    ]
    for folder in written:
        found = modes(folder)
        assert any(name.endswith(".safetensors") for name in found)
        assert set(found.values()) == {0o666 & ~umask}, found


def test_links_and_folders_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o600)
    inside = tmp_path / "folder"
    (inside / "sub").mkdir(parents=True)
    (inside / "link").symlink_to(outside)
    open_to_others(inside)
    assert outside.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in inside.iterdir()) == ["link", "sub"]


def test_nothing_is_left_behind_where_one_of_several_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    with pytest.raises(ErrataError, match="cannot write"):
        write_together({tmp_path / "one": b"1", tmp_path / "taken" / "two": b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
