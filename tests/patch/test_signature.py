"""Signatures: against `cryptography` itself and the first vectors of RFC 8032, section 7.1."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.errors import ConfigError, GateError, MissingExtra, PatchError
from errata.patch import Patch, signature
from errata.patch.signature import (
    NAME,
    check_signature,
    files_of,
    is_signed,
    new_key,
    open_to_all,
    private_key,
    public_key,
    read_signature,
    sign,
)

VECTORS = (  # secret key, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
)


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    return Patch((), (), meta={"model": "m", "editor": "none"}).save(tmp_path / "patch")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography")
    new_key(tmp_path / "keys" / "own.key")
    return tmp_path / "keys" / "own.key"


def pub(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def of_vector(folder: Path, number: int) -> Path:
    """Write the key pair of a vector as files, by hand: PKCS8 and SPKI of RFC 8410."""
    secret, public = (bytes.fromhex(text) for text in VECTORS[number][:2])
    for name, head, body, kind in (
        ("rfc.key", "302e020100300506032b657004220420", secret, "PRIVATE KEY"),
        ("rfc.key.pub", "302a300506032b6570032100", public, "PUBLIC KEY"),
    ):
        text = base64.b64encode(bytes.fromhex(head) + body).decode()
        path = folder / name
        path.write_text(f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    return folder / "rfc.key"


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_keys_and_signatures_are_those_of_the_rfc(tmp_path: Path, number: int) -> None:
    pytest.importorskip("cryptography")
    key = of_vector(tmp_path, number)
    _, public, text, expected = VECTORS[number]
    assert private_key(key).sign(bytes.fromhex(text)).hex() == expected
    public_key(pub(key)).verify(bytes.fromhex(expected), bytes.fromhex(text))
    raw = signature._raw(private_key(key).public_key())
    assert raw.hex() == public == signature._raw(public_key(pub(key))).hex()


def test_a_signature_is_what_cryptography_says(patch: Path, tmp_path: Path) -> None:
    """What is signed is put together here by hand, and verified without errata."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    sign(patch, of_vector(tmp_path, 0))
    document = json.loads((patch / NAME).read_text())
    made = base64.b64decode(document.pop("signature"))
    names = ("patch.json", "patch.safetensors")
    digests = {name: hashlib.sha256((patch / name).read_bytes()).hexdigest() for name in names}
    assert document["files"] == digests
    files = ",".join(f'"{name}":"{digest}"' for name, digest in digests.items())
    public = base64.b64encode(bytes.fromhex(VECTORS[0][1])).decode()
    text = (
        f'{{"algorithm":"ed25519","files":{{{files}}},"format":1,"made":"{document["made"]}",'
        f'"public_key":"{public}"}}'
    )
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(VECTORS[0][1]))
    key.verify(made, b"errata signature 1\n" + text.encode())
    own = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS[0][0]))
    assert own.sign(b"errata signature 1\n" + text.encode()) == made


def test_a_signed_patch_passes_and_is_the_same_patch(patch: Path, key: Path) -> None:
    before = {path.name: path.read_bytes() for path in patch.iterdir()}
    sign(patch, key)
    assert {p.name: p.read_bytes() for p in patch.iterdir() if p.name != NAME} == before
    found = check_signature(patch, pub(key))
    told = read_signature(patch)
    assert told == found
    assert found.fits
    assert Patch.load(patch).meta["model"] == "m"
    (patch / "verified.json").write_text("{}")  # beside the patch, and not signed
    check_signature(patch, pub(key))
    sign(patch, key)  # again
    check_signature(patch, pub(key))


