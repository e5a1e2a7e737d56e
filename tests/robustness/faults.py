"""Faults of the system: limits on files, full disks, closed folders, other processes, caches.

Where a limit of the system is set, the command runs in a new process; else in a fork of this one,
which is warm. A fault that cannot be made here (a disk that may not be mounted) counts as untried.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.robustness import web_kill
from tests.robustness.kills import cache_folder, left
from tests.robustness.materials import FACT, FAST, TRAINED, Materials
from tests.robustness.warm import Command

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


def _warm(words: list[str], here: Path, first: Callable[[], None] | None = None) -> Outcome:
    """Run a command in a fork of this process."""
    ended = Command(words, here, first=first).wait()
    return ended.code, ended.told


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
    assert _warm(_edit(made), here)[0] == 0
    before = left(here / "out")
    refused = _said(_ran(_edit(made, "out", "--force"), here, _small_files(300)))
    return refused and left(here / "out") == before and sorted(os.listdir(here)) == ["out"]


def file_limit_merged(made: Materials, here: Path) -> bool:
    """Nor while a checkpoint is written."""
    words = ["export", str(made.patches["rome"]), "--to", "merged", "--out", "m", "--force"]
    assert _warm(words, here)[0] == 0
    before = left(here / "m")
    refused = _said(_ran(words, here, _small_files(20_000)))
    return refused and left(here / "m") == before and sorted(os.listdir(here)) == ["m"]


def file_limit_eval(made: Materials, here: Path) -> bool:
    """A run that cannot write goes on when it can."""
    assert _warm(_eval(made, "whole"), here)[0] == 0
    refused = _said(_ran(_eval(made), here, _small_files(1_500)))
    resume = ["--resume"] if (here / "run").exists() else []
    return (
        refused
        and _warm(_eval(made, "run", *resume), here)[0] == 0
        and left(here / "run")["records.jsonl"] == left(here / "whole")["records.jsonl"]
    )


def full_disk(made: Materials, here: Path) -> bool | None:
    """A full disk, where one can be mounted: nothing is left on it, and what was there is there."""
    disk = here / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.call(mount, stderr=-3):
        return None
    try:
        words = ["export", str(made.patches["rome"]), "--to", "merged", "--out", "disk/m"]
        refused = _said(_warm(words, here)) and not os.listdir(disk)
        assert _warm(_edit(made, "disk/out"), here)[0] == 0
        before = left(disk / "out")
        (disk / "rest").write_bytes(b"x" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
        refused = refused and _said(_warm(_edit(made, "disk/out", "--force"), here))
        refused = refused and _said(_warm(_eval(made, "disk/run"), here))
        return refused and left(disk / "out") == before
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=False)


def read_only(made: Materials, here: Path) -> bool:
    """A folder that may not be written to, as a user who is not root, cache and all."""
    (here / "closed").mkdir()
    assert _warm(_edit(made, "closed/was"), here)[0] == 0
    before = left(here / "closed")
    for folder in (here, made.root.parent, *made.root.parent.rglob("*"), made.root):
        folder.chmod(0o755)
    for folder in (here / "closed", *(here / "closed").rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)

    def nobody() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)

    tried = (_edit(made, "closed/out"), _eval(made, "closed/out"),
             _edit(made, "closed/was", "--force"))  # fmt: skip
    refused = all(_said(_warm(words, here, nobody)) for words in tried)
    same = left(here / "closed") == before
    (here / "closed").chmod(0o700)
    return refused and same and os.listdir(here / "closed") == ["was"]


def no_memory(made: Materials, here: Path) -> bool:
    """Memory that runs out in the middle is said, and what was recorded until then is there."""
    limit = 3 << 30

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    words = ["eval", "-m", str(made.model), "--editor", "none", "--data", str(made.cases)]
    run = ["--out", "run"]
    ended = _ran([*words, *run, "--bootstrap", "999999999"], here, small)
    if not _said(ended) or "memory ran out" not in ended[1]:
        return False
    goes_on = _warm([*words, *run, "--resume"], here)
    return goes_on[0] == 0 and len((here / "run/records.jsonl").read_text().splitlines()) == 3


def _counting(made: Materials, out: str) -> list[str]:
    """An edit whose moments are counted, and kept in the cache."""
    return ["edit", "-m", str(made.model), *FACT, "--set", "steps=2", "--set", "contexts=bare",
            "--no-neighbours", "--set", f"moments_text={made.text}", "--out", out]  # fmt: skip


def damaged_cache(made: Materials, here: Path) -> bool:
    """Every file of the cache cut, then the cache gone, then folders for files: the same patch."""
    cache = here / "cache"
    with cache_folder(cache):
        for number in range(4):
            code, _ = _warm(_counting(made, f"out{number}"), here)
            files = [path for path in cache.rglob("*") if path.is_file()]
            if code or not (files or number == 3):
                return False
            for path in files:
                if number == 0:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                elif number == 2:
                    path.unlink()
                    path.mkdir()
            if number == 1:
                shutil.rmtree(cache)
    kept = [(here / f"out{n}" / "patch.safetensors").read_bytes() for n in range(4)]
    return len(set(kept)) == 1


def vanishing_cache(made: Materials, here: Path) -> bool:
    """A cache that somebody empties again and again meanwhile: the same patch, or a sentence."""
    cache = here / "cache"
    with cache_folder(here / "own"):
        assert _warm(_counting(made, "wanted"), here)[0] == 0
    wanted = (here / "wanted" / "patch.safetensors").read_bytes()
    good = True
    with cache_folder(cache):
        for number in range(5):
            command = Command(_counting(made, f"out{number}"), here)
            until = time.monotonic() + 60
            while os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                shutil.rmtree(cache, ignore_errors=True)
                time.sleep(0.01 * number)
                if time.monotonic() > until:
                    command.kill()
            ended = command.wait()
            made_it = ended.code == 0
            patch = here / f"out{number}" / "patch.safetensors"
            good = good and (
                patch.read_bytes() == wanted if made_it else _said((ended.code, ended.told))
            )
    return good


def closed_cache(made: Materials, here: Path) -> bool:
    """A cache that cannot be written to: the same patch, without one."""
    with cache_folder(here / "own"):
        assert _warm(_counting(made, "wanted"), here)[0] == 0
    (here / "file").write_text("", "utf-8")
    with cache_folder(here / "file"):
        code, told = _warm(_counting(made, "out"), here)
    if code:
        return _said((code, told))
    found = [(here / name / "patch.safetensors").read_bytes() for name in ("wanted", "out")]
    return found[0] == found[1]


def two_at_once(made: Materials, here: Path) -> bool:
    """Two processes at one target: one works and the other is told, or the last one to end wins."""
    made.copy(made.sheet, here)
    train = ["train", "ibke", "-m", str(made.model), "--data", str(made.cases), *TRAINED]
    lora = ["export", str(made.patches["rome"]), "--to", "lora", "--out", "lora", "--force"]
    targets = (
        (_eval(made), "run"), (_edit(made), "out"), (_edit(made, "out", "--force"), "out"),
        ([*train, "--out", "trained"], "trained"), (lora, "lora"),
        (["sheet", "build", "sheet"], "sheet/patch"),
    )  # fmt: skip
    for words, out in targets:
        alone = here / "alone"
        alone.mkdir()
        made.copy(made.sheet, alone)
        with cache_folder(here / "cache-alone"):
            assert _warm(words, alone)[0] == 0
        wanted = left(alone / out)
        shutil.rmtree(alone)
        several = [Command(words, _apart(here, number)) for number in range(2)]
        done = [command.wait() for command in several]
        codes = sorted(ended.code for ended in done)
        if codes not in ([0, 0], [0, 1]) or any("Traceback" in ended.told for ended in done):
            print(f"two at once: {words[0]}: {codes}: {[ended.told[-300:] for ended in done]}")
            return False
        if left(here / out) != wanted:
            print(f"two at once: {words[0]}: another result than alone: {codes}")
            return False
    return not [p for p in here.rglob(".*") if p.suffix in (".part", ".old")]


def _apart(here: Path, number: int) -> Path:
    """Return another path to the same folder: a command's own files lie beside it, by its name."""
    link = here.parent / f"{here.name}-{number}"
    if not link.is_symlink():
        link.symlink_to(here)
    return link


