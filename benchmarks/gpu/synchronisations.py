"""Where the host waits for the GPU: per step of the optimisations, with the line that asks.

Every read of a value (`item`, `tolist`, `bool`, `nonzero`, a copy to the CPU) is counted where
operators are dispatched, so a run without a GPU counts the same ones. Counts of a long and of a
short optimisation are subtracted: what is left is what one step costs. On a GPU, torch's own
sync-debug mode counts beside it what it knows to wait.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu import pocket
from benchmarks.gpu.run import Bench

STEPS = (6, 26)
"""Steps of the short and of the long run."""

REHEARSED = (2, 6)
"""The same in a rehearsal on a CPU."""

WORST = 8
"""Lines of code that are named per editor."""

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")


def run(bench: Bench) -> None:
    """Count for the loops that matter: ROME's and MEMIT's values, FT, GRACE, training of IBKE."""
    lm = pocket.load(bench.device)
    groups = [list(case.edits) for case in pocket.records(2)]
    never_stop = {
        "rome": {"stop_loss": 0.0}, "memit": {"stop_loss": 0.0}, "ft": {"stop_loss": 0.0},
        "grace": {"stop_loss": 0.0},
    }  # fmt: skip
    for name, own in never_stop.items():
        settings = {**pocket.settings_of(bench, name), **own}
        with bench.guarded(name):
            _count(bench, name, lambda steps, n=name, s=settings: _edit(lm, groups, n, s, steps))
    with bench.guarded("training"):
        _count(bench, "training of ibke", lambda steps: _train(bench, steps))


def _edit(lm: Any, groups: Any, name: str, settings: dict[str, Any], steps: int) -> None:
    import errata

    errata.get_editor(name, {**settings, "steps": steps}, model="pocket").edit(lm, groups)


def _train(bench: Bench, steps: int) -> None:
    import errata
    from errata.training import TrainConfig

    config = TrainConfig(
        steps=steps, batch=4, log_every=10**6, validation_groups=0, calibration_edits=4,
        validate_every=10**6, save_every=10**6,
    )  # fmt: skip
    editor = errata.get_editor("ibke", {"weights": None}, model="pocket")
    lm = pocket.load(bench.device)
    errata.train(lm, editor, pocket.records(8), bench.out / "train", config=config, force=True)


def _count(bench: Bench, name: str, way: Callable[[int], None]) -> None:
    both = REHEARSED if bench.small else STEPS
    way(both[0])  # warm: what is made once is made here
    counts, waits = [], []
    for steps in both:
        with reads(bench.device) as (found, waited):
            way(steps)
        counts.append(found)
        waits.append(waited)
    more = both[1] - both[0]
    per_step = _difference(*counts, more)
    lines = sorted(per_step.items(), key=lambda item: -item[1])[:WORST]
    bench.record(
        name, reads_per_step=round(sum(per_step.values()), 2),
        waits_per_step=round(sum(_difference(*waits, more).values()), 2) if bench.is_cuda else None,
        once=sum(counts[0].values()), worst={line: round(value, 2) for line, value in lines},
        worst_waits=dict(_difference(*waits, more).most_common(WORST)),
    )  # fmt: skip


def _difference(short: Counter[str], long: Counter[str], steps: int) -> Counter[str]:
    return Counter(
        {key: (long[key] - short[key]) / steps for key in long if long[key] != short[key]}
    )


@contextmanager
def reads(device: str) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Count reads of values by operator and line, and torch's warnings of waiting."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[str] = Counter()
    waited: Counter[str] = Counter()
    here = torch.device(device).type

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func.overloadpacket.__name__
            given = kwargs or {}
            home = here != "cpu" and _moves_home(name, args, given, here)
            if (name in READS and _is_on(args, here)) or home:
                found[f"{name} {_line()}"] += 1
            return func(*args, **given)

    def show(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            waited[_line()] += 1

    with Count(), warnings.catch_warnings():
        if here != "cpu":
            warnings.simplefilter("always")
            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found, waited
        finally:
            if here != "cpu":
                torch.cuda.set_sync_debug_mode("default")


def _is_on(args: Any, device: str) -> bool:
    return any(getattr(arg, "device", None) and arg.device.type == device for arg in args)


def _moves_home(name: str, args: Any, given: Any, device: str) -> bool:
    """Whether an operator copies a tensor from the GPU to the CPU."""
    if name == "_to_copy":
        target = given.get("device")
        return target is not None and target.type == "cpu" and args[0].device.type == device
    if name == "copy_":
        return args[0].device.type == "cpu" and args[1].device.type == device
    return False


def _line() -> str:
    """Return file, line and function of the innermost frame in the package."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "errata" in path.parts:
            return f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
