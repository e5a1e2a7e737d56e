"""Evaluation: stacked, answer-only and pre-edit cached, against one row per forward pass.

The plain loop is what published code does for every record: put the patch into the weights, run
every question as a batch of one, take the softmax of all positions, run the unedited model again
for locality, put the weights back. Edits are given (random rank-one patches), so that only
evaluation is timed.
"""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks import _common as common
from benchmarks._common import POCKET, SMALL
from errata.editors.base import Editor


class Given(Editor):
    """An editor that only hands out patches made before.

    Args:
        patches: By the prompt of a group's first edit.
    """

    name = "given"
    title = "Given patches"
    paper = ""

    def __init__(self, patches: dict[str, Any]) -> None:
        super().__init__()
        self.patches = patches

    def edit_groups(self, lm: Any, groups: Any, before: Any) -> list[Any]:
        """Return the patch of each group's first prompt."""
        return [self.patches[group[0].prompt] for group in groups]


def random_patches(lm: Any, cases: list[Any], layer: int, share: float = 0.2) -> dict[str, Any]:
    """Make one rank-one patch per case, `share` times as large as the matrix it changes."""
    import torch

    from errata.model.spec import weight_of
    from errata.patch import LowRank, Patch

    site = lm.site(layer)
    size = float(weight_of(lm.model, site).detach().float().norm())
    generator = torch.Generator().manual_seed(0)
    patches = {}
    for case in cases:
        B = torch.randn(site.d_out, 1, generator=generator)
        A = torch.randn(1, site.d_in, generator=generator)
        B *= share * size / (B.norm() * A.norm())
        change = LowRank(site.path, B.to(lm.device), A.to(lm.device))
        patches[case.edits[0].prompt] = Patch.for_model(lm, [change], editor="given")
    return patches


# ---------------------------------------------------------------------- the plain loop


def plain_row(lm: Any, prompt: str, target: str) -> tuple[Any, list[int], int]:
    """Tokenise prompt and target; return input ids, labels and the first supervised position."""
    import torch

    prompt_ids = lm.tokenizer(prompt)["input_ids"]
    ids = lm.tokenizer(prompt + " " + target)["input_ids"]
    labels = ids[len(prompt_ids) :]
    return torch.tensor([ids[:-1]], device=lm.device), labels, len(prompt_ids) - 1


def plain_scores(lm: Any, prompt: str, target: str, own: list[int] | None) -> dict[str, Any]:
    """Score one answer with one forward pass of one row."""
    import torch

    ids, labels, start = plain_row(lm, prompt, target)
    with torch.no_grad():
        logits = lm.model(ids, use_cache=False).logits
    logprobs = torch.log_softmax(logits.float(), -1)[0, start:]
    wanted = labels if own is None else own
    ranks = [int((logprobs[t] > logprobs[t, i]).sum()) for t, i in enumerate(wanted)]
    nll = -sum(float(logprobs[t, i]) for t, i in enumerate(labels)) / len(labels)
    return {"argmax": logprobs.argmax(-1).tolist(), "ranks": ranks, "nll": nll}


def plain_evaluation(lm: Any, cases: list[Any], patches: dict[str, Any]) -> list[list[Any]]:
    """Score every question of every case, one after the other."""
    from errata.model.spec import weight_of

    compare = any(probe.foil for case in cases for probe in case.probes)
    found = []
    for case in cases:
        edit = case.edits[0]
        foil = edit.target_true if compare else None
        asked = [("reliability", edit.prompt, edit.target, foil, 1)]
        for kind in ("generality", "locality"):
            asked += [(kind, p.prompt, p.target, p.foil, p.top_k or 5) for p in case.of(kind)]
        before: list[Any] = []
        for kind, prompt, target, foil, _ in asked:
            earlier = None
            if kind == "locality" or foil:
                earlier = plain_scores(lm, prompt, target, None)
            if foil:
                plain_scores(lm, prompt, foil, None)
            before.append(earlier)
        change = patches[edit.prompt].changes[0]
        site = next(s for s in lm.spec.ffn_out if s.path == change.path)
        weight = weight_of(lm.model, site).data
        saved = weight.clone()
        weight += (change.B @ change.A).to(weight.dtype)
        entries = []
        for (kind, prompt, target, foil, k), earlier in zip(asked, before, strict=True):
            own = earlier["argmax"] if kind == "locality" else None
            scores = plain_scores(lm, prompt, target, own)
            hits = [int(rank < k) for rank in scores["ranks"]]
            entry = {"hits": hits, "argmax": scores["argmax"], "nll": scores["nll"]}
            if foil:
                entry["foil_nll"] = plain_scores(lm, prompt, foil, None)["nll"]
            entries.append(entry)
        weight.copy_(saved)
        found.append(entries)
    return found