def web_killed(made: Materials, here: Path) -> bool | None:
    """`errata web` is killed in the middle of an edit and starts again; None without Gradio."""
    python = web_kill.interpreter()
    if python is None:
        print("web_killed needs Gradio: make test-web sets it up")
        return None
    found = web_kill.web_killed(made, here, python, Random(0))
    for fault in found:
        print(f"web killed: {fault}")
    return not found


FAULTS = (
    file_limit_edit, file_limit_merged, file_limit_eval, full_disk, read_only, no_memory,
    damaged_cache, vanishing_cache, closed_cache, two_at_once, web_killed,
)  # fmt: skip


def campaign(
    made: Materials, told: Callable[[int, str, str], None], only: tuple[str, ...] = ()
) -> bool:
    """Make every fault, or only some; return whether each was survived or refused in a sentence.

    Args:
        made: What commands work on.
        told: Called with number, name, and what came of it.
        only: Names; empty: all.
    """
    lost = 0
    for number, fault in enumerate(FAULTS):
        if only and fault.__name__ not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="errata-fault-") as folder:
            here = Path(folder) / "here"
            here.mkdir()
            Path(folder).chmod(0o777)
            with cache_folder(here.parent / "cache"):
                good = fault(made, here)
        lost += good is False
        outcome = {True: "survived", False: "not survived", None: "cannot be made here"}[good]
        told(number, fault.__name__, outcome)
    return not lost
