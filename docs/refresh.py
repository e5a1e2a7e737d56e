"""Run the console sessions of a document again and write down what they print now.

python docs/refresh.py README.md|docs/PAGE.md [FIRST-WORDS …]

In a fence marked `console`, a line `$ command` (continued by lines `> …`) is followed by its
output. Commands run one after another in one scratch folder, with `errata` of this environment.
Only what goes to stdout is shown. A fence with a title (```toml title="paper.toml") is a file of
that folder. With FIRST-WORDS, only commands that begin with one of them run again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TITLED = re.compile(r'^```\w+ title="([\w.-]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)


def sessions(body: str) -> list[tuple[list[str], list[str]]]:
    """Split a fence into (lines of the command, lines of its output)."""
    found: list[tuple[list[str], list[str]]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(([line], []))
        elif found and line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line)
        elif found:
            found[-1][1].append(line)
    return found


def run(command: list[str], folder: Path) -> list[str]:
    """Run a command and return the lines of its stdout."""
    text = "\n".join(line[2:] for line in command)
    print(f"$ {text}", file=sys.stderr, flush=True)
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", text],
        check=False,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode not in (0, 3):
        sys.exit(f"failed with {done.returncode}: {text}")
    home = str(Path.home())
    shown = done.stdout.replace(f"{ROOT}/", "").replace(home, "~")
    lines = [line.rstrip() for line in shown.splitlines()]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def main(path: Path, first: tuple[str, ...]) -> None:
    """Refresh one document."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "errata"
        folder.mkdir()

        def fence(match: re.Match[str]) -> str:
            lines: list[str] = []
            for command, output in sessions(match[1]):
                lines += command
                wanted = command[0][2:].startswith(first)
                lines += run(command, folder) if wanted else output
            return "\n".join(lines) + "\n"

        text = path.read_text(encoding="utf-8")
        for name, body in TITLED.findall(text):
            (folder / name).write_text(body, encoding="utf-8")
        path.write_text(FENCE.sub(fence, text), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or ("",))
