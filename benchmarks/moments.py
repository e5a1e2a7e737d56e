"""Second moments of five layers: one pass over the text against five.

Both plain forms run one layer at a time, sum `K^T K` of all real tokens in float32 and use the same
batches; the fair one ends each forward pass at its layer, the naive one lets it run to the logits.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _common as common
from benchmarks._common import SMALL


class _Stop(Exception):
    """Ends a forward pass at the layer that is read."""


def plain_moments(
    lm: Any, texts: tuple[str, ...], layers: list[int], length: int, stop: bool
) -> dict[int, Any]:
    """Count one layer after the other."""
    import torch

    found = {}
    for layer in layers:
        module = lm.module(lm.site(layer).path)
        total, tokens = torch.zeros(lm.site(layer).d_in, lm.site(layer).d_in, device=lm.device), 0
        seen: list[Any] = []

        def read(module: Any, args: Any, output: Any, seen: list[Any] = seen) -> None:
            seen.append(args[0])
            if stop:
                raise _Stop

        handle = module.register_forward_hook(read)
        for batch in lm.batches(lm.text_rows(texts, length)):
            with torch.no_grad():
                try:
                    lm.model(
                        input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                        position_ids=batch.position_ids, use_cache=False,
                    )  # fmt: skip
                except _Stop:
                    pass
            keys = seen.pop()[batch.attention_mask.bool()]
            total += keys.T @ keys
            tokens += len(keys)
        handle.remove()
        found[layer] = total / tokens
    return found


def documents(count: int) -> tuple[str, ...]:
    """Return texts of a few hundred words each, a dozen paragraphs joined."""
    parts = common.paragraphs(12 * count)
    return tuple("\n".join(parts[i::count]) for i in range(count))


def measure(args: Any, lm: Any, model: str, corpus: Any, layers: list[int]) -> list[common.Line]:
    """Time one pass and three kinds of five passes."""
    from errata.locate.moments import count_moments

    texts = corpus.texts
    ways = {
        "once": lambda: count_moments(lm, corpus, layers, args.length),
        "stopped": lambda: plain_moments(lm, texts, layers, args.length, True),
        "errata, layer by layer": lambda: {
            layer: count_moments(lm, corpus, [layer], args.length)[layer] for layer in layers
        },
        "naive": lambda: plain_moments(lm, texts, layers, args.length, False),
    }
    timings, results = common.interleaved(ways, args.repeats, args.device)
    lines = []
    found = results["once"]
    gap = max(
        float((found[layer].matrix - results["stopped"][layer]).norm())
        / float(results["stopped"][layer].norm())
        for layer in layers
    )
    tokens = found[layers[0]].tokens
    where = f"layers {layers[0]}–{layers[-1]} of {lm.n_layers}, {tokens:,} tokens"
    for name, baseline, aim in (
        ("stopped", "five passes, each ending at its layer", 3.5),
        ("errata, layer by layer", "errata itself, one layer at a time", None),
        ("naive", "five complete passes with logits", None),
    ):
        lines.append(
            common.line(
                "moments of five layers in one pass", model, baseline,
                timings[name], timings["once"], args.device, aim=aim,
                equal=f"matrices differ by {gap:.1e} (relative)", note=where,
            )
        )  # fmt: skip
    return lines


def main() -> None:
    args = common.options(__doc__, records=8, repeats=3, length=512)
    args.records = min(args.records, 2) if args.quick else args.records
    from errata.data.corpus import Corpus

    lines: list[common.Line] = []
    for model in [name for name in args.models if name == SMALL]:
        lm = common.build_model(model, args)
        texts = documents(args.records)
        corpus = Corpus("paragraphs", texts, "benchmark")
        for first in (3, 7):
            lines += measure(args, lm, model, corpus, list(range(first, first + 5)))
    common.finish("moments", args, lines)


if __name__ == "__main__":
    main()
