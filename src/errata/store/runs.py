"""Run folders: what was asked, what it ran on, one line per finished case, and a summary.

```
RUN/config.json     resolved configuration; written before work starts
RUN/env.json        versions, platform, device, threads, commit
RUN/command.txt     the command line; one line per start
RUN/records.jsonl   append-only, one line per case, on disk before the next group starts
RUN/checkpoint.N/   newest state of the sequences under way; removed when they are on record
RUN/summary.json    written at the end, whole or absent
RUN/lock            process that writes the folder or wrote it last; .lock beside it is held
```

A killed run loses at most the group at work (some seconds of work), and of sequences at most the
steps since the newest checkpoint: a half-written last line or checkpoint is recognised and done
again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from errata.errors import ErrataError, RunError
from errata.store.files import write_atomically
from errata.store.locks import HELD, LOCK, take_lock
from errata.store.provenance import environment
from errata.store.records import cut_to, line_of, mend_records, read_records, reported
from errata.untrusted import read_object, refuse_special

if TYPE_CHECKING:
    from filelock import BaseFileLock

CONFIG, ENV, COMMAND = "config.json", "env.json", "command.txt"
RECORDS, SUMMARY = "records.jsonl", "summary.json"
FILES = (CONFIG, ENV, COMMAND, RECORDS, SUMMARY)
CHECKPOINT, PART = "checkpoint.", "checkpoint.part"
UNCOMPARED = "run"
"""Section of a configuration that does not change numbers (device, patches run together)."""


@dataclass(frozen=True)
class Run:
    """A run folder as it was read.

    Attributes:
        path: The folder.
        config: Its configuration.
        records: Its records, in the order in which they were written.
        summary: Its summary; None while the run is not finished.
    """

    path: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None


def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        RunError: If there is none, or a file in it is damaged.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is not a run folder: {CONFIG} is missing")
    records, _ = read_records(path / RECORDS)
    summary = _read_json(path / SUMMARY) if (path / SUMMARY).is_file() else None
    return Run(path, _read_json(path / CONFIG), records, summary)


class RunFolder:
    """A run folder opened for writing; use it as a context manager.

    Attributes:
        path: The folder.
        records: Records found when it was resumed.
    """

    def __init__(
        self, path: Path, lock: BaseFileLock, records: list[dict[str, Any]], new: bool = False
    ) -> None:
        self.path = path
        self.records = records
        self._lock = lock
        self._new = new

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        force: bool = False,
        compared: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> RunFolder:
        """Open a folder for a run and write what is known before work starts.

        A folder that is made here goes again if an error ends the run before anything is on record:
        it would only be in the way of the next try.

        Args:
            path: Created if missing.
            config: Resolved configuration, JSON values. Everything outside its section `run` has
                to be the same when the run is resumed.
            resume: Go on with the run that is there, if any.
            force: Replace the run that is there, if any.
            compared: What of a configuration has to be the same, of one that an earlier version
                wrote too; None: everything outside `run`.

        Raises:
            RunError: If another process writes it, if it holds a run and neither `resume` nor
                `force` is given, if it holds something else, if the configuration differs, or if
                it cannot be written.
        """
        path = Path(path)
        with reported(f"cannot use {path} as run folder"):
            strange = not (path / LOCK).exists() and not (path / CONFIG).exists()
            if strange and path.is_dir() and any(file.name != HELD for file in path.iterdir()):
                raise RunError(f"{path} exists and is not a run folder", "Choose another --out.")
            new = not path.exists()
            for name in (*FILES, LOCK, HELD):
                refuse_special(path / name)  # a pipe would keep us waiting
            path.mkdir(parents=True, exist_ok=True)
            lock = take_lock(path)
        try:
            records = cls._enter(
                path, _plain(config), resume=resume, force=force, compared=compared or _numbers
            )
        except BaseException:
            lock.release()
            raise
        return cls(path, lock, records, new)

    @classmethod
    def _enter(
        cls, path: Path, config: dict[str, Any], *, resume: bool, force: bool,
        compared: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> list[dict[str, Any]]:  # fmt: skip
        there = (path / CONFIG).exists()
        if there and not (resume or force):
            raise RunError(
                f"{path} already holds a run",
                "Go on with it: --resume. Replace it: --force. Or choose another --out.",
            )
        if there and resume:
            _same_config(path, compared(_read_json(path / CONFIG)), compared(config))
            records = mend_records(path / RECORDS)
            _write_json(path / ENV, {**_read_env(path), "resumed": environment()})
            _append_command(path)
            return records
        with reported(f"cannot replace the run in {path}"):
            for name in FILES:
                (path / name).unlink(missing_ok=True)
            _drop_checkpoints(path)
        _write_json(path / ENV, environment())
        _append_command(path)
        _write_json(path / CONFIG, config)
        return []

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if self._new and isinstance(error, ErrataError):
            self._discard_empty()

    def _discard_empty(self) -> None:
        """Remove a folder that holds no result: nothing but what starting a run writes."""
        begun = {CONFIG, ENV, COMMAND, LOCK, HELD}
        if {file.name for file in self.path.iterdir()} <= begun:
            for name in begun:
                (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()

    def close(self) -> None:
        """Let other processes write the folder."""
        self._lock.release()

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write finished records; when this returns they are on disk.

        Raises:
            RunError: If they cannot be written; the file then holds what it held before.
        """
        data = b"".join(line_of(record) for record in records)
        file = self.path / RECORDS
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            cut_to(file, size)
            raise RunError(
                f"cannot write {file}: {error.strerror or error}",
                "Make room and go on with --resume; everything finished is kept.",
            ) from error

    def checkpoint(self) -> Path | None:
        """Return the folder of the newest whole checkpoint, if there is one."""
        found = _checkpoints(self.path)
        return found[-1] if found else None

    @contextmanager
    def new_checkpoint(self) -> Iterator[Path]:
        """Yield an empty folder that becomes the checkpoint, in place of older ones.

        It does so only when the block has ended and everything is on disk: whenever the process
        is killed, the old checkpoint or the new one is there, whole.

        Raises:
            RunError: If it cannot be written; the old checkpoint is there then.
        """
        old = _checkpoints(self.path)
        number = 1 + (int(old[-1].name.removeprefix(CHECKPOINT)) if old else 0)
        part = self.path / PART
        with reported(f"cannot write a checkpoint in {self.path}"):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                yield part
                for folder in (*(entry for entry in part.iterdir() if entry.is_dir()), part):
                    _sync(folder)
                part.rename(self.path / f"{CHECKPOINT}{number}")
                _sync(self.path)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint."""
        _drop_checkpoints(self.path)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary.

        Raises:
            RunError: If it cannot be written.
        """
        _write_json(self.path / SUMMARY, summary)


