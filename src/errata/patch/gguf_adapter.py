"""Patches as LoRA adapters of llama.cpp, which Ollama reads too, and such adapters as patches."""

from __future__ import annotations

import hashlib
import math
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from errata.errors import PatchError
from errata.model.gguf import MAGIC, SUFFIX
from errata.model.gguf_header import Header, read_header
from errata.patch.adapter import patch_of
from errata.patch.card import files_of, read_record, record_of
from errata.patch.factored import base_of, factored, of_base
from errata.patch.llama_cpp import Names, need_gguf
from errata.patch.signature import NAME as SIGNATURE
from errata.store.folders import write_folder

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.patch import Patch

FILE_NAME, MODELFILE = f"adapter{SUFFIX}", "Modelfile"
_TYPE, _ALPHA = "adapter.type", "adapter.lora.alpha"
_INVOKED = "adapter.alora.invocation_tokens"
_A, _B = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class GgufReport:
    """What an export for llama.cpp wrote.

    Attributes:
        folder: Folder of the adapter, with a Modelfile for Ollama.
        base: What the lines below name as the base model: a GGUF file, a folder, or a name.
        architecture: What llama.cpp calls the base model's architecture.
        rank: The one rank of all tensors; alpha equals it, so the scaling is 1.
        modules: Paths of the adapted modules.
        lost_energy: Per module, the share of `||ΔW||²` that truncation to `rank` left out.
    """

    folder: Path
    base: str
    architecture: str
    rank: int
    modules: tuple[str, ...]
    lost_energy: Mapping[str, float]

    @property
    def file(self) -> Path:
        """The adapter itself."""
        return self.folder / FILE_NAME

    @property
    def serve(self) -> tuple[str, ...]:
        """Commands that serve the base model with this adapter: llama.cpp's, then Ollama's."""
        base = _shown(self.base) if self.base.endswith(SUFFIX) else "BASE.gguf"
        name = self.folder.resolve().name
        create = ("ollama", "create", name, "-f", str(self.folder / MODELFILE))
        return (
            shlex.join(("llama-server", "--model", base, "--lora", str(self.file))),
            f"{shlex.join(create)} && {shlex.join(('ollama', 'run', name))}",
        )


def to_gguf(
    lm: LM,
    patch: Patch,
    folder: str | Path,
    *,
    base: str | None = None,
    max_rank: int | None = None,
    force: bool = False,
) -> GgufReport:
    """Write a patch as an adapter of llama.cpp, with a Modelfile for Ollama.

    Args:
        lm: The base model of the patch.
        patch: Changes of projection weights.
        folder: Created; must not hold such an adapter already unless `force`.
        base: What is served: a GGUF file, whose architecture and tensors are compared, or a name
            that Ollama knows. Default: the GGUF file that the model was loaded from, else the
            model's own name.
        max_rank: Largest rank allowed; see [`errata.patch.export.to_lora`][].
        force: Replace an adapter that is already there.

    Raises:
        PatchError: If the patch is empty, for another model, changes more than projection weights,
            or what llama.cpp stores otherwise or not at all; or `base` is of another model.
        MissingExtra: If the package `gguf` is not installed.
        ErrataError: If the folder cannot be written.
    """
    folder = Path(folder)
    names = Names.of(lm)
    if (folder / FILE_NAME).exists() and not force:
        raise PatchError(f"{folder} already holds an adapter", "Choose another, or add --force.")
    found = factored(lm, patch, max_rank)
    tensors: dict[str, torch.Tensor] = {}
    for path, (B, A) in found.pairs.items():
        name = names.tensor(path)
        tensors[name + _A] = A
        tensors[name + _B] = names.stored(path, B)
    served = _served(lm, base)
    if served.endswith(SUFFIX):
        _check_base(Path(served), names.layout.arch, tensors)
    packed = _packed(names.layout.arch, base_of(lm), found.rank, tensors)
    digests = {FILE_NAME: hashlib.sha256(packed).hexdigest()}
    record = record_of(of_base(patch), "gguf", base_of(lm), digests)
    report = GgufReport(
        folder, served, names.layout.arch, found.rank, tuple(found.pairs), found.lost
    )
    modelfile = f"FROM {served}\nADAPTER ./{FILE_NAME}\n"
    told = files_of(patch, record, "\n".join(report.serve), language="sh")
    files = {**told, MODELFILE: modelfile.encode(), FILE_NAME: packed}
    write_folder(folder, files, force=force, what="an adapter", gone=(SIGNATURE,))
    return report


def _shown(path: str) -> str:
    """Return a path as one types it here: without the current folder in front."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _served(lm: LM, base: str | None) -> str:
    if base is None:
        own = Path(lm.name).expanduser()
        return str(own.resolve()) if own.suffix == SUFFIX and own.is_file() else base_of(lm)
    path = Path(base).expanduser()
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise PatchError(f"no such file: {base}", "Give the GGUF file that will be served.")
        return str(path.resolve())
    return base


def _check_base(path: Path, arch: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a base that llama.cpp would not put this adapter on.

    Raises:
        PatchError: If it is another architecture, or lacks a tensor, or has one of another shape.
    """
    other = "Give the GGUF file of the model that the patch was made for."
    header = _header(path)
    if header.architecture != arch:
        raise PatchError(
            f"{path} is a model of {header.architecture}, the patch is for {arch}", other
        )
    for name in tensors:
        if not name.endswith(_A):
            continue
        own = name.removesuffix(_A)
        want = (tensors[name].shape[1], tensors[own + _B].shape[0])
        have = header.shapes.get(own)
        if have != want:
            what = "no tensor" if have is None else f"{' x '.join(map(str, have))} in"
            raise PatchError(
                f"{path} has {what} {own}; the adapter changes {want[0]} x {want[1]}", other
            )


