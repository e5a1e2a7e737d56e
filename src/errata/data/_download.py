"""Published files, fetched once: streamed to a temporary file, checked, and kept in the cache.

Plain addresses of a few servers, without published checksums. huggingface_hub fetches from the Hub
only (UniEdit and networks come that way), and pooch, which fetches addresses, checks a file against
a checksum that it is given or not at all: what matters here, to trust a file the first time and to
hold every later use against what was found then, would still be ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from errata.errors import DataError
from errata.store.files import cache_root, open_beside, sha256_of, write_atomically

_BLOCK = 1 << 20
_NETWORK = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)
_SECONDS = 30  # without a byte before a connection counts as dead


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; it takes its place only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out = open_beside(path)
    try:
        with out:
            yield out
        os.replace(out.name, path)
    except BaseException:
        Path(out.name).unlink(missing_ok=True)
        raise


def fetch(
    url: str, sha256: str | None = None, filename: str | None = None, *, data: str = "NAME"
) -> Path:
    """Return a published file from the cache, downloading it if it is absent or damaged.

    A file without a known checksum is trusted the first time: its checksum is written beside it
    and every later use has to match, so a half-written or altered file is noticed and fetched
    again.

    Args:
        url: Where it is published (http or https).
        sha256: Its checksum in hex, if known.
        filename: Name in the cache; by default the last part of the address.
        data: Name of the data set, for the hint.

    Raises:
        DataError: If it cannot be fetched, or what was fetched has another checksum.
    """
    filename = filename or urllib.parse.urlsplit(url).path.rpartition("/")[2]
    path = cache_root() / "data" / filename
    sidecar = path.with_name(path.name + ".sha256")
    recorded = _recorded(sidecar)
    expected = sha256 or recorded
    if path.is_file() and expected is not None:
        if sha256_of(path) == expected:
            return path
        _say(f"errata: {path} is damaged (checksum differs); fetching it again\n")
    hint = f"Download {url} by hand and use --data {data}:PATH"
    try:
        found = _download(url, path, expected, hint)
        write_atomically(sidecar, f"{found}  {path.name}\n".encode())
    except _NETWORK as error:
        reason = getattr(error, "reason", None) or error
        code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        raise DataError(f"cannot fetch {url}: {code}{reason}", hint) from None
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}", "Set ERRATA_CACHE to another folder."
        ) from None
    return path


def _recorded(sidecar: Path) -> str | None:
    """Return the checksum recorded on the first download, if it is one."""
    try:
        first = sidecar.read_text(encoding="ascii").split()[:1]
    except (OSError, UnicodeDecodeError):
        return None
    return first[0] if first and len(first[0]) == 64 else None


def _download(url: str, path: Path, expected: str | None, hint: str) -> str:
    """Stream `url` to `path` and return its SHA-256; nothing is replaced unless it is right."""
    request = urllib.request.Request(url, headers={"User-Agent": "errata"})
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer, _replacing(path) as out:
        length = answer.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        digest, done = hashlib.sha256(), 0
        while block := answer.read(_BLOCK):
            out.write(block)
            digest.update(block)
            done += len(block)
            _progress(path.name, done, total)
        _progress(path.name, done, total, end=True)
        if total is not None and done != total:
            raise DataError(f"{url} ended after {done:,} of {total:,} bytes", hint)
        found = digest.hexdigest()
        if expected is not None and found != expected:
            raise DataError(
                f"{url} has SHA-256 {found}; expected {expected}",
                f"The published file changed or was altered on the way. If you trust it, delete"
                f" {path}.sha256 and try again.",
            )
    return found


def _progress(name: str, done: int, total: int | None, end: bool = False) -> None:
    if sys.stderr.isatty():
        share = f" of {total / 1e6:.1f}" if total else ""
        _say(f"\r{name}: {done / 1e6:.1f}{share} MB" + ("\n" if end else ""))


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def fetch_repository(repository: str, pattern: str, *, data: str) -> Path:
    """Return the folder of a data set of the Hub, with the files of a pattern fetched if needed.

    Raises:
        DataError: If it cannot be fetched.
    """
    import huggingface_hub  # slow to import, and only needed here

    try:
        root = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", allow_patterns=[pattern]
        )
    except Exception as error:  # the Hub client raises many kinds for "no network"
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"cannot fetch {repository} from the Hub: {reason}",
            f"Download https://huggingface.co/datasets/{repository} by hand and use"
            f" --data {data}:PATH",
        ) from error
    return Path(root)
