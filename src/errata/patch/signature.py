"""Signatures: who made a patch, and that it is still as it was made (Ed25519, RFC 8032).

```
patch/
├── patch.json         ┐ their SHA-256 ─┐
├── patch.safetensors  ┘                ├─ canonical JSON ─ signed with the private key
└── signature.json       public key, day ┘                   └─ signature
```

The signature lies in a file of its own, which nothing else reads: the patch and its fingerprint
stay as they are. It covers the bytes of the files named in `SIGNED`; what errata notes beside them
(`verified.json`, a card for people) is not covered. Keys are files: PEM, or those of `ssh-keygen -t
ed25519`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from errata.documents import Document, checked
from errata.errors import ConfigError, ErrataError, GateError, MissingExtra, PatchError
from errata.store.files import cannot_write, sha256_of, write_atomically, write_whole
from errata.store.provenance import now
from errata.untrusted import check_file, read_bytes, read_object

NAME = "signature.json"
FORMAT = 1
PURPOSE = b"errata signature 1\n"
"""In front of what is signed, so that no signature of something else can be taken for one."""
KEY_BYTES = 1 << 16
SIGNED = (
    ("patch.json", "patch.safetensors"),
    ("adapter_config.json", "adapter_model.safetensors"),
    ("adapter.gguf",),
)
"""What is signed of a folder: the first of these that is there (patch, LoRA, GGUF adapter)."""
RECORD = "errata.json"
"""What an adapter says of its edits; signed with it, if it is there."""


class _File(Document):
    """What `signature.json` holds."""

    format: int
    algorithm: str
    public_key: str
    signature: str
    files: dict[str, str] = Field(min_length=1)
    made: str


@dataclass(frozen=True)
class Signature:
    """A signature as it stands in a folder; whether it is genuine is another question.

    Attributes:
        key: Fingerprint of the public key that it names.
        made: When it was made, as its maker says.
        fits: Whether the files are those that it was made of.
    """

    key: str
    made: str
    fits: bool


class _Library(NamedTuple):
    """What is used of `cryptography`."""

    form: Any
    private: Any
    public: Any
    invalid: type[Exception]
    unsupported: type[Exception]


def _library() -> _Library:
    """Import the package that computes signatures.

    Raises:
        MissingExtra: Names the extra.
    """
    if find_spec("cryptography") is None:
        raise MissingExtra("signatures", "cryptography", "sign")
    from cryptography.exceptions import (  # pyright: ignore[reportMissingImports]
        InvalidSignature,
        UnsupportedAlgorithm,
    )
    from cryptography.hazmat.primitives import (  # pyright: ignore[reportMissingImports]
        serialization,
    )
    from cryptography.hazmat.primitives.asymmetric import (  # pyright: ignore[reportMissingImports]
        ed25519,
    )

    keys = (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)
    return _Library(serialization, *keys, InvalidSignature, UnsupportedAlgorithm)


# ---------------------------------------------------------------------- keys


def new_key(path: str | Path) -> Path:
    """Make a key pair: the private key, readable by its owner alone, and the public one beside it.

    Args:
        path: Where the private key goes; the public key gets the same name and `.pub`.

    Returns:
        The file of the public key.

    Raises:
        ConfigError: If one of the files is there already: a key is never replaced.
        ErrataError: If they cannot be written.
    """
    library = _library()
    form = library.form
    path = Path(path)
    public = path.with_name(f"{path.name}.pub")
    for there in (path, public):
        if there.exists() or there.is_symlink():
            raise ConfigError(f"{there} exists; a key is not replaced", "Choose another file.")
    key = library.private.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    shown = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # private from the first byte on, whatever the umask allows
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        write_whole(public, shown)
    except OSError as error:
        raise cannot_write(path, error) from error
    return public


def private_key(path: str | Path) -> Any:
    """Read a private key, an `Ed25519PrivateKey` of `cryptography`.

    Raises:
        ConfigError: If there is none, it is encrypted, or not of Ed25519.
    """
    library = _library()
    form = library.form
    data = _key_file(path, "errata sign --new-key FILE makes one.")
    read = (
        form.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else form.load_pem_private_key
    )
    try:
        key = read(data, None)
    except TypeError:
        raise ConfigError(
            f"{path} is protected by a password, which errata does not ask for",
            "Keep a key without one where others cannot read it: errata sign --new-key FILE",
        ) from None
    except (ValueError, library.unsupported) as error:
        public = " (it is the public one)" if b"PUBLIC" in data or b"ssh-" in data[:4] else ""
        raise ConfigError(
            f"{path} is no private key{public}: {_reason(error)}",
            "errata sign --new-key FILE makes one.",
        ) from None
    if not isinstance(key, library.private):
        raise ConfigError(f"{path} is no key of Ed25519", "errata sign --new-key FILE makes one.")
    return key


def public_key(path: str | Path) -> Any:
    """Read a public key, an `Ed25519PublicKey` of `cryptography`.

    Raises:
        ConfigError: If there is none, or it is not of Ed25519.
    """
    library = _library()
    form = library.form
    data = _key_file(path, "It is the file that ends in .pub beside the private key.")
    read = form.load_ssh_public_key if data.startswith(b"ssh-") else form.load_pem_public_key
    try:
        key = read(data)
    except (ValueError, library.unsupported) as error:
        private = " (it is a private one: keep it to yourself)" if b"PRIVATE" in data else ""
        raise ConfigError(
            f"{path} is no public key{private}: {_reason(error)}",
            "It is the file that ends in .pub beside the private key.",
        ) from None
    if not isinstance(key, library.public):
        raise ConfigError(f"{path} is no key of Ed25519")
    return key


def open_to_all(path: str | Path) -> bool:
    """Whether others than its owner may read a private key."""
    return os.name != "nt" and bool(Path(path).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def _key_file(path: str | Path, hint: str) -> bytes:
    path = Path(path).expanduser()
    try:
        return read_bytes(path, limit=KEY_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"no such key: {path}", hint) from None
    except ErrataError as error:
        raise ConfigError(error.message, hint) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", hint) from None


def _reason(error: Exception) -> str:
    """Return the first words of what a library says, which may go on about its manual."""
    return str(error).strip().partition(". ")[0].partition("\n")[0][:120] or type(error).__name__


def _raw(key: Any) -> bytes:
    form = _library().form
    return key.public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)


def fingerprint(raw: bytes) -> str:
    """Return what a public key is known by: 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(raw).hexdigest()[:16]