def _packed(arch: str, base: str, rank: int, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the content of the file."""
    import gguf

    with tempfile.TemporaryDirectory() as beside:
        path = Path(beside) / FILE_NAME
        writer = gguf.GGUFWriter(path, arch)
        writer.add_type("adapter")
        writer.add_string(_TYPE, "lora")
        writer.add_float32(_ALPHA, float(rank))
        writer.add_name(f"errata patch of {Path(base).name}")
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


# ---------------------------------------------------------------------- back


def from_gguf(lm: LM, source: str | Path) -> Patch:
    """Read an adapter of llama.cpp as a patch of `lm`.

    Args:
        lm: The base model.
        source: The file, or a folder that errata exported. The edits of such a folder come along,
            and it is refused on another model than the one it was made for.

    Raises:
        PatchError: If it is no such adapter, does not fit the model, or changes nothing.
        MissingExtra: If the package `gguf` is not installed.
    """
    path = adapter_file(source)
    names = Names.of(lm)
    check_adapter(path, names.layout.arch)
    alpha, tensors = _read(path)
    paths = names.paths(lm)
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in sorted({tensor[: -len(_A)] for tensor in tensors}):
        if name + _A not in tensors or name + _B not in tensors:
            there, other = (_A, _B) if name + _A in tensors else (_B, _A)
            raise PatchError(
                f"{path} holds {name}{there} but not {name}{other}",
                "It is half-written, or was cut; convert it again.",
            )
        if name not in paths:
            raise PatchError(
                f"{lm.name} has no projection that llama.cpp calls {name}",
                "The adapter is for another model, or changes more than projections.",
            )
        A, B = tensors[name + _A], tensors[name + _B]
        if A.shape[0] != B.shape[1]:
            raise PatchError(
                f"{path}: the factors of {name} have ranks {A.shape[0]} (A) and {B.shape[1]} (B)",
                "It is damaged; convert it again.",
            )
        B = names.original(paths[name], B) * (alpha / A.shape[0])
        pairs[paths[name]] = A, B
    record = read_record(path.parent, of=path.name)
    return patch_of(lm, pairs, path, record)


def adapter_file(source: str | Path) -> Path:
    """Return the file of an adapter, given itself or its folder."""
    path = Path(source).expanduser()
    return path / FILE_NAME if path.is_dir() else path


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
        if begins != MAGIC:
            raise PatchError(f"{path} is no GGUF file: it begins with {begins!r}, not {MAGIC!r}")
        header = read_header(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise PatchError(f"{path} is no readable GGUF file: {why}") from None
    if path.stat().st_size < header.bytes:
        raise PatchError(
            f"{path} is cut short: it has {path.stat().st_size:,} bytes, its header tells of "
            f"{header.bytes:,}"
        )
    return header


def check_adapter(path: Path, arch: str | None = None) -> Header:
    """Refuse what is no LoRA adapter, by its header alone.

    Args:
        path: The file.
        arch: The architecture that it should be for.

    Raises:
        PatchError: If it is something else, is cut short, or is for another architecture.
    """
    need_gguf()
    header = _header(path)
    if header.texts.get("general.type") != "adapter" or header.texts.get(_TYPE) != "lora":
        what = header.texts.get(_TYPE) or header.texts.get("general.type") or "model"
        raise PatchError(f"{path} holds a {what}; expected a LoRA adapter")
    if _INVOKED in header.keys:
        raise PatchError(
            f"{path} is an adapter that some tokens switch on ({_INVOKED}), which a patch cannot "
            "express"
        )
    if arch is not None and header.architecture != arch:
        raise PatchError(
            f"{path} is for models of {header.architecture or 'no architecture'}, not of {arch}",
            "Name the model that it was made for: --model FOLDER",
        )
    for name in header.tensors:
        if not name.endswith((_A, _B)) or len(header.shapes[name]) != 2:
            raise PatchError(
                f"{path} holds an unexpected tensor {name}",
                "A patch takes the factors lora_a and lora_b of projections only.",
            )
    if not header.tensors:
        raise PatchError(f"{path} holds no tensor: it would change nothing")
    return header


def _read(path: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Return alpha and the tensors in float32."""
    import gguf
    from gguf.quants import dequantize

    try:
        reader = gguf.GGUFReader(path)
        field: Any = reader.get_field(_ALPHA)
        alpha = math.nan if field is None else float(field.parts[field.data[-1]][0])
        tensors = {
            tensor.name: torch.from_numpy(
                dequantize(tensor.data, tensor.tensor_type).reshape(*tensor.shape[::-1]).copy()
            ).float()
            for tensor in reader.tensors
        }
    except (ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise PatchError(f"{path} is no readable GGUF file: {error}") from None
    if not math.isfinite(alpha):
        raise PatchError(f"{path}: {_ALPHA} is missing or no finite number")
    return alpha, tensors


def base_named(path: Path) -> str | None:
    """Return the base model that the record beside an adapter names, if there is one."""
    record = read_record(path.parent, of=path.name)
    named = None if record is None else record.get("model") or record.get("base_model")
    return named if isinstance(named, str) else None
