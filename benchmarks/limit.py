"""What each operation has to multiply, how fast this machine multiplies, and the distance.

The cost model counts what cannot be left out: real tokens (no padding) through the matrices of the
blocks that have to run, and logits where something is read.

```
 ROME, an edit     keys      contexts x (prompt up to the subject)    x blocks 0 … l
                   prefixes  rows x (tokens before the subject)       x all blocks
                             without those of the context, which are kept
                   hidden    rows x (tokens from there on)            x blocks 0 … l
                   steps     rows x (tokens from there on)            x blocks above l   x 2
                             logits at labels and the essence         x head             x 2
 MEMIT, a batch    the same with blocks' outputs; two blocks of keys for each edited one; solves
 evaluation        every row x all blocks and its labels x head, edited and not
 generation        prompt and new tokens x all blocks, new tokens x head
 moments           tokens x blocks 0 … l, and tokens x f x f
```

A forward pass multiplies every weight once per token (2 operations), a backward pass to a vector
once more: weights take no gradient. Attention's own products are counted as `4 d` per pair of
tokens. The rate is that of the blocks' own matrices with as many rows as a pass has, measured in
the same process. Distance = measured / (operations / rate): 1 would be nothing but products.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import _common as common
from benchmarks.memit_edit import CONTEXTS
from benchmarks.rome_edit import context_templates, random_moment


@dataclass(frozen=True)
class Costs:
    """Operations of a model's parts.

    Attributes:
        blocks: Per block and token, of its matrices.
        head: Per position whose logits are wanted.
        width: Of the residual stream: attention costs `4 width` per pair of tokens and block.
        keys: Per block, the width of what its last projection reads.
    """

    blocks: tuple[float, ...]
    head: float
    width: int
    keys: tuple[int, ...]

    @classmethod
    def of(cls, lm: Any) -> Costs:
        """Count a model's matrices."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        def matrices(path: str) -> float:
            found = lm.module(path).modules()
            return sum(2.0 * m.weight.numel() for m in found if isinstance(m, nn.Linear | Conv1D))

        blocks = tuple(matrices(path) for path in lm.spec.blocks)
        vocabulary, width = lm.embedding.shape
        keys = tuple(lm.site(layer).d_in for layer in range(lm.n_layers))
        return cls(blocks, 2.0 * vocabulary * width, width, keys)

    def run(self, tokens: int, blocks: Sequence[int], past: int = 0) -> float:
        """Return what a row of so many tokens, behind so many others, costs in some blocks."""
        pairs = tokens * (tokens + 1) / 2 + tokens * past
        return sum(tokens * self.blocks[n] + 4.0 * self.width * pairs for n in blocks)


@dataclass
class Bill:
    """Operations of one piece of work, by part.

    Attributes:
        parts: Operations by name.
    """

    parts: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, operations: float) -> None:
        """Count operations of a part."""
        self.parts[part] = self.parts.get(part, 0.0) + operations

    @property
    def total(self) -> float:
        """All operations."""
        return sum(self.parts.values())


# ---------------------------------------------------------------------- what has to be multiplied


def values(lm: Any, edits: Sequence[Any], contexts: Any, layer: int, steps: int) -> Bill:
    """Count what finding the target values of edits takes, each with all steps."""
    from errata.locate.beginnings import beginnings
    from errata.locate.essence import run_rows
    from errata.locate.rows import edit_rows

    kept = beginnings(lm, contexts)
    cost, bill = Costs.of(lm), Bill()
    below, above = range(layer + 1), range(layer + 1, lm.n_layers)
    for edit in edits:
        given = edit_rows(lm, edit, contexts)
        rows, _, _ = run_rows(lm, given, len(given), spare=True)
        ends = [row.subject_last for row in rows]
        known = kept.of(rows, ends) if kept else None
        for number, (row, past) in enumerate(zip(rows, ends, strict=True)):
            tail, begin = len(row.ids) - past, known.starts[number] if known else 0
            bill.add("prefixes", cost.run(past - begin, range(lm.n_layers), begin))
            bill.add("hidden", cost.run(tail, below, past))
            # the last evaluation of the loss needs no gradient
            bill.add("steps", (2 * steps - 1) * cost.run(tail, above, past))
        read = sum(len(row.labels) for row in rows) + 1
        bill.add("head", (2 * steps - 1) * read * cost.head)
    return bill


def rome(lm: Any, edits: Sequence[Any], contexts: Any, layer: int, steps: int) -> Bill:
    """Count ROME: keys and values of every edit."""
    from errata.locate.keys import subject_rows

    bill, cost = values(lm, edits, contexts, layer, steps), Costs.of(lm)
    for row in subject_rows(lm, edits, contexts):
        bill.add("keys", cost.run(row.subject_last + 1, range(layer + 1)))
    return bill


