"""Steps of training IBKE on a model of SmolLM2's shape: the long way, and the ways that save.

The long way is errata's own loop with nothing kept and none of the savings: padded rows in buckets
of similar length, torch's products. Then all that does not change is kept; then questions run in
one line of tokens and products are oneDNN's where they are faster; then they are rounded to
bfloat16. Losses and gradients of the first three are compared before anything is timed. The floor
is what the products of a step alone would take at this machine's measured rates: operations as
torch counts them on the line without padding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks import _common as common
from benchmarks.training import Stacked

SHAPE = "smollm2-shape"
SETTINGS = {"layers": (4, 5, 6), "d_m": 1024}
SAME = 1e-4
"""Largest relative difference of float32 gradients: sums in another order over 26 blocks."""
AIM = 4.0


def build(args: Any) -> Any:
    """Return a random model of SmolLM2-135M's shape, with GPT-2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from errata.model.lm import LM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50257, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
            tie_word_embeddings=True,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        network = LlamaForCausalLM(config)
    return common.prepared(LM(network, common.gpt2_tokenizer(), name=SHAPE))


def groups_for(lm: Any, count: int) -> list[Any]:
    """Return training records of CounterFact, tokenised for this model."""
    from errata.data import load_cases
    from errata.training.groups import make_groups

    path = common.shared("data", "counterfact", "counterfact-train.json")
    return make_groups(lm, load_cases(f"counterfact:{path}", limit=count).cases, hops="all")


class Ways:
    """The same steps in several ways, on one set of networks.

    Args:
        lm: The model.
        args: Options.
    """

    def __init__(self, lm: Any, args: Any) -> None:
        self.lm = lm
        self.groups = groups_for(lm, args.batch)
        self.stacked = Stacked(lm, SHAPE, self.groups, args, SETTINGS)
        kept, fresh = self.stacked.use(lm, 64.0), self.stacked.use(lm, 0.0)
        self.ways: dict[str, tuple[Callable[[], None], str | None]] = {
            "long": (fresh, None), "kept": (kept, None),
            "float32": (kept, "onednn"), "bfloat16": (kept, "bfloat16"),
        }  # fmt: skip
        self.entered = ExitStack()

    def enter(self, way: str, kind: str | None = None) -> None:
        """Let the following steps run in this way."""
        from errata.model.multiplying import fast_layers, fast_products, speed_of_onednn
        from errata.model.products import FAST

        self.entered.close()
        switch, found = self.ways[way]
        switch()
        kind = kind or found
        if kind == "onednn" and speed_of_onednn(self.lm.device) < FAST:
            kind = "plain"
        trainer = self.stacked.trainer
        trainer.objective.packed = kind is not None
        if kind is not None:
            self.entered.enter_context(fast_products(self.lm, kind))  # type: ignore[arg-type]
            self.entered.enter_context(fast_layers(trainer.network, kind))  # type: ignore[arg-type]

    def gradients(self, way: str) -> tuple[dict[str, float], list[Any]]:
        """Return losses and gradients of the first step."""
        self.enter(way)
        found, grads = self.stacked.gradients(0)
        return found, [g.clone() for g in grads]

    def operations(self) -> float:
        """Return the floating-point operations of a step's products, without padding."""
        from torch.utils.flop_counter import FlopCounterMode

        self.enter("float32", "plain")
        with FlopCounterMode(display=False) as counter:
            self.stacked.gradients(0)
        return float(counter.get_total_flops())


def compare(ways: Ways) -> dict[str, str]:
    """Compare losses and gradients with those of the long way; float32 ones have to be equal."""
    losses, grads = ways.gradients("long")
    size = math.sqrt(sum(float(g.square().sum()) for g in grads))
    said = {}
    for way in ("kept", "float32", "bfloat16"):
        found, others = ways.gradients(way)
        pairs = zip(grads, others, strict=True)
        gap = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs)) / size
        loss = max(abs(found[k] - losses[k]) / losses["total"] for k in ("sg", "il"))
        said[way] = f"gradients differ by {gap:.0e} (relative), losses by {loss:.0e} of their sum"
        if way != "bfloat16" and not max(gap, loss) < SAME:
            raise SystemExit(f"{way}: {said[way]}: a mistake")
    ways.entered.close()
    return said


def rate(lm: Any, kind: str, tokens: int) -> float:
    """Return the operations a second of the FFN's product on as many tokens as a step has."""
    import torch

    from errata.model.multiplying import onednn

    weight = lm.module(lm.site(5).path).weight.detach()
    x = torch.randn(tokens, weight.shape[1])
    if kind == "bfloat16":
        x, weight = x.bfloat16(), weight.bfloat16()
    product = onednn if kind == "onednn" else torch.nn.functional.linear
    taken = []
    for _ in range(8):
        cpu = time.process_time()
        for _ in range(8):
            product(x, weight)
        taken.append(time.process_time() - cpu)
    return 8 * 2 * tokens * weight.numel() / min(taken[1:])


def main() -> None:
    args = common.options(__doc__, batch=16, steps=1)
    if args.quick:
        args.batch = 2
    lm = build(args)
    ways = Ways(lm, args)
    said = compare(ways)
    rows = [r for g in ways.groups for r in (*g.edit_rows[: g.main], *g.gens, *g.locs)]
    tokens, operations = sum(len(row.ids) for row in rows), ways.operations()

    timings = {way: common.Timing() for way in ways.ways}
    ways.enter("kept")
    ways.stacked.steps(1, 1)  # the optimiser's state is made
    for _ in range(args.repeats):
        for way, (_, kind) in ways.ways.items():
            ways.enter(way)
            if kind == "bfloat16":
                ways.stacked.steps(1, 1)  # the weights are rounded once, not in every step
            cpu = time.process_time()
            ways.stacked.steps(1, args.steps)
            timings[way].cpu.append(time.process_time() - cpu)
    ways.entered.close()
    note = f"batch {args.batch}, {tokens} tokens, {operations / 1e9:.0f} GFLOP of products"
    lines = []
    for way, kind in (("kept", "plain"), ("float32", "onednn"), ("bfloat16", "bfloat16")):
        titles = {
            "kept": "all kept",
            "float32": "all kept, one line of tokens, the faster float32 products",
            "bfloat16": "the same, the model's products in bfloat16",
        }
        speed = rate(lm, kind, tokens)
        lines.append(
            common.line(
                f"training step of IBKE, {titles[way]}", SHAPE,
                "nothing kept, padded rows, torch's products", timings["long"], timings[way],
                args.device, aim=None if way == "kept" else AIM, equal=said[way],
                note=f"{note}; at {speed / 1e9:.0f} GFLOP/s these take "
                f"{args.steps * operations / speed:.2f} s",
            )
        )  # fmt: skip
    common.finish("training_large", args, lines)


if __name__ == "__main__":
    main()
