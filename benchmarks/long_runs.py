"""Memory over long runs, and lookups in large memories: does anything grow that should not?

Evaluations of many records, edited one by one, and one sequence of as many edits in batches, in a
run folder, on the pocket model: what the process holds after each group of records, after the
garbage is collected and freed memory is given back. Growth is counted from the first tenth on, when
what is made once is there. Then lookups in GRACE's codebook, among SERAC's keys and the keys of
updates kept apart, drawn at random, with 10,000 and 100,000 entries.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import _common as common
from benchmarks.memory import _status


def held() -> float:
    """Return the MiB that the process holds, without what it could give back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def evaluated(
    lm: Any, name: str, count: int, model: str, **how: Any
) -> tuple[list[tuple[int, float]], int]:
    """Evaluate records; return what was held after how many, and the failures."""
    from errata.data import load_cases
    from errata.editors import get_editor
    from errata.evaluation import evaluate

    cases = [
        replace(case, probes=tuple(replace(probe, hops=()) for probe in case.probes))
        for case in load_cases("world", "train", limit=count, seed=0).cases
    ]
    editor = get_editor(name, model=model)
    editor.prepare(lm)
    seen: list[tuple[int, float]] = []

    def note(done: int, total: int) -> None:
        if not seen or done - seen[-1][0] >= max(1, count // 50):
            seen.append((done, held()))

    with tempfile.TemporaryDirectory() as folder:
        result = evaluate(lm, editor, cases, out=Path(folder) / "run", bootstrap=0,
                          keep_collisions=True, progress=note, **how)  # fmt: skip
    seen.append((len(cases), held()))
    return seen, sum(record["error"] is not None for record in result.records)


def growth(what: str, seen: list[tuple[int, float]], failed: int, allowed: str = "") -> common.Line:
    """Make the line of one run."""
    count = seen[-1][0]
    early = next(value for done, value in seen if done >= count / 10)
    middle = next(value for done, value in seen if done >= count / 2)
    late = seen[-1][1]
    return common.Line(
        what, common.POCKET, "after a tenth of them", early / late, early, late, aim=0.95,
        unit="MiB", equal=f"{failed} could not be edited",
        note=f"{seen[0][1]:.0f} MiB at the start, {middle:.0f} half way{allowed}",
    )  # fmt: skip


def lookups(lm: Any, entries: int, args: Any) -> list[common.Line]:
    """Time lookups among so many entries, each against comparing one entry after another."""
    import torch

    from errata.editors.grace.codebook import Codebook
    from errata.nets.scope import nearest
    from errata.patch.changes.retrieved import KeySpace, Lookup, Retrieved, Store

    generator = torch.Generator().manual_seed(0)

    def drawn(width: int) -> torch.Tensor:
        found = torch.randn(entries, width, generator=generator)
        return torch.nn.functional.normalize(found, dim=-1)

    def timed(
        what: str, keys: torch.Tensor, near: Callable[[Any, Any], float], find: Callable[[Any], Any]
    ) -> common.Line:
        queries = keys[:: max(1, entries // 1024)][:1024] + 0.01
        few = queries[:2]
        peak = _status("VmHWM")
        ways = {
            "slow": lambda: [max(range(entries), key=lambda i: near(q, keys[i])) for q in few],
            "fast": lambda: find(few),
        }
        spent, found = common.interleaved(ways, 1)
        wrong = sum(a != b for a, b in zip(found["slow"], found["fast"], strict=True))
        batch, _ = common.interleaved({"fast": lambda: find(queries)}, args.repeats)
        per = 1e6 * min(batch["fast"].cpu) / len(queries)
        return common.line(
            f"{what}, {entries:,} entries, {len(few)} questions", common.POCKET,
            "one entry after another", spent["slow"], spent["fast"], "cpu",
            equal=f"{wrong} of {len(few)} choices differ",
            note=f"{per:.0f} µs a question, {len(queries):,} at once; "
            f"{_status('VmHWM') - peak:.0f} MiB more at the peak",
        )  # fmt: skip

    site = lm.site(3)
    keys = drawn(site.d_in)
    nothing = torch.zeros(entries, 1)
    book = Codebook(
        keys, nothing, torch.full((entries,), 0.5), ((0,),) * entries, (0,) * entries
    )  # fmt: skip
    lines = [
        timed("GRACE: the nearest key", keys, lambda q, k: -float((q - k).norm()),
              lambda asked: book.nearest(asked)[1].tolist())
    ]  # fmt: skip
    keys = drawn(64)
    lines.append(
        timed("SERAC: the nearest entry", keys, lambda q, k: float(q @ k),
              lambda asked: nearest(asked, keys)[1].tolist())
    )  # fmt: skip
    keys = drawn(lm.embedding.shape[1])
    numbers = torch.arange(1, entries + 1)
    store = Store(torch.zeros(1, entries).expand(site.d_out, -1), nothing.expand(-1, site.d_in),
                  numbers)  # fmt: skip
    lookup = Lookup(lm, Retrieved(keys, {site.path: store}, 2.0, KeySpace(lm.n_layers - 1)))
    lookup.threshold = -1.0
    lines.append(
        timed("updates kept apart (ibke-retrieval): the nearest", keys,
              lambda q, k: float(q @ k), lookup.nearest)
    )  # fmt: skip
    return lines


def main() -> None:
    """Measure runs and lookups."""
    args = common.options(
        __doc__, count=2000, batch=20, single="ultraedit", joint="ultraedit",
        entries="10000 100000", skip="",
    )  # fmt: skip
    if args.quick:
        args.count, args.entries = 60, "500"
    lm = common.build_model(common.POCKET, args)
    lines: list[common.Line] = []
    runs: list[tuple[str, Callable[[], Any]]] = [
        (f"{args.single}: {args.count:,} records, each edited alone",
         lambda: evaluated(lm, args.single, args.count, args.pocket)),
        (f"{args.joint}: a sequence of {args.count:,} edits, {args.batch} per batch",
         lambda: evaluated(lm, args.joint, args.count, args.pocket, batch=args.batch,
                           regime=f"sequential:{args.count}")),
    ]  # fmt: skip
    extra: dict[str, Any] = {}
    for what, run in runs:
        if what.partition(":")[2].split()[0] not in args.skip.split():
            seen, failed = run()
            lines.append(growth(what, seen, failed))
            extra[what] = seen
    for entries in args.entries.split():
        lines += lookups(lm, int(entries), args)
    common.finish("long_runs", args, lines, {"held": extra})


if __name__ == "__main__":
    main()