def memit(lm: Any, edits: Sequence[Any], contexts: Any, layers: Sequence[int], steps: int) -> Bill:
    """Count MEMIT: values once, keys block after block, and the solves."""
    from errata.locate.keys import subject_rows

    last, cost = layers[-1], Costs.of(lm)
    bill = values(lm, edits, contexts, last, steps)
    rows, bare = subject_rows(lm, edits, contexts), subject_rows(lm, edits, contexts.bare)
    for number, layer in enumerate(layers):
        fresh = range(layer + 1) if number == 0 else range(layers[number - 1], layer + 1)
        for row in rows:
            bill.add("keys", cost.run(row.subject_last + 1, fresh))
        for row in bare:
            bill.add("keys", cost.run(row.subject_last + 1, range(layer + 1, last + 1)))
        f, n = cost.keys[layer], len(edits)
        bill.add("solves", 2.0 * f * f * n + 2.0 * f * n * n + n**3 / 3)
    return bill


def evaluation(lm: Any, cases: Sequence[Any], first: int = 0) -> Bill:
    """Count the questions of records, of the unedited model and of the edited one.

    Args:
        lm: The model.
        cases: Records.
        first: The lowest block that is edited: edited passes begin there.
    """
    from errata.evaluation.questions import compares, questions_of
    from errata.model.tokens import share_rows

    cost, bill = Costs.of(lm), Bill()
    for case in cases:
        asked = questions_of(lm, case, 1, compares(cases))
        foils = [question.foil for question in asked if question.foil is not None]
        again = [q for q in asked if q.kind == "locality" or q.foil is not None]
        for part, chosen in (("unedited", again), ("edited", asked)):
            rows, _ = share_rows([*(question.row for question in chosen), *foils])
            begin = first if part == "edited" and len(again) == len(asked) else 0
            for row in rows:
                bill.add(part, cost.run(len(row.ids), range(begin, lm.n_layers)))
                bill.add(part, len(row.positions) * cost.head)
    return bill


def generation(lm: Any, prompts: Sequence[str], new: int) -> Bill:
    """Count greedy texts of so many new tokens."""
    cost, bill = Costs.of(lm), Bill()
    for prompt in prompts:
        length = len(lm.row(prompt).ids)
        bill.add("prompts", cost.run(length, range(lm.n_layers)))
        bill.add("new tokens", cost.run(new - 1, range(lm.n_layers), length))
        bill.add("head", new * cost.head)
    return bill


def moments(lm: Any, texts: Sequence[str], layers: Sequence[int], length: int) -> Bill:
    """Count the second moments of the keys of some blocks."""
    cost, bill = Costs.of(lm), Bill()
    for text in texts:
        tokens = min(len(lm.tokenizer(text)["input_ids"]), length)
        bill.add("passes", cost.run(tokens, range(max(layers) + 1)))
        # symmetric: half of the matrix
        bill.add("moments", sum(1.0 * tokens * cost.keys[n] ** 2 for n in layers))
    return bill


# ---------------------------------------------------------------------- how fast this is multiplied


