"""What is downloaded and uploaded: patches and adapters as zip archives.

An upload is a stranger's. Of an archive only files with the names that errata knows are taken, as
plain files into an empty folder of our own and only as many bytes as are allowed; then the same
readers that the command line has look at them (docs/security.md).
"""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, get_args

from errata.errors import ConfigError, ErrataError, PatchError
from errata.store.files import cannot_write, unfinished
from errata.store.words import size

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch

Form = Literal["patch", "lora", "gguf"]
FORMS: tuple[Form, ...] = get_args(Form)

LIMIT = 4 << 30
"""Bytes of an upload when it is unpacked."""

CHUNK = 1 << 20

PARTS: Mapping[str, tuple[str, ...]] = {
    "patch.json": ("patch.safetensors",),
    "adapter_config.json": ("adapter_model.safetensors", "errata.json"),
    "adapter.gguf": ("errata.json",),
}
"""By the file that shows what an upload is: what else belongs to it."""

KNOWN = frozenset(PARTS).union(*PARTS.values())


# ---------------------------------------------------------------------- out


def written(lm: LM, patch: Patch, form: Form, folder: Path) -> str:
    """Write a patch in one of the forms, and return how it is used.

    Args:
        lm: The base model.
        patch: The patch.
        form: `patch`, `lora` (PEFT, vLLM) or `gguf` (llama.cpp, Ollama).
        folder: An empty folder.

    Raises:
        PatchError: If the patch cannot take this form.
    """
    if form not in FORMS:
        raise ConfigError(f"unknown form {form!r}", f"Known: {', '.join(FORMS)}")
    if form == "patch":
        patch.save(folder, force=True)
        return f"errata verify {folder.name}"
    if form == "lora":
        report = patch.to_lora(lm, folder, force=True)
        told = report.serve or "vLLM takes no adapter of this rank: errata export --max-rank 512"
    else:
        told = "\n".join(patch.to_gguf(lm, folder, force=True).serve)
    # the card names this folder, which will lie somewhere else
    here = f"{folder.parent}/"
    card = folder / "README.md"
    if card.is_file():
        card.write_text(card.read_text(encoding="utf-8").replace(here, ""), encoding="utf-8")
    return told.replace(here, "")


def packed(folder: Path) -> Path:
    """Return a zip archive of a folder, beside it; it is there whole or not at all."""
    target = folder.with_suffix(".zip")
    beside = unfinished(target)
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, f"{folder.name}/{path.name}")
        beside.replace(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def slug(*texts: str) -> str:
    """Return texts as the name of a file on any system."""
    words = "-".join(re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() for text in texts)
    return re.sub(r"-+", "-", words).strip("-")[:60] or "patch"


# ---------------------------------------------------------------------- in


def unpacked(uploads: Sequence[Path], into: Path) -> Path:
    """Put what was uploaded into a folder that errata can read.

    Args:
        uploads: One zip archive, one GGUF file, or the files of a patch or an adapter.
        into: An empty folder.

    Returns:
        The folder.

    Raises:
        PatchError: If it is nothing of the kind, or too large.
    """
    if not uploads:
        raise PatchError("no file was chosen", "Choose a zip archive of a patch or an adapter.")
    try:
        if len(uploads) == 1 and uploads[0].suffix.lower() == ".zip":
            _from_zip(uploads[0], into)
        else:
            for path in uploads:
                name = "adapter.gguf" if path.suffix.lower() == ".gguf" else path.name
                if name in KNOWN:
                    _check_size(path.stat().st_size)
                    shutil.copyfile(path, into / name)
    except OSError as error:
        raise cannot_write(into, error) from error
    kinds = [name for name in PARTS if (into / name).is_file()]
    if len(kinds) != 1:
        what = "more than one patch or adapter" if kinds else "no patch and no adapter"
        raise PatchError(
            f"{_names(uploads)} holds {what}",
            "Expected a zip archive (or the files) of a patch (patch.json and patch.safetensors), "
            "of a LoRA (adapter_config.json and adapter_model.safetensors), or a GGUF adapter.",
        )
    return into


def _from_zip(path: Path, into: Path) -> None:
    """Take the files with known names out of an archive.

    Raises:
        PatchError: If it cannot be read, is too large, or holds a name twice.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if PurePosixPath(m.filename).name in KNOWN]
            names = [PurePosixPath(member.filename).name for member in members]
            if len(set(names)) != len(names):
                raise PatchError(
                    f"{path.name} holds {max(names, key=names.count)} twice",
                    "Give an archive of one patch or adapter.",
                )
            left = LIMIT
            for name, member in zip(names, members, strict=True):
                if stat.S_ISLNK(member.external_attr >> 16) or member.is_dir():
                    raise PatchError(f"{path.name}: {name} is no plain file")
                left -= _copied(archive, member, into / name, left)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise PatchError(f"{path.name} is no readable zip archive: {error}") from None
    except (RuntimeError, NotImplementedError) as error:  # a password; a method not known
        raise PatchError(f"{path.name} cannot be unpacked: {error}") from None


def _copied(archive: zipfile.ZipFile, member: zipfile.ZipInfo, to: Path, left: int) -> int:
    """Unpack one file, whatever length it declares; return its bytes."""
    count = 0
    with archive.open(member) as source, to.open("xb") as out:
        while chunk := source.read(CHUNK):
            count += len(chunk)
            _check_size(count, left)
            out.write(chunk)
    return count


def _check_size(count: int, limit: int | None = None) -> None:
    if count > (LIMIT if limit is None else limit):
        raise PatchError(f"the upload unpacks to more than {size(LIMIT)}", "Import it by errata.")


def _names(uploads: Sequence[Path]) -> str:
    return ", ".join(path.name for path in uploads[:3]) + (" …" if len(uploads) > 3 else "")


def read(lm: LM, folder: Path, name: str) -> Patch:
    """Read what was unpacked, by the readers that errata has.

    Args:
        lm: The model that it is for.
        folder: Where it was unpacked.
        name: What the user calls it, for messages.

    Raises:
        PatchError: If it is broken, or for another model.
    """
    from errata.patch import Patch

    try:
        if (folder / "patch.json").is_file():
            return Patch.load(folder)
        if (folder / "adapter_config.json").is_file():
            return Patch.from_lora(lm, folder)
        return Patch.from_gguf(lm, folder)
    except ErrataError as error:
        told = [text and text.replace(str(folder), name) for text in (error.message, error.hint)]
        error.message, error.hint = str(told[0]), told[1]
        error.args = (error.message,)
        raise
