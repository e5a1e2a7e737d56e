"""What the benchmarks share: models, records, interleaved timing, output."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# One thread: a ratio between two single-threaded runs does not depend on how many cores are free.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Caches of this run only, so that nothing measured was computed by an earlier one.
CACHE = Path(tempfile.mkdtemp(prefix="errata-benchmark-"))
os.environ["ERRATA_CACHE"] = str(CACHE)
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
SMALL, POCKET = "gpt2-small", "pocket"


def shared(*parts: str) -> Path:
    """Return a file of the folder of public benchmark data; exit 2 if it is not there."""
    root = Path(os.environ.get("ERRATA_SHARED", ROOT.parent / "shared"))
    path = root.joinpath(*parts)
    if not path.exists():
        print(
            f"missing: {path}\nThese measurements need public files beside the project: "
            "data/tokenizers/gpt2/{encoder.json,vocab.bpe} (OpenAI GPT-2), "
            "data/counterfact/counterfact-{train.json,nested-1129.json} (CounterFact) and "
            "data/text/wikipedia-paragraphs.json.\nSet ERRATA_SHARED to the folder of data/.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return path


# ---------------------------------------------------------------------- options


def options(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """Read the command line that all benchmarks share.

    Args:
        doc: Docstring of the script.
        defaults: Default values of options, and any further options of the script.
    """
    parser = argparse.ArgumentParser(description=(doc or "").strip().partition("\n")[0])
    known: dict[str, Any] = {"device": "cpu", "records": 32, "repeats": 3, "threads": 1}
    known["pocket"] = POCKET
    for name, value in {**known, **defaults}.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"default {value!r}")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, roughly")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--keep", action="store_true", help="make it the result that docs cite")
    parser.add_argument("--models", nargs="+", default=[POCKET, SMALL], choices=[POCKET, SMALL])
    args = parser.parse_args()
    if args.quick:
        args.records, args.repeats = min(args.records, 6), 1
        if args.keep:
            parser.error("--quick is of small sizes: no result to --keep")
    import torch

    torch.set_num_threads(args.threads)
    return args


# ---------------------------------------------------------------------- models and records


def build_model(name: str, args: argparse.Namespace, dtype: str = "float32") -> Any:
    """Return one of the two models as an `LM`, with everything made that is made once per model.

    `gpt2-small` has GPT-2 small's shape and tokenizer and random weights (seed 0); `pocket` is the
    model that errata ships.
    """
    import errata

    if name == POCKET:
        return prepared(errata.load(args.pocket, dtype=dtype, device=args.device))
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from errata.model.lm import LM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa"))
    network = network.to(device=args.device, dtype=getattr(torch, dtype))
    return prepared(LM(network, gpt2_tokenizer(), name="gpt2-small-shaped"))


def prepared(lm: Any) -> Any:
    """Establish what is established once per model, so that it is part of no measurement."""
    _ = lm.spec, lm.fingerprint, lm.prefix_cache_works
    return lm


def gpt2_tokenizer() -> Any:
    """Build GPT-2's tokenizer from its two published files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = shared("data", "tokenizers", "gpt2")
    core = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def records(model: str, count: int, nested: bool = False) -> list[Any]:
    """Return cases: CounterFact for the GPT-2 shape, its own world for the pocket model.

    Hops are left out, since editing them is not part of what is measured.
    """
    from errata.data import load_cases

    if model == POCKET:
        loaded = load_cases("world", "test", limit=count, seed=0)
    else:
        name = "counterfact-nested-1129.json" if nested else "counterfact-train.json"
        path = shared("data", "counterfact", name)
        loaded = load_cases(f"counterfact:{path}", limit=count, seed=0)
    return [
        replace(case, probes=tuple(replace(probe, hops=()) for probe in case.probes))
        for case in loaded.cases
    ]


def paragraphs(count: int) -> tuple[str, ...]:
    """Return paragraphs of Wikipedia."""
    found = json.loads(shared("data", "text", "wikipedia-paragraphs.json").read_text("utf-8"))
    return tuple(entry["text"] if isinstance(entry, dict) else entry for entry in found[:count])


# ---------------------------------------------------------------------- timing


@dataclass
class Timing:
    """Seconds of one way of doing it, one entry per repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def on(self, device: str) -> list[float]:
        """What counts: CPU seconds on a CPU (others may use it too), wall seconds elsewhere."""
        return self.cpu if device == "cpu" else self.wall


def interleaved(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu"
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Run all ways in turn, `repeats` times, so that a slow spell of the machine hits all alike.

    Returns:
        Timings and what each way returned last.
    """
    timings = {name: Timing() for name in ways}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            _synchronise(device)
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = way()
            _synchronise(device)
            timings[name].cpu.append(time.process_time() - cpu)
            timings[name].wall.append(time.perf_counter() - wall)
    return timings, results


def _synchronise(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def ratio(slow: Timing, fast: Timing, device: str = "cpu") -> float:
    """Median over the repeats of slow / fast."""
    pairs = zip(slow.on(device), fast.on(device), strict=True)
    return statistics.median(a / b for a, b in pairs)


# ---------------------------------------------------------------------- output


@dataclass
class Line:
    """One measured claim.

    Attributes:
        what: What was made faster or smaller.
        model: On which model.
        baseline: Against what.
        ratio: Baseline / errata, in time or memory.
        aim: What the ratio should be at least, if there is an aim.
        before: Seconds (or MiB) of the baseline, median.
        after: The same of errata.
        unit: Of `before` and `after`.
        equal: How far the results differ.
        note: Anything else.
    """

    what: str
    model: str
    baseline: str
    ratio: float
    before: float
    after: float
    aim: float | None = None
    unit: str = "s"
    equal: str = ""
    note: str = ""


def line(
    what: str, model: str, baseline: str, slow: Timing, fast: Timing, device: str, **more: Any
) -> Line:
    """Make the line of a time ratio."""
    return Line(
        what, model, baseline, ratio(slow, fast, device),
        statistics.median(slow.on(device)), statistics.median(fast.on(device)), **more,
    )  # fmt: skip


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Describe what this ran on."""
    import torch
    import transformers

    cuda = args.device != "cpu"
    flags = _cpu_flags()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine() + " CPU",
        "features": [name for name in ("avx2", "avx512f", "amx_bf16") if name in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "time": "wall" if cuda else "CPU",
    }


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(text.partition("flags")[2].partition("\n")[0].split())


def finish(
    name: str, args: argparse.Namespace, lines: Sequence[Line], extra: Mapping[str, Any] = {}
) -> None:
    """Print the lines; write them as JSON to a file, or where the docs take them from."""
    print(f"\n{name} ({'wall' if args.device != 'cpu' else 'CPU'} time, medians)")
    for item in lines:
        aim = f" (aim {item.aim:.3g}×)" if item.aim else ""
        print(
            f"  {item.model:<11} {item.what}: {item.ratio:.2f}×{aim} against {item.baseline}"
            f"  [{item.before:.4g} → {item.after:.4g} {item.unit}]"
            + (f"  {item.equal}" if item.equal else "")
            + (f"  {item.note}" if item.note else "")
        )
    targets = [args.json] if args.json else []
    targets += [RESULTS / f"{name}.json"] if args.keep else []
    places = {"json", "keep", "easyedit", "result"}  # where files lie changes no figure
    settings = {key: str(value) for key, value in vars(args).items() if key not in places}
    document = {
        "benchmark": name,
        "machine": machine(args),
        "settings": settings,
        "lines": [asdict(item) for item in lines],
        **extra,
    }
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
