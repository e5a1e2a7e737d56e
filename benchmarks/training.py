"""Steps of training IBKE: stacked and economical, against a loop that forms edited weights.

The plain loop is written out with plain transformers calls, one record at a time: a forward and a
backward pass for the gradient signals, the networks, `W' = W − η ĥᵀ û`, one padded pass of the
record's questions with logits at all positions, another one of the unedited model for locality,
and a backward pass. Same networks, noise, losses and optimiser; the gradients are compared before
anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import _common as common
from benchmarks._common import POCKET, SMALL

TOLERANCE = 2e-3
"""Largest relative difference of the gradients: what rounding adds up to over a deep model."""

SETTINGS = {POCKET: {"layers": (3, 4, 5), "d_m": 192}, SMALL: {"d_m": 512}}
"""Of the networks; 512 is to GPT-2 small's width about what the published 1,024 is to GPT2-XL's."""


def groups_for(lm: Any, count: int) -> list[Any]:
    """Return training records of the pocket world, tokenised for this model."""
    from errata.data import load_cases
    from errata.training.groups import make_groups

    cases = load_cases("world", "train", limit=count, seed=0).cases
    return make_groups(lm, cases, hops="all")


# ---------------------------------------------------------------------- errata


class Stacked:
    """errata's own training steps.

    Args:
        lm: The model.
        model: Its name.
        groups: Training records.
        args: Options.
        settings: Of the networks; None: those of SETTINGS.
    """

    def __init__(
        self, lm: Any, model: str, groups: Sequence[Any], args: Any, settings: Any = None
    ) -> None:
        from errata.editors import get_editor
        from errata.training.config import TrainConfig
        from errata.training.loop import Trainer

        editor: Any = get_editor("ibke", settings or SETTINGS[model])
        config = TrainConfig(batch=args.batch, memory_gb=64.0, steps=10**6)
        out = Path(common.CACHE) / "training"
        self.groups = groups
        self.trainer = Trainer(lm, editor, [groups], [], config, out, {})
        self.trainer._set_up()
        self.trainer._start(False)

    def use(self, lm: Any, memory_gb: float) -> Callable[[], None]:
        """Return a function that lets the following steps run on this model, with this memory."""
        from errata.training.objective import Objective
        from errata.training.prepared import Prepared

        trainer = self.trainer
        prepared = Prepared(lm, trainer.sites, self.groups, memory_gb)
        objective = Objective(lm, prepared, trainer.config)

        def switch() -> None:
            trainer.lm, trainer.prepared, trainer.objective = lm, prepared, objective

        return switch

    def draw(self, step: int) -> tuple[list[Any], Callable[[int, tuple[int, ...]], Any]]:
        """Return the records and the noise of a step."""
        from errata.training.sampler import noise_for

        groups = self.trainer._batch(step)
        return groups, noise_for(self.trainer.config.seed, step, groups, range(len(groups)))

    def gradients(self, step: int) -> tuple[dict[str, float], list[Any]]:
        """Return losses and gradients of one step without making it."""
        groups, noise = self.draw(step)
        network = self.trainer.network.train()
        network.zero_grad()
        found = self.trainer.objective.run(
            network, groups, noise=noise, backward=lambda loss: loss.backward()
        )
        return found, [p.grad for p in network.parameters()]

    def steps(self, start: int, count: int) -> None:
        """Make some steps."""
        for step in range(start, start + count):
            self.trainer._step(step, SimpleNamespace(asked=False))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the plain loop


class Plain:
    """The same steps, one record after the other.

    Args:
        lm: The model.
        twin: errata's way: a copy of its networks is trained, on the same records and noise.
    """

    def __init__(self, lm: Any, twin: Stacked) -> None:
        import torch

        self.lm, self.twin = lm, twin
        self.network = deepcopy(twin.trainer.network).train()
        self.sites = [site for _, site in twin.trainer.sites]
        self.weights = [f"{site.path}.weight" for site in self.sites]
        rates = self.network.edit_rates()
        rest = [p for p in self.network.parameters() if all(p is not r for r in rates)]
        lr = twin.trainer.config.lr
        self.optimizer = torch.optim.Adam(
            [{"params": rest, "lr": lr}, {"params": rates, "lr": 10 * lr}]
        )

    def steps(self, start: int, count: int) -> None:
        """Make some steps."""
        import torch

        for step in range(start, start + count):
            self.optimizer.zero_grad()
            self.backward(step)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()

    def gradients(self, step: int) -> tuple[dict[str, float], list[Any]]:
        """Return losses and gradients of one step without making it."""
        self.network.zero_grad()
        found = self.backward(step)
        return found, [p.grad for p in self.network.parameters()]

    def backward(self, step: int) -> dict[str, float]:
        """Add up the gradients of a step's losses in the networks, record by record."""
        groups, noise = self.twin.draw(step)
        edits = sum(len(g.edits) for g in groups)
        gens = sum(len(r.labels) for g in groups for r in (*g.edit_rows[: g.main], *g.gens))
        locs = sum(len(r.labels) for g in groups for r in g.locs)
        draws = [
            noise(number, (edits, self.network.config.l_m, self.network.config.d_m))
            for number in range(len(self.sites))
        ]
        sums = {"sg": 0.0, "il": 0.0, "penalty": 0.0}
        start = 0
        for group in groups:
            end = start + len(group.edits)
            mine = [draw[start:end] for draw in draws]
            sg, il, penalty = self._losses(group, lambda i, shape, m=mine: m[i])
            sg, il, penalty = sg / gens, il / max(locs, 1), penalty / edits
            (sg + il + penalty).backward()
            for key, value in zip(sums, (sg, il, penalty), strict=True):
                sums[key] += float(value.detach())
            start = end
        return sums

    def _losses(self, group: Any, noise: Any) -> tuple[Any, Any, Any]:
        """Return generality, locality and the bottleneck's divergence of one record, as sums."""
        import torch

        lm = self.lm
        update = self.network(self._signals(group), noise)
        edited = {}
        for name, site, term in zip(self.weights, self.sites, update.terms, strict=True):
            weight = lm.model.get_parameter(name)
            delta = (term.values.flatten(0, 1).T @ term.keys.flatten(0, 1)).to(weight.dtype)
            stored = delta if weight.shape == delta.shape and not _flipped(lm, site) else delta.T
            edited[name] = weight - stored
        own = [*group.edit_rows[: group.main], *group.gens]
        rows = [*own, *group.locs]
        batch = self._pad(rows)
        logits = torch.func.functional_call(lm.model, edited, (), batch).logits
        sg = il = torch.zeros((), device=lm.device)
        for at, row in enumerate(own):
            answers = torch.tensor(row.labels, device=lm.device)
            logprobs = logits[at, list(row.positions)].float().log_softmax(-1)
            sg = sg - logprobs.gather(1, answers[:, None]).sum()
        if group.locs:
            with torch.no_grad():
                before = lm.model(**self._pad(group.locs)).logits
            for at, row in enumerate(group.locs):
                p = logits[len(own) + at, list(row.positions)].float().log_softmax(-1)
                q = before[at, list(row.positions)].float().log_softmax(-1)
                il = il + (p.exp() * (p - q)).sum()
        return sg, il, update.penalty.sum()

    def _signals(self, group: Any) -> Any:
        """Return the record's gradient signals from one forward and one backward pass."""
        import torch

        from errata.nets.capture import Factors, Signals

        lm, rows = self.lm, group.edit_rows
        seen: list[tuple[Any, Any]] = []

        def keep(module: Any, args: Any, out: Any) -> None:
            out.retain_grad()
            seen.append((args[0].detach(), out))

        weights = [lm.model.get_parameter(name) for name in self.weights]
        handles = [lm.module(s.path).register_forward_hook(keep) for s in self.sites]
        for weight in weights:
            weight.requires_grad_(True)
        batch = self._pad(rows)
        logits = lm.model(**batch).logits
        loss = torch.zeros((), device=lm.device)
        for at, row in enumerate(rows):
            answers = torch.tensor(row.labels, device=lm.device)
            logprobs = logits[at, list(row.positions)].float().log_softmax(-1)
            loss = loss - logprobs.gather(1, answers[:, None]).mean()
        loss.backward()
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
        for handle in handles:
            handle.remove()
        real = batch["attention_mask"].bool()
        factors = []
        for h, y in seen:
            u = y.grad.float()
            factors.append(Factors(h.float() * real[..., None], u, (u != 0).any(-1), real))
        owner = torch.zeros(len(rows), dtype=torch.long, device=lm.device)
        return Signals(tuple(factors), owner, group.edits, rows)

    def _pad(self, rows: Sequence[Any]) -> dict[str, Any]:
        import torch

        width = max(len(row.ids) for row in rows)
        ids = [[*row.ids, *[self.lm.pad_id] * (width - len(row.ids))] for row in rows]
        mask = [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows]
        return {
            "input_ids": torch.tensor(ids, device=self.lm.device),
            "attention_mask": torch.tensor(mask, device=self.lm.device),
            "use_cache": False,
        }


