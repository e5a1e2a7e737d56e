"""10,000 updates kept apart: what it costs that a question has to find its own.

The state of a question's prompt is compared with the keys of all requests in one product. The
baseline compares it with one key after another; then a whole pass of questions about none of the
edits is timed, which asks their prompts once more, under one stored update and under all of them.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _common as common


def main() -> None:
    args = common.options(__doc__, edits=10_000, questions=64)
    if args.quick:
        args.edits = 500
    import torch

    from errata.data import load_cases
    from errata.model.tokens import positions_of
    from errata.patch import Patch
    from errata.patch.changes.retrieved import KeySpace, Lookup, Retrieved, Store

    lm = common.build_model(common.POCKET, args)
    sites = [lm.site(layer) for layer in (3, 4, 5)]
    cases = load_cases("world", "test", limit=args.questions, seed=0).cases
    edits = [edit for case in cases for edit in case.edits]
    rows = [lm.row(edit.prompt, edit.target) for edit in edits]
    space = KeySpace(lm.n_layers - 1)
    queries = space.of(lm, [row.ids[: row.prompt_length] for row in rows])
    generator = torch.Generator().manual_seed(0)

    def memory(count: int) -> Retrieved:
        """Return so many updates of rank one; what they write does not matter to a lookup."""
        keys = torch.randn(count, queries.shape[1], generator=generator)
        stores = {
            site.path: Store(
                torch.zeros(site.d_out, count), torch.zeros(count, site.d_in),
                torch.arange(1, count + 1),
            )
            for site in sites
        }  # fmt: skip
        return Retrieved(torch.nn.functional.normalize(keys, dim=-1), stores, 2.0, space)

    one, many = memory(1), memory(args.edits)
    lookup = Lookup(lm, many)
    lookup.threshold = -1.0
    few = queries[:4]

    def one_by_one() -> list[int]:
        entries = list(many.keys)
        return [max(range(len(entries)), key=lambda i: float(q @ entries[i])) for q in few]

    timed, found = common.interleaved(
        {"slow": one_by_one, "fast": lambda: lookup.nearest(few)}, args.repeats
    )
    differ = sum(a != b for a, b in zip(found["slow"], found["fast"], strict=True))
    lines = [
        common.line(
            f"the nearest of {args.edits:,} updates, {len(few)} questions", common.POCKET,
            "one key after another", timed["slow"], timed["fast"], args.device, aim=50.0,
            equal=f"{differ} of {len(few)} choices differ",
        )
    ]  # fmt: skip
    at = positions_of(rows, range(len(rows)), lm.device)

    @torch.no_grad()
    def passed(change: Retrieved | None) -> Any:
        lm.once("states of prompts", dict).clear()  # every question is new
        with Patch(() if change is None else (change,)).applied(lm):
            return lm.logits(lm.batch(rows, range(len(rows))), at)

    timed, found = common.interleaved(
        {"none": lambda: passed(None), "one": lambda: passed(one), "many": lambda: passed(many)},
        3 * args.repeats,
    )
    same = "same bits" if all(torch.equal(x, found["none"]) for x in found.values()) else "differ"
    for name, label, aim in (("one", "one update", 0.7), ("none", "the model alone", 0.3)):
        lines.append(
            common.line(
                f"one pass of {len(rows)} questions, {args.edits:,} updates", common.POCKET,
                f"the same with {label}", timed[name], timed["many"], args.device, aim=aim,
                equal=same, note=f"{many.keys.nbytes / len(many):,.0f} bytes a key",
            )
        )  # fmt: skip
    common.finish("retrieval_lookup", args, lines)


if __name__ == "__main__":
    main()
