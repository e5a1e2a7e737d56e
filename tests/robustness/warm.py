"""Forks of a warm process: what is imported once need not be imported ten thousand times.

A fork has a memory of its own and begins where this process stands. `results` runs work in one and
gets its results line by line, whatever ends it; `Command` runs a command line in one, as a new
process would, and kills it at a moment or right before one of its operations on files.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPERATIONS = frozenset(
    ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
     "os.chmod", "shutil.rmtree", "shutil.move", "shutil.copyfile")
)  # fmt: skip
"""Audit events of python that change what lies on a disk; opening to write is the other."""


def peak() -> int:
    """Return the most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _quiet(to: int) -> None:
    """Let file descriptors 1 and 2 lead there, and 0 to nothing."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(to, 1)
    os.dup2(to, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)


def _leave(code: int) -> None:
    """End a fork without what this process has registered for its own end."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def results(
    work: Callable[[Any], Any], items: list[Any], seconds: float, memory: int | None = None
) -> Iterator[tuple[Any, Any, str | None]]:
    """Work in a fork; yield (item, result, None), or (item, None, what ended it) as the last one.

    Args:
        work: Takes an item; its result has to be JSON.
        items: What is worked on in turn.
        seconds: The fork is killed if an item takes longer.
        memory: Bytes of addresses that it may take beyond those that this process has.
    """
    get, put = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(get)
        _work(work, items, put, memory)
    os.close(put)
    done, ended = 0, None
    try:
        for line in _lines(get, seconds):
            if line is None:
                ended = f"nothing came for {seconds:.0f} s"
                break
            if line.startswith(b"!"):
                ended = json.loads(line[1:])
                break
            yield items[done], json.loads(line), None
            done += 1
    finally:
        os.close(get)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if done < len(items) else 0)
        _, status = os.waitpid(pid, 0)
    if done < len(items):
        code = os.waitstatus_to_exitcode(status)
        yield items[done], None, ended or f"ended the process with {code}"


def _work(work: Callable[[Any], Any], items: list[Any], put: int, memory: int | None) -> None:
    """What the fork does."""
    try:
        _quiet(os.open(os.devnull, os.O_WRONLY))
        if memory is not None:
            pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
            limit = pages * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for item in items:
            os.write(put, json.dumps(work(item)).encode() + b"\n")
    except BaseException:
        os.write(put, b"!" + json.dumps(traceback.format_exc()[-2000:]).encode() + b"\n")
        _leave(99)
    _leave(0)


def _lines(get: int, seconds: float) -> Iterator[bytes | None]:
    """Yield what comes through a pipe, line by line; None if nothing comes for so long."""
    rest = b""
    while True:
        if not select.select([get], [], [], seconds)[0]:
            yield None
            return
        data = os.read(get, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


# ---------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; negative: the signal that ended it.
        told: What it printed.
        seconds: How long it took.
        operations: How many operations on files it made; 0 if it was killed.
    """

    code: int
    told: str
    seconds: float
    operations: int


class Command:
    """A command line of errata in a fork, in a process group of its own."""

    def __init__(
        self,
        words: Sequence[str],
        here: Path,
        at_operation: int | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Start it.

        Args:
            words: The words behind `errata`.
            here: The folder that it runs in.
            at_operation: It kills itself right before this operation on files, counted from 1.
            first: Called in the fork before all else: gives up rights, for example.
        """
        self._told = here.parent / f"{here.name}.told"
        self._count = here.parent / f"{here.name}.count"
        self._count.unlink(missing_ok=True)
        self.begun = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, here, at_operation, first)

    def _run(
        self,
        words: Sequence[str],
        here: Path,
        at_operation: int | None,
        first: Callable[[], None] | None,
    ) -> None:
        code = 98
        try:
            os.setpgid(0, 0)
            os.chdir(here)
            _quiet(os.open(self._told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            if first is not None:
                first()
            sys.argv = ["errata", *words]
            count = _counted(at_operation)
            from errata.cli.app import main

            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            number = count[0]
            self._count.write_text(str(number), "utf-8")
        finally:
            _leave(code)

    def kill(self) -> None:
        """`kill -9` it and all that it has started."""
        for kill in (os.killpg, os.kill):  # the group is there once the fork has made it
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 600) -> Ended:
        """Return how it ended; after so many seconds it is killed."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until:
                self.kill()
            time.sleep(0.005)
        took = time.monotonic() - self.begun
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started and left
        told = self._told.read_text("utf-8", errors="replace") if self._told.exists() else ""
        count = int(self._count.read_text("utf-8")) if self._count.exists() else 0
        for path in (self._told, self._count):
            path.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), told, took, count)


def _counted(at: int | None) -> list[int]:
    """Count operations on files from now on; die before the one with this number."""
    count = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if isinstance(path, int) or str(path).startswith(("/dev/", "/proc/")):
                return
        elif event not in OPERATIONS:
            return
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count
