"""One unit as a process of its own: `python -m errata.sweeping.child PARENT COMMAND…`.

The process runs one `errata` command and ends when its parent does, however that ended: a worker
that is killed leaves nothing behind that would hold the run folder of its unit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

COMMAND = (sys.executable, "-m", "errata.sweeping.child")
WATCH_SECONDS = 0.2
TAIL_LINES, TAIL_BYTES = 12, 8192


def start(
    words: Sequence[str],
    *,
    folder: Path,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the command of a unit; what it prints is added to its log.

    Args:
        words: The command without `errata`. `--resume` is added if its folder holds something.
        folder: Where it writes.
        log: Its log.
        cwd: Where it runs.
        environment: Further environment variables.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    resume = folder.is_dir() and any(folder.iterdir())
    command = [*words, *(["--resume"] if resume else [])]
    with log.open("ab") as handle:
        handle.write(("$ errata " + " ".join(command) + "\n").encode())
        handle.flush()
        return subprocess.Popen(
            [*COMMAND, str(os.getpid()), *command],
            cwd=cwd,
            env={**os.environ, "NO_COLOR": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            start_new_session=True,  # ctrl-C reaches it through the sweep, once
        )


def tail(log: Path) -> list[str]:
    """Return the last lines of a log."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended, however that came.

    It hears an interrupt as well: what a shell starts in the background ignores them, and so would
    whatever that starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the command in this process."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    end_with(parent)
    (script,) = metadata.entry_points(group="console_scripts", name="errata")
    sys.argv = ["errata", *command]
    script.load()()


if __name__ == "__main__":
    main()