def test_the_private_key_is_private(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not open_to_all(key)
    key.chmod(0o644)
    assert open_to_all(key)
    for path in (key, pub(key)):
        with pytest.raises(ConfigError, match="a key is not replaced"):
            new_key(path)
    loaded: Any = private_key(key)
    assert signature._raw(loaded.public_key()) == signature._raw(public_key(pub(key)))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor": (lambda p: flip(p / "patch.safetensors"), "patch.safetensors was altered"),
    "a word": (
        lambda p: edited(p / "patch.json", lambda d: d["meta"].update(model="other")),
        "patch.json was altered",
    ),
    "white space": (
        lambda p: (p / "patch.json").write_text((p / "patch.json").read_text() + "\n"),
        "patch.json was altered",
    ),
    "the day": (
        lambda p: edited(p / NAME, lambda d: d.update(made="2000-01-01T00:00:00+00:00")),
        "signature.json was altered",
    ),
    "a digest": (
        lambda p: edited(p / NAME, lambda d: d["files"].update({"patch.json": "0" * 64})),
        "signature.json was altered",
    ),
    "fewer files": (
        lambda p: edited(p / NAME, lambda d: d["files"].pop("patch.json")),
        "signature.json was altered",
    ),
    "one more word": (lambda p: edited(p / NAME, lambda d: d.update(note="x")), "was altered"),
    "no signature": (lambda p: (p / NAME).unlink(), "is not signed"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_is_refused(patch: Path, key: Path, what: str) -> None:
    sign(patch, key)
    change, said = ALTERED[what]
    change(patch)
    with pytest.raises(GateError, match=said) as error:
        check_signature(patch, pub(key))
    assert error.value.exit_code == 3


def test_another_key_is_refused(patch: Path, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    new_key(other)
    sign(patch, other)
    with pytest.raises(GateError, match="signed by another key"):
        check_signature(patch, pub(key))
    # who puts the trusted key's name on it has not its signature
    raw = base64.b64encode(signature._raw(public_key(pub(key)))).decode()
    edited(patch / NAME, lambda d: d.update(public_key=raw))
    with pytest.raises(GateError, match="was altered"):
        check_signature(patch, pub(key))


def test_a_signature_of_another_folder_does_not_count(
    patch: Path, key: Path, tmp_path: Path
) -> None:
    sign(patch, key)
    other = Patch((), (), meta={"model": "n"}).save(tmp_path / "other")
    (other / NAME).write_bytes((patch / NAME).read_bytes())
    with pytest.raises(GateError, match=r"patch\.json was altered"):
        check_signature(other, pub(key))
    told = read_signature(other)
    assert told is not None
    assert not told.fits


def test_saving_drops_the_signature(patch: Path, key: Path) -> None:
    sign(patch, key)
    Patch((), (), meta={"model": "n"}).save(patch, force=True)
    assert not is_signed(patch)
    assert read_signature(patch) is None


def test_saving_from_inside_the_folder_drops_it_too(
    patch: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(patch, key)
    monkeypatch.chdir(patch)  # the folder cannot change its place then
    Patch((), (), meta={"model": "n"}).save(patch, force=True)
    assert not is_signed(patch)


def test_adapters_are_signed_with_what_they_say_of_themselves(tmp_path: Path, key: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "errata.json", "README.md"):
        (tmp_path / name).write_text("{}")
    assert files_of(tmp_path) == (
        "adapter_config.json", "adapter_model.safetensors", "errata.json",
    )  # fmt: skip
    sign(tmp_path, key)
    (tmp_path / "README.md").write_text("new")
    check_signature(tmp_path, pub(key))
    (tmp_path / "errata.json").unlink()
    with pytest.raises(GateError, match=r"errata\.json was altered"):
        check_signature(tmp_path, pub(key))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(PatchError, match="not complete"):
        check_signature(tmp_path, pub(key))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("signature"),
        lambda d: d.update(signature="AAAA"),
        lambda d: d.update(signature="?"),
        lambda d: d.update(files=[]),
        lambda d: d.update(format=2),
        lambda d: d.update(algorithm="none"),
    ],
)
def test_a_broken_signature_is_named(
    patch: Path, key: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    sign(patch, key)
    edited(patch / NAME, change)
    for use in (lambda: check_signature(patch, pub(key)), lambda: read_signature(patch)):
        with pytest.raises(PatchError, match="no readable signature"):
            use()


def test_keys_that_are_none_are_named(patch: Path, key: Path, tmp_path: Path) -> None:
    form: Any = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    asymmetric: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    with pytest.raises(ConfigError, match="no such key"):
        sign(patch, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no private key \(it is the public one\)"):
        sign(patch, pub(key))
    with pytest.raises(ConfigError, match=r"no public key \(it is a private one"):
        check_signature(patch, key)
    text = tmp_path / "text"
    text.write_text("hello")
    for use in (private_key, public_key):
        with pytest.raises(ConfigError, match=r"text is no (private|public) key"):
            use(text)
    curve = asymmetric.generate_private_key(asymmetric.SECP256R1())
    pem = (form.Encoding.PEM, form.PrivateFormat.PKCS8)
    text.write_bytes(curve.private_bytes(*pem, form.NoEncryption()))
    with pytest.raises(ConfigError, match="no key of Ed25519"):
        private_key(text)
    own: Any = private_key(key)
    text.write_bytes(own.private_bytes(*pem, form.BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match="protected by a password"):
        private_key(text)
    with pytest.raises(PatchError, match="neither a patch nor an adapter"):
        sign(tmp_path / "keys", key)


def test_keys_of_ssh(patch: Path, key: Path, tmp_path: Path) -> None:
    form: Any = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    own: Any = private_key(key)
    private, public = tmp_path / "id_ed25519", tmp_path / "id_ed25519.pub"
    private.write_bytes(
        own.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    )
    public.write_bytes(
        own.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
        + b" me@here\n"
    )
    sign(patch, private)
    assert check_signature(patch, public).key == check_signature(patch, pub(key)).key


def test_without_the_package_its_extra_is_named(
    patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signature, "find_spec", lambda name: None)
    for use in (
        lambda: sign(patch, tmp_path / "k"),
        lambda: new_key(tmp_path / "k"),
        lambda: check_signature(patch, tmp_path / "k"),
    ):
        with pytest.raises(MissingExtra, match="cryptography") as error:
            use()
        assert "errata[sign]" in str(error.value)
    assert not os.path.exists(tmp_path / "k")
