"""What the commands of `errata sheet` share: sheets, days, models and builds as they are given."""

from __future__ import annotations

from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from errata.cli import _output, _targets
from errata.errors import ConfigError, DataError, PatchError

if TYPE_CHECKING:
    from errata.cli._options import ModelOptions
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.sheets.fact import Fact
    from errata.sheets.sheet import Sheet


def day_of(text: str | None) -> date | None:
    """Return the day of `--at`.

    Raises:
        ConfigError: If it is none.
    """
    from errata.sheets.fact import day_of as read

    if text is None:
        return None
    try:
        return read(text)
    except ValueError:
        raise ConfigError(f"--at {text}: expected a day as 2026-12-31") from None


def opened(folder: Path, at: str | None) -> tuple[Sheet, tuple[Fact, ...], list[str]]:
    """Read a sheet; says which facts are left out."""
    from errata.sheets import load_sheet

    day = day_of(at)
    sheet = load_sheet(folder, day)
    facts, left = sheet.valid(day), sheet.left_out(day)
    for text in left:
        _output.note(text)
    if not facts:
        raise DataError(
            f"no fact of {folder} is valid on {day or date.today()}",
            "Look at valid_from and valid_until, or choose a day: --at 2026-12-31",
        )
    return sheet, facts, left


def load_base(sheet: Sheet, model: ModelOptions) -> LM:
    """Load the model of a sheet, or the one of `--model`."""
    config = sheet.config
    return _targets.load_base(model, config.model, config.revision, sheet.folder)


def loaded_build(source: Path, folder: Path) -> Patch:
    """Return the build of a sheet.

    Raises:
        PatchError: If there is none, or it is broken.
    """
    from errata.patch import Patch

    if not (source / "patch.json").exists():
        raise PatchError(f"no build at {source}", f"errata sheet build {folder}")
    patch = Patch.load(source)
    patch.check_finite()
    return patch


def may_replace(out: Path, folder: Path, force: bool) -> bool:
    """Return whether what is there may be replaced: an earlier build may, another patch may not.

    Args:
        out: Where a build is to go.
        folder: The sheet, which it must not be mixed with.
        force: Whether anything there may be replaced.

    Raises:
        ConfigError: If it would lie among the files of the sheet.
        RunError: If it is taken, or cannot be written.
    """
    from errata.sheets.sheet import FACTS

    if out.resolve() in (folder.resolve(), (folder / FACTS).resolve()):
        raise ConfigError(
            f"--out {out} is a folder of the sheet itself", f"Choose another: --out {folder}/patch"
        )
    if not force and (out / "patch.json").exists():
        from errata.patch import Patch

        with suppress(PatchError):  # of what is damaged nobody knows what it was
            if Patch.load(out).meta.get("sheet") is not None:
                return True
    _output.check_free(out, "patch.json", force)
    return force


def save_build(patch: Patch, out: Path, replaced: bool) -> Path:
    """Write a build, and what it changed about the one that it replaces.

    Args:
        patch: The build.
        out: Where.
        replaced: Whether what is there may be replaced.
    """
    from errata.patch import Patch
    from errata.patch.folder import save
    from errata.sheets.changelog import NAME, noted

    before = None
    if (out / "patch.json").exists():
        with suppress(PatchError):  # of what is damaged nobody knows what it was
            before = Patch.load(out)
    if before is not None and before.meta.get("sheet") is None:
        before = None
    log = noted(out, before, patch)
    return save(patch, out, force=replaced, beside={} if log is None else {NAME: log})
