"""A memory of 10,000 edits: what finding the entry of a question costs.

Keys are encoded when an edit is written and stand in one matrix. The first baseline compares a
question with one entry after another; the second encodes every entry again for each batch of
questions, as EasyEdit's SERAC does; the third is the same pass with a single entry in the memory.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _common as common


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return different prompts of the world with an answer each."""
    from errata.data import load_cases

    found: dict[str, str] = {}
    for variants in range(1, 9):
        options = {"variants": variants}
        for case in load_cases("world", "train", seed=seed, options=options).cases:
            found.update((edit.prompt, edit.target) for edit in case.edits)
            found.update((probe.prompt, probe.target) for probe in case.probes)
        if len(found) >= count:
            break
    return list(found.items())[:count]


def main() -> None:
    args = common.options(__doc__, edits=10_000, questions=64)
    if args.quick:
        args.edits = 500
    import torch

    from errata.case import Edit
    from errata.editors import get_editor
    from errata.model.tokens import positions_of
    from errata.nets.scope import embed, nearest

    lm = common.build_model(common.POCKET, args)
    editor: Any = get_editor("serac", model=args.pocket)
    pairs = texts(args.edits + args.questions)
    edits = [Edit(prompt, target) for prompt, target in pairs[args.questions :]]
    patch, one = editor.edit(lm, [edits, edits[:1]])
    (route,) = patch.changes
    keys, encoder = route.weights["keys"], editor.network(lm).encoder
    asked = [lm.row(prompt).ids for prompt, _ in pairs[: args.questions]]
    stored = [lm.row(edit.prompt).ids for edit in edits]
    queries = embed(lm, encoder, asked)

    def one_by_one() -> list[int]:
        entries = list(keys)
        return [max(range(len(entries)), key=lambda i: float(q @ entries[i])) for q in few]

    def at_once() -> list[int]:
        return nearest(few, keys)[1].tolist()

    few = queries[:4]
    timed, found = common.interleaved({"slow": one_by_one, "fast": at_once}, args.repeats)
    lines = [
        common.line(
            f"the nearest of {len(keys):,} entries, {len(few)} questions", common.POCKET,
            "one entry after another", timed["slow"], timed["fast"], args.device, aim=100.0,
            equal=_differ(found["slow"], found["fast"]),
        )
    ]  # fmt: skip

    def again() -> list[int]:
        anew = embed(lm, encoder, stored)
        return nearest(embed(lm, encoder, asked), anew)[1].tolist()

    def kept() -> list[int]:
        return nearest(embed(lm, encoder, asked), keys)[1].tolist()

    timed, found = common.interleaved({"slow": again, "fast": kept}, args.repeats)
    lines.append(
        common.line(
            f"encoding and finding {len(asked)} questions", common.POCKET,
            "every entry encoded again (EasyEdit)", timed["slow"], timed["fast"], args.device,
            aim=20.0, equal=_differ(found["slow"], found["fast"]),
        )
    )  # fmt: skip
    rows = [lm.row(prompt, target) for prompt, target in pairs[: args.questions]]
    at = positions_of(rows, range(len(rows)), lm.device)

    @torch.no_grad()
    def passed(under: Any) -> Any:
        with under.applied(lm):
            return lm.logits(lm.batch(rows, range(len(rows))), at)

    # rows in scope of neither memory: what differs is the lookup alone
    timed, found = common.interleaved(
        {"small": lambda: passed(_deaf(one)), "large": lambda: passed(_deaf(patch))},
        3 * args.repeats,
    )
    lines.append(
        common.line(
            f"applying the patch and one pass of {len(rows)} questions, {len(keys):,} entries",
            common.POCKET, "the same with one entry", timed["small"], timed["large"], args.device,
            aim=0.7, equal="same bits" if torch.equal(*found.values()) else "differ",
            note=f"{patch.nbytes / 2**20:.1f} MiB, {patch.nbytes / len(keys):.0f} bytes per edit",
        )
    )  # fmt: skip
    common.finish("serac_lookup", args, lines)


def _deaf(patch: Any) -> Any:
    """Return the patch with a threshold that nothing reaches."""
    from dataclasses import replace

    (route,) = patch.changes
    return replace(patch, changes=(replace(route, config={**route.config, "threshold": 1e9}),))


def _differ(a: list[int], b: list[int]) -> str:
    return f"{sum(x != y for x, y in zip(a, b, strict=True))} of {len(a)} choices differ"


if __name__ == "__main__":
    main()
