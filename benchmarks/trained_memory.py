"""Peak memory of an IBKE edit on a model of GPT2-XL's shape, in a fresh process.

48 blocks × 1,600, vocabulary 50,257, random float32 weights (6 GB), networks of the published size
for blocks 15 to 17. Counted are the networks and what an edit needs on top of model and networks.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import _common as common
from benchmarks.memory import _status

SHAPES = {
    "gpt2-xl": ({"n_layer": 48, "n_embd": 1600, "n_head": 25}, (15, 16, 17), 13),
    "gpt2-small": ({}, (3, 4, 5), 3),
}
"""Configuration, edited blocks, and GB of free memory below which nothing is tried."""


def build(shape: str, device: str) -> Any:
    """Return a model of that shape; its matrices repeat a million random numbers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from errata.model.lm import LM

    with torch.device("meta"):
        network = GPT2LMHeadModel(GPT2Config(**SHAPES[shape][0], attn_implementation="sdpa"))
    network.to_empty(device=device)
    network.tie_weights()
    numbers = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    numbers = numbers.to(device)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(float("ln_" in name and name.endswith("weight")))
                continue
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(numbers)):
                piece = flat[start : start + len(numbers)]
                piece.copy_(numbers[: len(piece)])
    lm = LM(network, common.gpt2_tokenizer(), name=f"{shape}-shaped")
    _ = lm.spec, lm.fingerprint
    lm.check_finite()
    return lm


def child(shape: str, device: str) -> dict[str, float]:
    """Measure in this process, in MiB."""
    import time

    import torch

    from errata.case import Edit
    from errata.editors import get_editor

    def now() -> float:
        gc.collect()
        if device != "cpu":
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated() / 2**20
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return _status("VmRSS")

    start = now()
    lm = build(shape, device)
    model = now()
    editor: Any = get_editor("ibke", {"layers": SHAPES[shape][1], "d_m": 1024})
    network = editor.build(editor.sites(lm), lm)
    editor.adopt(lm, network.to(device).requires_grad_(False).eval())
    before = now()
    edit = Edit("The mother tongue of Danielle Darrieux is", "English", subject="Danielle Darrieux")
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    began = time.process_time()
    patch = editor.edit_one(lm, [edit])
    seconds = time.process_time() - began
    peak = _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return {
        "start": start, "model": model, "before": before, "peak": peak,
        "patch": patch.nbytes / 2**20, "seconds": seconds,
        "parameters": sum(p.numel() for p in network.parameters()) / 1e6,
        "weights": sum(p.numel() for p in lm.model.parameters()) / 1e6,
    }  # fmt: skip


def available() -> float:
    """Return GB of memory that can be had without swapping."""
    for row in Path("/proc/meminfo").read_text().splitlines():
        if row.startswith("MemAvailable:"):
            return int(row.split()[1]) / 1e6
    return 0.0


def main() -> None:
    args = common.options(__doc__, child="", shape="gpt2-xl")
    if args.child:
        print(json.dumps(child(args.child, args.device)))
        return
    shape = "gpt2-small" if args.quick else args.shape
    if args.device == "cpu" and available() < SHAPES[shape][2]:
        print(f"\ntrained_memory: not measured, {available():.0f} GB of memory are free; "
              f"{SHAPES[shape][2]} are needed")  # fmt: skip
        return
    command = [sys.executable, "-m", "benchmarks.trained_memory", "--child", shape]
    command += ["--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=common.ROOT, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise SystemExit(done.returncode)
    found = json.loads(done.stdout.splitlines()[-1])
    model, networks = found["model"] - found["start"], found["before"] - found["model"]
    edit = found["peak"] - found["before"]
    lines = [
        common.Line(
            what, shape, "the loaded model", model / max(size, 0.1), model, size, unit="MiB",
            note=note,
        )
        for what, size, note in (
            ("IBKE's networks, d_m 1,024", networks, f"{found['parameters']:.0f} M parameters "
             f"beside {found['weights']:.0f} M"),
            ("an IBKE edit, above model and networks", edit,
             f"whole process {found['peak']:.0f} MiB at its peak; patch {found['patch']:.1f} MiB; "
             f"{found['seconds']:.1f} CPU s"),
        )
    ]  # fmt: skip
    common.finish("trained_memory", args, lines, {"process": found})


if __name__ == "__main__":
    main()
