"""Run the steps: `python -m benchmarks.gpu --device cuda --out DIR`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

# before torch is imported: caches of this run only, so that nothing measured was made before it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.gpu.run import Bench, Step, run_step


def steps() -> list[Step]:
    """Return all steps, in order of value."""
    from benchmarks.gpu import (
        compiled,
        contract,
        environment,
        equality,
        large,
        loops,
        scores,
        smollm2,
        synchronisations,
        training,
    )

    return [
        Step("environment", 5, environment.run),
        Step("contract", 5, contract.start),  # goes on in the background of the next steps
        Step("equality", 60, equality.float32),
        Step("bfloat16", 15, equality.bfloat16),
        Step("scores", 30, scores.run),
        Step("curve", 20, training.curve),
        Step("contract-result", 5, contract.finish, limit=contract.SECONDS),
        Step("training", 30, training.speed),
        Step("loops", 60, loops.run),
        Step("smollm2", 50, smollm2.run),
        Step("large", 60, large.run),
        Step("synchronisations", 20, synchronisations.run),
        Step("compile", 40, compiled.run),
    ]


def main() -> None:
    known = steps()
    names = [step.name for step in known]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu: the same steps, small")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--skip", nargs="+", choices=names, default=[], metavar="STEP")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M: a GGUF file or a model folder")
    parser.add_argument("--budget", type=float, help="seconds; default 390, on a CPU 3600")
    parser.add_argument("--threads", type=int, help="of the CPU; default half the cores, at most 8")
    parser.add_argument(
        "--small", action="store_true", help="small sizes on a GPU too: a rehearsal"
    )
    args = parser.parse_args()
    small = args.small or args.device == "cpu"
    args.budget = args.budget or (3600 if small else 390)
    args.out.mkdir(parents=True, exist_ok=True)
    cache = tempfile.mkdtemp(prefix="errata-gpu-")
    os.environ["ERRATA_CACHE"] = cache
    import torch

    threads = args.threads or (1 if small else max(1, min(8, (os.cpu_count() or 2) // 2)))
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")  # no TF32 where equality is promised
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device {args.device}: torch sees no GPU; --device cpu runs the steps")
    bench = Bench(args, args.out, args.device, small)
    try:
        for step in known:
            if (not args.only or step.name in args.only) and step.name not in args.skip:
                run_step(bench, step)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    bench.step = "all"
    bench.record("end", failed=bench.failed, left_out=bench.skipped)
    sys.exit(1 if bench.failed else 0)


if __name__ == "__main__":
    main()