def key_name(path: str | Path) -> str:
    """Return the fingerprint of the key pair of a private key."""
    return fingerprint(_raw(private_key(path).public_key()))


# ---------------------------------------------------------------------- signatures


def message(document: Mapping[str, Any]) -> bytes:
    """Return what is signed: everything that `signature.json` says but the signature itself."""
    told = {name: value for name, value in document.items() if name != "signature"}
    text = json.dumps(told, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return PURPOSE + text.encode("ascii")


def files_of(folder: Path) -> tuple[str, ...]:
    """Return the files of a folder that a signature covers.

    Raises:
        PatchError: If it is neither a patch nor an adapter.
    """
    for names in SIGNED:
        if (folder / names[0]).is_file():
            missing = next((name for name in names if not (folder / name).is_file()), None)
            if missing is not None:
                raise PatchError(f"{folder} is not complete: {missing} is missing")
            also = names != SIGNED[0] and (folder / RECORD).is_file()
            return (*names, RECORD) if also else names
    raise PatchError(
        f"{folder} is neither a patch nor an adapter", "Name a folder that errata wrote."
    )


def _digests(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    try:
        for name in names:
            check_file(folder / name, within=folder)
        return {name: sha256_of(folder / name) for name in names}
    except OSError as error:
        raise PatchError(f"cannot read {folder}: {error.strerror or error}") from None


def sign(folder: str | Path, key: str | Path) -> Path:
    """Sign a patch or an adapter; an earlier signature is replaced.

    Args:
        folder: The patch.
        key: File of the private key.

    Returns:
        The file of the signature.

    Raises:
        ConfigError: If the key cannot be used.
        PatchError: If there is nothing to sign.
        ErrataError: If the signature cannot be written.
    """
    folder = Path(folder)
    own = private_key(key)
    document: dict[str, Any] = {
        "format": FORMAT,
        "algorithm": "ed25519",
        "public_key": base64.b64encode(_raw(own.public_key())).decode(),
        "files": _digests(folder, files_of(folder)),
        "made": now(),
    }
    document["signature"] = base64.b64encode(own.sign(message(document))).decode()
    path = folder / NAME
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
    return path


def is_signed(folder: str | Path) -> bool:
    """Whether a folder holds a signature, of whatever kind."""
    return (Path(folder) / NAME).is_file()


def read_signature(folder: str | Path) -> Signature | None:
    """Return what a folder says of its signature; None: it is not signed.

    Needs no key and proves nothing: whoever changes a patch can sign it again with another key.

    Raises:
        PatchError: If the signature cannot be read.
    """
    folder = Path(folder)
    if not is_signed(folder):
        return None
    document = _read(folder)
    raw = base64.b64decode(document["public_key"])
    fits = _changed(folder, document["files"]) is None
    return Signature(fingerprint(raw), document["made"], fits)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    try:
        document = read_object(path, within=folder)
        checked(_File, document)
        for name, length in (("public_key", 32), ("signature", 64)):
            if len(base64.b64decode(document[name], validate=True)) != length:
                raise ValueError(f"{name} is not {length} bytes long")
        if document["format"] != FORMAT or document["algorithm"] != "ed25519":
            raise ValueError(
                f"format {document['format']} of {document['algorithm']!r}; this errata reads "
                f"format {FORMAT} of 'ed25519'"
            )
    except (OSError, ValueError, binascii.Error) as error:
        told = error.message if isinstance(error, ErrataError) else str(error)
        raise PatchError(f"{path} is no readable signature: {told}", "Sign it again.") from None
    return document


def _changed(folder: Path, files: Mapping[str, str]) -> str | None:
    """Return the first file that is not what was signed; None: all are."""
    names = files_of(folder)
    if set(files) != set(names):
        return next(name for name in (*names, *files) if (name in files) != (name in names))
    found = _digests(folder, names)
    return next((name for name in names if found[name] != files[name]), None)


def check_signature(folder: str | Path, key: str | Path) -> Signature:
    """Refuse a patch that was not signed with a key, or was changed since.

    Args:
        folder: The patch or adapter.
        key: File of the public key that is trusted.

    Raises:
        ConfigError: If the key cannot be used.
        GateError: If it is not signed, signed by another key, or altered; says which.
        PatchError: If the signature cannot be read.
    """
    folder = Path(folder)
    trusted = public_key(key)
    files_of(folder)
    if not is_signed(folder):
        raise GateError(
            f"{folder} is not signed: there is no {NAME}", f"errata sign {folder} --key FILE"
        )
    document = _read(folder)
    named = base64.b64decode(document["public_key"])
    if named != _raw(trusted):
        raise GateError(
            f"{folder} is signed by another key: {fingerprint(named)}, not "
            f"{fingerprint(_raw(trusted))} of {key}"
        )
    try:
        trusted.verify(base64.b64decode(document["signature"]), message(document))
    except _library().invalid:
        raise GateError(
            f"{folder}/{NAME} was altered: its signature is not one of the key {key}",
            "Take the patch from where it was signed.",
        ) from None
    changed = _changed(folder, document["files"])
    if changed is not None:
        raise GateError(
            f"{folder}/{changed} was altered since {folder} was signed",
            "Take the patch from where it was signed.",
        )
    return Signature(fingerprint(named), document["made"], True)
