"""An edit of IBKE and of MEND, against one plain forward and backward pass of the request.

The plain passes are what any editor that reads gradients has to pay for: the request as one row
(or sixteen rows, padded), logits at all positions, and a backward pass to all weights that MEND or
IBKE would change. An edit does the same, runs the networks and makes a patch. So the ratio says
how much time an edit takes in units of those passes: below one is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import _common as common
from benchmarks._common import POCKET

AIM = 1.5
"""An edit may take this many times as long as the passes."""

BATCH = 16


def editors_for(lm: Any, model: str) -> dict[str, Any]:
    """Return IBKE and MEND with untrained networks: what they hold does not change their speed."""
    import torch

    from errata.editors import get_editor

    ibke = {"layers": (3, 4, 5), "d_m": 192} if model == POCKET else {}
    found: dict[str, Any] = {}
    for name, title, settings in (("ibke", "IBKE", ibke), ("mend", "MEND", {"norm": "unit"})):
        editor: Any = get_editor(name, settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = editor.build(editor.sites(lm), lm)
        editor.adopt(lm, network.to(lm.device).requires_grad_(False).eval())
        found[title] = editor
    return found


def plain_passes(lm: Any, editor: Any, edits: Sequence[Any]) -> Callable[[], Any]:
    """Return a forward and a backward pass over the requests in the plain transformers way."""
    import torch

    weights = [lm.model.get_parameter(f"{site.path}.weight") for _, site in editor.sites(lm)]

    def run() -> list[Any]:
        texts = [f"{edit.prompt} {edit.target}" for edit in edits]
        coded = [lm.tokenizer(text)["input_ids"] for text in texts]
        starts = [len(lm.tokenizer(edit.prompt)["input_ids"]) for edit in edits]
        width = max(map(len, coded))
        ids = torch.tensor([row + [lm.pad_id] * (width - len(row)) for row in coded])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in coded])
        labels = torch.full((len(coded), width - 1), -100)
        for at, (row, start) in enumerate(zip(coded, starts, strict=True)):
            labels[at, start - 1 : len(row) - 1] = torch.tensor(row[start:])
        ids, mask, labels = (x.to(lm.device) for x in (ids, mask, labels))
        for weight in weights:
            weight.requires_grad_(True)
        logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
        ).view(labels.shape)
        (nll.sum(1) / (labels >= 0).sum(1)).sum().backward()
        grads = [weight.grad for weight in weights]
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
        return grads

    return run


def compare(lm: Any, editor: Any, edits: Sequence[Any], grads: Sequence[Any]) -> str:
    """Compare the gradients of the passes with those that an edit's factors make."""
    from errata.nets.capture import capture, edit_rows
    from errata.patch.places import is_transposed

    gap = 0.0
    sites = editor.sites(lm)
    factors = capture(lm, sites, edit_rows(lm, edits))
    for (_, site), f, grad in zip(sites, factors, grads, strict=True):
        plain = grad.T if is_transposed(lm.module(site.path)) else grad
        gap = max(gap, float((f.gradient().sum(0) - plain).norm() / plain.norm()))
    if gap > 1e-3:
        raise SystemExit(f"the gradients differ by {gap:.1e}: a mistake")
    return f"gradients differ by {gap:.0e} (relative)"


def measure(args: Any, model: str) -> list[common.Line]:
    """Time edits and plain passes on one model."""
    from errata.data import load_cases

    lm = common.build_model(model, args)
    cases = load_cases("world", "test", limit=BATCH, seed=0).cases
    edits = [case.edits[0] for case in cases]
    lines = []
    for title, editor in editors_for(lm, model).items():
        for many, times in (([edits[:1]], args.times), ([edits], max(1, args.times // 4))):
            some = many[0]
            passes = plain_passes(lm, editor, some)
            equal = compare(lm, editor, some, passes())
            groups = [[edit] for edit in some]
            editor.edit(lm, groups)

            def repeat(run: Callable[[], Any], times: int = times) -> Callable[[], None]:
                return lambda: [run() for _ in range(times)] and None

            timings, _ = common.interleaved(
                {
                    "plain": repeat(passes),
                    "edit": repeat(lambda e=editor, g=groups: e.edit(lm, g)),
                },
                args.repeats, args.device,
            )  # fmt: skip
            units = common.ratio(timings["edit"], timings["plain"], args.device)
            count = f"{len(some)} edits together" if len(some) > 1 else "one edit"
            lines.append(
                common.line(
                    f"{title}, {count}", model, "one forward and backward pass of the same rows",
                    timings["plain"], timings["edit"], args.device, aim=1 / AIM, equal=equal,
                    note=f"an edit takes {units:.2f} × the passes (aim ≤ {AIM:g}); "
                    f"runs timed together: {times}",
                )
            )  # fmt: skip
    return lines


def main() -> None:
    args = common.options(__doc__, repeats=5, times=8)
    if args.quick:
        args.times = 4
    lines = [line for model in args.models for line in measure(args, model)]
    common.finish("trained_edit", args, lines)


if __name__ == "__main__":
    main()