def _flipped(lm: Any, site: Any) -> bool:
    from errata.patch.places import is_transposed

    return is_transposed(lm.module(site.path))


# ---------------------------------------------------------------------- the comparison


def compare(stacked: Stacked, plain: Plain, modes: Sequence[Callable[[], None]]) -> str:
    """Compare losses and gradients of a step; they are the same up to rounding."""
    found, others = plain.gradients(0)
    size = math.sqrt(sum(float(g.square().sum()) for g in others))
    gap = loss = 0.0
    for mode in modes:
        mode()
        losses, grads = stacked.gradients(0)
        pairs = zip(grads, others, strict=True)
        gap = max(gap, math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs)) / size)
        far = [abs(losses[key] - found[key]) / max(abs(found[key]), 1e-3) for key in found]
        loss = max(loss, *far)
    if not (gap < TOLERANCE and loss < TOLERANCE):
        raise SystemExit(f"the gradients differ by {gap:.1e}, the losses by {loss:.1e}: a mistake")
    for optimizer in (plain.optimizer, stacked.trainer.optimizer):
        optimizer.step()  # its state is made here, not while it is timed
    return f"gradients differ by {gap:.0e} (relative), losses by {loss:.0e}"


def measure(args: Any, model: str) -> list[common.Line]:
    """Time the plain loop and errata on one model."""
    lm, rough = common.build_model(model, args), common.build_model(model, args, "bfloat16")
    groups = groups_for(lm, 2 * args.batch)
    stacked = Stacked(lm, model, groups, args)
    modes = {
        "kept": stacked.use(lm, 64.0), "fresh": stacked.use(lm, 0.0),
        "bfloat16": stacked.use(rough, 64.0), "bfloat16, fresh": stacked.use(rough, 0.0),
    }  # fmt: skip
    plain = Plain(lm, stacked)
    equal = compare(stacked, plain, [modes["fresh"], modes["kept"]])

    def errata(name: str, start: int, count: int) -> None:
        modes[name]()
        stacked.steps(start, count)

    for name in ("bfloat16", "bfloat16, fresh"):
        errata(name, 0, 1)
    steps = args.steps if model == POCKET else max(1, args.steps // 3)
    timings, _ = common.interleaved(
        {"plain": lambda: plain.steps(1, steps)}
        | {name: (lambda name=name: errata(name, 1, steps)) for name in modes},
        args.repeats, args.device,
    )  # fmt: skip
    aim = 3.0 if args.device == "cpu" else 10.0
    baseline = "one record at a time, edited weights formed, all logits"
    rows = sum(len(r) for g in groups for r in (g.edit_rows, g.gens, g.locs)) / len(groups)
    note = f"batch {args.batch}, {rows:.1f} rows per record, steps timed together: {steps}"
    what = "training step of IBKE"
    return [
        common.line(
            f"{what}, signals and base answers kept", model, baseline, timings["plain"],
            timings["kept"], args.device, aim=aim, equal=equal, note=note,
        ),
        common.line(
            f"{what}, nothing kept", model, baseline, timings["plain"], timings["fresh"],
            args.device, aim=aim, equal=equal, note=note,
        ),
        common.line(
            f"{what}, kept, bfloat16 model", model, baseline + ", float32", timings["plain"],
            timings["bfloat16"], args.device,
            note=f"{common.ratio(timings['kept'], timings['bfloat16'], args.device):.2f}× "
            "against errata in float32",
        ),
        common.line(
            f"{what}, nothing kept, bfloat16 model", model, baseline + ", float32",
            timings["plain"], timings["bfloat16, fresh"], args.device,
            note=f"{common.ratio(timings['fresh'], timings['bfloat16, fresh'], args.device):.2f}× "
            "against errata in float32",
        ),
    ]  # fmt: skip


def main() -> None:
    args = common.options(__doc__, batch=16, steps=3)
    if args.quick:
        args.steps, args.batch = 1, 4
    lines = [line for model in args.models for line in measure(args, model)]
    common.finish("training", args, lines)


if __name__ == "__main__":
    main()