# ---------------------------------------------------------------------- files


def _checkpoints(path: Path) -> list[Path]:
    """Return whole checkpoints, oldest first."""
    found = [
        entry
        for entry in path.glob(f"{CHECKPOINT}*")
        if entry.name.removeprefix(CHECKPOINT).isdecimal()
    ]
    return sorted(found, key=lambda entry: int(entry.name.removeprefix(CHECKPOINT)))


def _drop_checkpoints(path: Path) -> None:
    for folder in (path / PART, *_checkpoints(path)):
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring the entries of a folder to disk, where the system lets folders be opened."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration as it will be read back."""
    return json.loads(json.dumps(config, allow_nan=False))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    try:
        write_atomically(path, text.encode())
    except ErrataError as error:
        raise RunError(error.message, error.hint) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, within=path.parent, finite=True)  # as it is written
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read: {error}", "Start the run again with --force."
        ) from None


def _read_env(path: Path) -> dict[str, Any]:
    return _read_json(path / ENV) if (path / ENV).is_file() else {}


def _append_command(path: Path) -> None:
    with (
        reported(f"cannot write {path / COMMAND}"),
        (path / COMMAND).open("a", encoding="utf-8") as handle,
    ):
        handle.write(shlex.join(sys.argv) + "\n")


# ---------------------------------------------------------------------- configuration


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: value}


def _numbers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what may change numbers of a configuration."""
    return {key: value for key, value in config.items() if key != UNCOMPARED}


def _same_config(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    left, right = (_flat(dict(config)) for config in (old, new))
    differ = [
        f"{key} was {left.get(key)!r}, is {right.get(key)!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
    if differ:
        raise RunError(
            f"{path} was started with another configuration: " + "; ".join(differ),
            "Use the same settings to resume, or another --out.",
        )
