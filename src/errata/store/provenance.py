"""What a run ran on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from errata import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


def now() -> str:
    """Return the time in UTC; that of `SOURCE_DATE_EPOCH` where a build is to be repeatable."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(given), UTC) if given.isdecimal() else datetime.now(UTC)
    return moment.isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Return what the run ran on: versions, platform, device, threads and the commit of errata."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    found: dict[str, Any] = {
        "errata": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        available = torch.cuda.is_available()
        found["cuda"] = torch.version.cuda if available else None
        found["device"] = torch.cuda.get_device_name() if available else "cpu"
    return found


def _commit() -> str | None:
    """Return the commit of errata's source if it is in a repository, with `+` if changed."""
    package = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "-uno", ".") else commit
