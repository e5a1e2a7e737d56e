"""Faults of the system: limits on files, full disks, closed folders, other processes, caches."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.robustness import web_kill
from tests.robustness.kills import left
from tests.robustness.materials import FACT, FAST, Materials

Outcome = tuple[int, str]


def _ran(
    words: list[str], here: Path, limits: Callable[[], None] | None = None, **more: str
) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "errata", *words],
        cwd=here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        check=False,
        preexec_fn=limits,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **more},
    )
    return done.returncode, done.stdout + done.stderr


def _said(outcome: Outcome) -> bool:
    """Whether it was refused in a sentence."""
    code, told = outcome
    return code in (1, 2) and "error: " in told and "Traceback" not in told


def _edit(made: Materials, out: str = "out", *more: str) -> list[str]:
    words = ["edit", "-m", str(made.model), *FACT, *FAST, "--no-neighbours", "--out", out]
    return [*words, *more]


def _eval(made: Materials, out: str = "run", *more: str) -> list[str]:
    words = ["eval", "-m", str(made.model), "--editor", "none", "--data", str(made.cases)]
    return [*words, "--bootstrap", "0", "--out", out, *more]


def _small_files(size: int) -> Callable[[], None]:
    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def file_limit_edit(made: Materials, here: Path) -> bool:
    """A limit on the size of files costs nothing that was there."""
    assert _ran(_edit(made), here)[0] == 0
    before = left(here / "out")
    refused = _said(_ran(_edit(made, "out", "--force"), here, _small_files(300)))
    return refused and left(here / "out") == before and sorted(os.listdir(here)) == ["out"]


def file_limit_merged(made: Materials, here: Path) -> bool:
    """Nor while a checkpoint is written."""
    words = ["export", str(made.patches["rome"]), "--to", "merged", "--out", "m", "--force"]
    assert _ran(words, here)[0] == 0
    before = left(here / "m")
    refused = _said(_ran(words, here, _small_files(20_000)))
    return refused and left(here / "m") == before and sorted(os.listdir(here)) == ["m"]


def file_limit_eval(made: Materials, here: Path) -> bool:
    """A run that cannot write goes on when it can."""
    assert _ran(_eval(made, "whole"), here)[0] == 0
    refused = _said(_ran(_eval(made), here, _small_files(1_500)))
    resume = ["--resume"] if (here / "run").exists() else []
    return (
        refused
        and _ran(_eval(made, "run", *resume), here)[0] == 0
        and left(here / "run")["records.jsonl"] == left(here / "whole")["records.jsonl"]
    )


def full_disk(made: Materials, here: Path) -> bool:
    """On a small disk of its own, where one can be mounted."""
    disk = here / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.call(mount, stderr=-3):
        return True  # may not be mounted here: RLIMIT_FSIZE stands for it
    try:
        words = ["export", str(made.patches["rome"]), "--to", "merged", "--out", "disk/m"]
        return _said(_ran(words, here)) and not os.listdir(disk)
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=False)


def read_only(made: Materials, here: Path) -> bool:
    """A folder that may not be written to; /proc stands for it where root may write everywhere."""
    (here / "closed").mkdir()
    (here / "closed").chmod(0o500)
    out = "closed/out" if os.geteuid() else "/proc/out"
    refused = _said(_ran(_edit(made, out), here)) and _said(_ran(_eval(made, out), here))
    (here / "closed").chmod(0o700)
    return refused


def no_memory(made: Materials, here: Path) -> bool:
    """A limit on memory is said, or the process is refused what it starts with."""
    limit = 3 << 30

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    words = ["eval", "-m", str(made.model), "--editor", "none", "--data", str(made.cases)]
    code, told = _ran([*words, "--no-save", "--bootstrap", "999999999"], here, small)
    return code in (0, 1, 2) and "Traceback" not in told


def damaged_cache(made: Materials, here: Path) -> bool:
    """Every file of the cache damaged, then the whole cache gone: the same patch."""
    words = ["edit", "-m", str(made.model), *FACT, "--set", "steps=2", "--no-neighbours"]
    words += ["--set", f"moments_text={made.cases}", "--out"]
    cache = here / "cache"
    for number in range(4):
        code, told = _ran([*words, f"out{number}"], here, ERRATA_CACHE=str(cache))
        if code:
            return "error: " in told and number == 0  # too few texts for this model: said
        if number == 0:
            for path in (p for p in cache.rglob("*") if p.is_file()):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif number == 1:
            shutil.rmtree(cache)
        elif number == 2:
            for path in [p for p in cache.rglob("*") if p.is_file()]:
                path.unlink()
                path.mkdir()
    kept = [(here / f"out{n}" / "patch.safetensors").read_bytes() for n in range(4)]
    return len(set(kept)) == 1


def two_at_once(made: Materials, here: Path) -> bool:
    """Two processes at one run folder: one works, the other is told; two at one patch likewise."""

    def pair(words: list[str]) -> list[tuple[int, str]]:
        several = [
            subprocess.Popen(
                [sys.executable, "-m", "errata", *words], cwd=here, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )
            for _ in range(2)
        ]  # fmt: skip
        return [(p.communicate(timeout=600)[0], p.returncode)[::-1] for p in several]

    for words in (_eval(made), _edit(made), _edit(made, "out", "--force")):
        done = pair(words)
        codes = sorted(code for code, _ in done)
        if codes not in ([0, 0], [0, 1]) or any("Traceback" in told for _, told in done):
            print(
                f"two at once: {words[0]} ended with {codes}: {[told[-300:] for _, told in done]}"
            )
            return False
    ids = [json.loads(line)["id"] for line in (here / "run/records.jsonl").read_text().splitlines()]
    whole = sorted(ids) == ["0", "1", "2"]
    verified = _ran(["show", "out"], here)[0] == 0
    return whole and verified and not [p for p in here.iterdir() if p.name.startswith(".")]


def web_killed(made: Materials, here: Path) -> bool:
    """`errata web` is killed in the middle of an edit, and starts again."""
    python = web_kill.interpreter()
    assert python is not None
    found = web_kill.web_killed(made, here, python, Random(0))
    for fault in found:
        print(f"web killed: {fault}")
    return not found


FAULTS = (
    file_limit_edit, file_limit_merged, file_limit_eval, full_disk, read_only, no_memory,
    damaged_cache, two_at_once, web_killed,
)  # fmt: skip


def campaign(
    made: Materials, told: Callable[[str], None], only: tuple[str, ...] = ()
) -> dict[str, bool]:
    """Try every fault, or only some; return whether each was survived or refused in a sentence."""
    found = {}
    for fault in FAULTS:
        if only and fault.__name__ not in only:
            continue
        if fault is web_killed and web_kill.interpreter() is None:
            told("left out: web_killed, which needs Gradio (make test-web)")
            continue
        here = Path(tempfile.mkdtemp(prefix="errata-fault-"))
        try:
            found[fault.__name__] = fault(made, here)
        finally:
            shutil.rmtree(here, ignore_errors=True)
        if not found[fault.__name__]:
            told(f"not survived: {fault.__name__}")
    return found