# ---------------------------------------------------------------------- the comparison


def compare(plain: list[list[Any]], result: Any) -> dict[str, Any]:
    """Return how far two sets of answers differ."""
    nll, hits, tokens, total = 0.0, 0, 0, 0
    for entries, record in zip(plain, result.records, strict=True):
        for one, other in zip(entries, record["questions"], strict=True):
            total += len(one["hits"])
            hits += sum(a != b for a, b in zip(one["hits"], other["hits"], strict=True))
            if "argmax" in other:
                tokens += sum(a != b for a, b in zip(one["argmax"], other["argmax"], strict=True))
            for key in ("nll", "foil_nll"):
                if key in one and key in other:
                    nll = max(nll, abs(one[key] - other[key]))
    return {"positions": total, "hits": hits, "tokens": tokens, "nll": nll}


def describe(difference: dict[str, Any], compared: bool) -> str:
    """Say in words how far the answers differ."""
    text = f"{difference['hits']} of {difference['positions']} hits differ"
    return text + (f", NLL by at most {difference['nll']:.1e}" if compared else "")


def without_foils(cases: list[Any]) -> list[Any]:
    """Drop the competing answers: one answer per question."""
    from dataclasses import replace

    return [
        replace(case, probes=tuple(replace(probe, foil=None) for probe in case.probes))
        for case in cases
    ]


def forget() -> None:
    """Empty the cache of pre-edit answers."""
    shutil.rmtree(common.CACHE / "preedit", ignore_errors=True)


def measure(
    args: Any, lm: Any, model: str, cases: list[Any], label: str, aim: float | None
) -> list[common.Line]:
    """Time the plain loop and errata on the same cases and patches."""
    from errata.evaluation import evaluate

    layer = 5 if model == SMALL else 0
    patches = random_patches(lm, cases, layer)
    editor = Given(patches)

    def cold() -> Any:
        forget()
        return evaluate(lm, editor, cases, data_name="benchmark", keep_collisions=True)

    def warm() -> Any:
        return evaluate(lm, editor, cases, data_name="benchmark", keep_collisions=True)

    ways = {"plain": lambda: plain_evaluation(lm, cases, patches), "cold": cold, "warm": warm}
    timings, results = common.interleaved(ways, args.repeats, args.device)
    compared = any(probe.foil for case in cases for probe in case.probes)
    equal = describe(compare(results["plain"], results["cold"]), compared)
    more = {"equal": equal, "note": f"{len(cases)} records"}
    return [
        common.line(
            f"evaluation, {label}", model, "one row per pass, logits of all positions",
            timings["plain"], timings["cold"], args.device, aim=aim, **more,
        ),
        common.line(
            "the same, pre-edit answers cached from an earlier editor", model,
            "one row per pass, logits of all positions",
            timings["plain"], timings["warm"], args.device, aim=aim, **more,
        ),
    ]  # fmt: skip


def main() -> None:
    args = common.options(__doc__, records=32)
    lines = []
    for model in args.models:
        lm = common.build_model(model, args)
        cases = common.records(model, args.records * (4 if model == POCKET else 1))
        if model == POCKET:
            lines += measure(args, lm, model, cases, "world (UniEdit schema)", 5.0)
            continue
        lines += measure(args, lm, model, cases, "CounterFact, flat, both answers", 3.0)
        lines += measure(args, lm, model, without_foils(cases), "CounterFact, one answer", 3.0)
        nested = common.records(model, max(2, args.records // 4), nested=True)
        lines += measure(args, lm, model, nested, "CounterFact, nested", 3.0)
    common.finish("evaluation", args, lines)


if __name__ == "__main__":
    main()