def rate(lm: Any, rows: int, repeats: int = 5) -> float:
    """Return operations per CPU second of one block's matrices, with so many rows.

    By the library that errata multiplies by on this machine.
    """
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from errata.model.multiplying import FEW, kind_for, onednn

    faster = rows >= FEW and kind_for(lm) == "onednn"
    product = onednn if faster else nn.functional.linear
    block = lm.module(lm.spec.blocks[lm.n_layers // 2])
    weights = [
        m.weight.detach().T.contiguous() if isinstance(m, Conv1D) else m.weight.detach()
        for m in block.modules()
        if isinstance(m, nn.Linear | Conv1D)
    ]
    inputs = [torch.randn(rows, w.shape[1], dtype=w.dtype, device=w.device) for w in weights]
    rounds = max(1, 256 // rows)
    taken = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            begun = time.process_time()
            for _ in range(rounds):
                for x, weight in zip(inputs, weights, strict=True):
                    product(x, weight)
            taken.append(time.process_time() - begun)
    seconds = statistics.median(taken[1:]) / rounds
    return sum(2.0 * rows * weight.numel() for weight in weights) / max(seconds, 1e-9)


# ---------------------------------------------------------------------- measured


def measured(call: Callable[[], Any], repeats: int) -> float:
    """Return the median of CPU seconds of a call."""
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def line(what: str, lm: Any, bill: Bill, seconds: float, rows: int, note: str = "") -> common.Line:
    """Make the line of one operation: from the limit to what was measured."""
    speed = rate(lm, rows)
    limit = bill.total / speed
    shares = ", ".join(f"{name} {100 * n / bill.total:.0f} %" for name, n in bill.parts.items())
    return common.Line(
        what, lm.name, "nothing but its matrix products", limit / seconds, seconds, limit,
        equal=f"{bill.total / 1e9:.1f} GFLOP at {speed / 1e9:.0f} GFLOP/s ({rows} rows)",
        note=f"{shares}{'; ' if note else ''}{note}",
    )  # fmt: skip


def lines_of(lm: Any, args: Any) -> list[common.Line]:
    """Measure every operation and how its cost grows."""
    from errata.editors import get_editor
    from errata.evaluation import evaluate
    from errata.locate.contexts import given_contexts

    layer, layers = args.layer, tuple(range(args.layer - args.blocks + 1, args.layer + 1))
    path = str(random_moment(lm, layers, common.CACHE))
    shared = {"moments_file": path, "sink_prefix": "off", "steps": args.steps, "stop_loss": 0.0}
    given = context_templates(lm)
    cases = common.records(common.SMALL, max(*args.counts, *args.sizes, args.records))
    edits = [case.edits[0] for case in cases]
    found: list[common.Line] = []

    def editor(name: str, contexts: Sequence[str], **more: Any) -> Any:
        made = get_editor(name, {**shared, "contexts": tuple(contexts), **more})
        made.prepare(lm)
        return made

    one = editor("rome", given, layer=layer)
    several = editor("memit", given[-CONTEXTS:], layers=layers)
    for name, made, contexts in (("ROME", one, given), ("MEMIT", several, given[-CONTEXTS:])):
        ways = given_contexts(contexts)
        for count in args.counts:
            if name == "ROME" and count > args.rome_most:
                continue
            some = edits[:count]
            groups = [[edit] for edit in some] if name == "ROME" else [some]
            seconds = measured(lambda e=made, g=groups: e.edit(lm, g), args.repeats)
            if name == "ROME":
                bill = rome(lm, some, ways, layer, args.steps)
            else:
                bill = memit(lm, some, ways, layers, args.steps)
            rows = min(count * len(ways) * 4, 2048)  # from the subject on four tokens, about
            found.append(line(f"{name}, {count} edits", lm, bill, seconds, rows,
                              f"{seconds / count:.3f} s an edit"))  # fmt: skip
    for size in args.sizes:
        some = cases[:size]
        plain = get_editor("none")
        seconds = measured(lambda s=some, e=plain: evaluate(lm, e, s, bootstrap=0), 1)
        found.append(line(f"evaluation, {size} records", lm, evaluation(lm, some), seconds, 1024,
                          f"{seconds / size:.3f} s a record"))  # fmt: skip
    prompts = [edit.prompt for edit in edits[: args.records]]
    seconds = measured(lambda: lm.generate(prompts, args.new), args.repeats)
    found.append(line(f"generation, {len(prompts)} texts of {args.new} tokens", lm,
                      generation(lm, prompts, args.new), seconds, len(prompts)))  # fmt: skip
    return [*found, moments_line(lm, layers, args)]


def moments_line(lm: Any, layers: Sequence[int], args: Any) -> common.Line:
    """Measure moments of some paragraphs, counted anew."""
    from errata.data.corpus import Corpus
    from errata.locate.moments import count_moments

    texts = common.paragraphs(args.texts)
    corpus = Corpus("paragraphs", texts, "benchmark")
    seconds = measured(lambda: count_moments(lm, corpus, layers, args.length), 1)
    bill = moments(lm, texts, layers, args.length)
    what = f"moments of {len(layers)} blocks, {len(texts)} paragraphs"
    return line(what, lm, bill, seconds, 1024)


def main() -> None:
    """Print limit, figure and distance of every operation."""
    args = common.options(
        __doc__, records=4, repeats=1, steps=20, layer=7, blocks=5, model="smollm2", new=16,
        texts=20, length=512, edits="1 5", growth="20", rome_most=20,
    )  # fmt: skip
    args.counts = [int(count) for count in args.edits.split()]
    args.sizes = [int(size) for size in args.growth.split()]
    if args.quick:
        args.steps, args.counts, args.sizes, args.texts = 4, [1], [4], 2
    import errata

    lm = common.prepared(errata.load(args.model, device=args.device))
    common.finish("limit", args, lines_of(lm, args))


if __name__ == "__main__":
    main()
