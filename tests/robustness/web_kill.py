"""`kill -9` of `errata web` in the middle of an edit, driven as a browser does, without one.

What was taken along before is whole, nothing is locked, the server starts again on the same port,
edits, and removes what the killed one left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from errata import ErrataError, Patch
from tests.robustness.materials import Materials

ROOT = Path(__file__).resolve().parents[2]
KEY = "5" * 32
"""The key of a tab."""
FAST = "mom2_adjustment=false\nsteps=2\ncontexts=bare"
ENDLESS = "steps=1000000\nstop_loss=0"
WAIT = 300.0
"""Seconds for everything, on a machine that does other things as well."""


def interpreter() -> str | None:
    """Return a python that has Gradio: this one, or that of `make test-web`; None: neither has."""
    for python in (sys.executable, str(ROOT / ".web" / "bin" / "python")):
        if Path(python).exists():
            done = subprocess.run([python, "-c", "import gradio"], check=False, capture_output=True)
            if done.returncode == 0:
                return python
    return None


class Site:
    """A server and the one tab that is open.

    Args:
        python: Runs it.
        model: What it loads first.
        here: Where its temporary files and what it says go.
        port: Where it listens; 0: any.
    """

    def __init__(self, python: str, model: Path, here: Path, port: int = 0) -> None:
        self.temporary = here / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.said = here / "said.txt"
        environment = {**os.environ, "TMPDIR": str(self.temporary), "HF_HUB_OFFLINE": "1"}
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [python, "-m", "errata", "web", "-m", str(model), "--port", str(port)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, env=environment,
            )  # fmt: skip
        self.url = self._address()
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        self._session = f"s{self.process.pid}"
        config = json.loads(self._got("config"))
        self._ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self._events = {
            tuple(target): event["id"]
            for event in config["dependencies"]
            for target in event["targets"]
        }

    def _address(self) -> str:
        began = time.monotonic()
        while time.monotonic() - began < WAIT:
            found = re.search(r"http://127\.0\.0\.1:\d+/", self.said.read_text())
            if found:
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"the server has not started: {self.said.read_text()[-500:]}")

    def _got(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=WAIT) as reply:
            return reply.read()

    def press(self, button: str, *fields: Any) -> Iterator[str]:
        """Press a button, and yield what comes back, until what it began has ended."""
        number = self._events[self._ids[button], "click"]
        body = {"data": [KEY, *fields], "fn_index": number, "session_hash": self._session}
        self._got("gradio_api/queue/join", body)
        stream = f"{self.url}gradio_api/queue/data?session_hash={self._session}"
        with urllib.request.urlopen(stream, timeout=WAIT) as reply:
            for line in reply:
                text = line.decode()
                yield text
                if "process_completed" in text:
                    return

    def done(self, button: str, *fields: Any) -> str:
        """Press a button, and return all that came back."""
        return "".join(self.press(button, *fields))

    def edit(self, settings: str, editor: str) -> Iterator[str]:
        """Make an edit."""
        fact = ("The capital of France is", "France", "Rome", editor, "", "", "", settings)
        return self.press("edit", *fact)

    def archives(self) -> list[Path]:
        """Return what was packed to be taken along."""
        return sorted(self.temporary.glob(f"errata-web-*/{KEY[:8]}/*.zip"))

    def end(self, how: signal.Signals) -> int:
        """End it; returns its exit code."""
        self.process.send_signal(how)
        return self.process.wait(WAIT)


def web_killed(made: Materials, here: Path, python: str, rng: Random) -> list[str]:
    """Kill a server in the middle of an edit, start it again, and say what is wrong.

    Args:
        made: The model.
        here: An empty folder.
        python: An interpreter that has Gradio.
        rng: Draws the moment.
    """
    faults: list[str] = []
    first = Site(python, made.model, here)
    try:
        _work(first, made.model, faults)
        taken = here / "taken"
        _take(first, taken, faults)
        for text in first.edit(ENDLESS, "ft"):
            if "of 1,000,000" in text:
                break
        else:
            faults.append("the endless edit has ended")
        time.sleep(rng.uniform(0.0, 2.0))
    finally:
        first.end(signal.SIGKILL)
    try:
        assert len(Patch.load(taken).edits) == 1
    except (ErrataError, AssertionError) as error:
        faults.append(f"what was taken along is not whole: {error}")
    left = list(first.temporary.glob("errata-web-*"))
    for path in left:
        os.utime(path / ".lock", (time.time() - 3600,) * 2)
    again = Site(python, made.model, here, first.port)
    code: int | None = None
    try:
        _work(again, made.model, faults)
        lying = [path.name for path in left if path.exists()]
        if len(left) != 1 or lying:
            faults.append(f"left behind: {lying or left}")
        code = again.end(signal.SIGTERM)
    finally:
        if again.process.poll() is None:
            again.end(signal.SIGKILL)
    rest = sorted(path.name for path in again.temporary.glob("errata-web-*"))
    if code != 0 or rest or "Traceback" in again.said.read_text():
        faults.append(f"ends with {code}, {rest} lying about: {again.said.read_text()[-300:]}")
    return faults


def _work(site: Site, model: Path, faults: list[str]) -> None:
    """Load the model and make an edit."""
    site.done("load", str(model))
    told = "".join(site.edit(FAST, "rome"))
    if "France → Rome" not in told and "France \\u2192 Rome" not in told:
        faults.append(f"the edit is not in the history: {told[-500:]}")


def _take(site: Site, to: Path, faults: list[str]) -> None:
    site.done("pack", "patch")
    archives = site.archives()
    if len(archives) != 1:
        faults.append(f"packed: {archives}")
        return
    with zipfile.ZipFile(archives[0]) as archive:
        archive.extractall(to.with_name("unpacked"))
    (folder,) = to.with_name("unpacked").iterdir()
    shutil.move(folder, to)
