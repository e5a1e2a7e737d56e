"""Two processes learn what one does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.nets.samples import small
from tests.training.samples import model, run, tensors

from errata.training.log import read_log
from errata.training.processes import Interrupt

SUMS = 1e-9
"""Relative, in float64: two processes add up losses and gradients in another order, and Adam
divides differences of 1e-16 by the roots of squares as small as 1e-16."""

EDITORS: dict[str, dict[str, Any]] = {
    "ibke": {"norm": "running"},
    "mend": {"norm": "running"},
    "malmen": {},
}
OPTIONS: dict[str, Any] = {"batch": 5, "steps": 4, "merge": 2}

SCRIPT = """
import os, sys, time
from pathlib import Path
from errata.training import loop
from tests.training.test_processes import train_all
if os.environ["RANK"] == "0":  # the other process is at the next run before this one has ended
    finish = loop.finish
    loop.finish = lambda accelerator: (time.sleep(1.0), finish(accelerator))
train_all(Path(sys.argv[1]))
"""


def train_all(out: Path) -> None:
    for name, settings in EDITORS.items():
        run(out / name, small(name, **settings), lm=model("float64"), **OPTIONS)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).resolve().parents[2]
    children = []
    for rank in ("0", "1"):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        environment = {**os.environ, **world, **place, "PYTHONPATH": str(root)}
        environment["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "two")]
        children.append(
            subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE, text=True)
        )
    train_all(tmp_path / "one")
    try:
        for child in children:
            assert child.wait(timeout=240) == 0, child.stderr.read() if child.stderr else ""
    finally:
        for child in children:
            child.kill()
            child.communicate()
    for name in EDITORS:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        left, right = tensors(one), tensors(two)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            if key.startswith("network.") and tensor.is_floating_point():
                scale = float(tensor.abs().max()) or 1.0
                assert float((tensor - right[key]).abs().max()) < SUMS * scale, (name, key)
        if "norm" in EDITORS[name]:
            assert any(key.endswith("running.m2") for key in left)
        logged = read_log(two)
        assert [(e["kind"], e["step"]) for e in logged] == [
            (e["kind"], e["step"]) for e in read_log(one)
        ]
        for mine, theirs in zip(read_log(one), logged, strict=True):
            assert theirs["total"] == pytest.approx(mine["total"], rel=SUMS)
        best = "best/model.safetensors"
        assert load_file(one / best).keys() == load_file(two / best).keys()


def test_ctrl_c_waits_once() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_are_left_alone() -> None:
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)
    found = []

    def elsewhere() -> None:
        with Interrupt() as interrupt:
            found.append(interrupt.asked)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]
