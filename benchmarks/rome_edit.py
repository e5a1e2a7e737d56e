"""ROME edits: batched, truncated, prefix-cached and answer-only, against the plain loop.

The plain loop is the published one (Meng et al. 2022 and its descendants): one request at a time,
in every step a full forward pass over all contexts with logits at every position. Same contexts,
same second moment, same steps; the weight changes are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _common as common
from benchmarks._common import SMALL

ECONOMY = ("truncate", "prefix_cache", "answer_only")


def context_templates(lm: Any) -> tuple[str, ...]:
    """Return 20 beginnings of ordinary sentences, ten of 4 and ten of 9 tokens."""
    if lm.name == SMALL + "-shaped":
        texts = common.paragraphs(20)
    else:
        from errata.world import build_world
        from errata.world import texts as world_texts

        texts = tuple(world_texts(build_world())[:20])
    found = []
    for i, text in enumerate(texts):
        ids = lm.tokenizer(text)["input_ids"][: 4 if i < 10 else 9]
        found.append(lm.tokenizer.decode(ids).replace("{", "").replace("}", "") + ". {}")
    return tuple(found)


def random_moment(lm: Any, layers: Sequence[int], folder: Path) -> Path:
    """Write the second moment of random keys: as good as a counted one for timing."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    found = {}
    for layer in layers:
        f = lm.site(layer).d_in
        keys = torch.randn(2 * f, f, generator=generator)
        found[f"mom2.{layer}"] = keys.T @ keys / len(keys)
    path = folder / f"{lm.name.replace('/', '-')}-mom2-{len(layers)}.safetensors"
    save_file(found, path)
    return path


def settings(lm: Any, layer: int, steps: int) -> dict[str, Any]:
    """Return the settings that both ways use."""
    moments = str(random_moment(lm, [layer], common.CACHE))
    return {
        "layer": layer, "steps": steps, "contexts": context_templates(lm), "moments_file": moments,
        "lr": 0.5, "weight_decay": 0.5, "clamp": 4.0, "kl_factor": 0.0625,
    }  # fmt: skip


# ---------------------------------------------------------------------- the plain loop


class PlainRome:
    """ROME with plain transformers calls."""

    def __init__(self, lm: Any, given: dict[str, Any]) -> None:
        import torch
        from safetensors.torch import load_file

        self.lm, self.given = lm, given
        self.prefixes = ["", *(c.removesuffix("{}") for c in given["contexts"])]
        moment = load_file(given["moments_file"])[f"mom2.{given['layer']}"]
        self.inverse = torch.linalg.inv(moment.double()).to(lm.device)  # cached, as published
        self.module = self.place = lm.module(lm.site(given["layer"]).path)

    def edit(self, edit: Any) -> Any:
        """Return the change of the weight matrix, `d_out x d_in`."""
        import torch

        key_rows, key_at = self._tokens(edit, "")
        keys, _ = self._in_out(key_rows, key_at)
        left = self.inverse @ keys.double().mean(0)
        left /= left.norm()
        target, _, _ = self._value(edit)
        key, value = self._in_out(key_rows[:1], key_at[:1])
        right = (target - value[0]).double() / (key[0].double() @ left)
        return torch.outer(right, left)

    def _tokens(self, edit: Any, target: str) -> tuple[list[list[int]], list[int]]:
        rows, subjects = [], []
        for prefix in self.prefixes:
            text = prefix + edit.prompt
            end = len(prefix) + edit.prompt.index(edit.subject) + len(edit.subject)
            coded = self.lm.tokenizer(text + target, return_offsets_mapping=True)
            rows.append(coded["input_ids"])
            subjects.append(max(i for i, (a, b) in enumerate(coded["offset_mapping"]) if a < end))
        return rows, subjects

    def _pad(self, rows: list[list[int]]) -> dict[str, Any]:
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([row + [self.lm.pad_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {
            "input_ids": ids.to(self.lm.device), "attention_mask": mask.to(self.lm.device),
            "use_cache": False,
        }  # fmt: skip

    def _in_out(self, rows: list[list[int]], at: list[int]) -> tuple[Any, Any]:
        import torch

        seen = []
        handle = self.module.register_forward_hook(
            lambda m, args, out: seen.append((args[0].detach(), out.detach()))
        )
        with torch.no_grad():
            self.lm.model(**self._pad(rows))
        handle.remove()
        keys, values = seen[0]
        each = range(len(rows))
        return keys[each, at].float(), values[each, at].float()

    def _value(self, edit: Any) -> tuple[Any, int, list[float]]:
        import torch

        given, lm = self.given, self.lm
        prompts, _ = self._tokens(edit, "")
        full, at = self._tokens(edit, " " + edit.target)
        starts = [len(row) - 1 for row in prompts]
        rows = [row[:-1] for row in full]
        essence = lm.tokenizer(edit.subject + " is a", return_offsets_mapping=True)
        at = [*at, max(i for i, (a, _) in enumerate(essence["offset_mapping"])
                       if a < len(edit.subject))]  # fmt: skip
        batch = self._pad([*rows, essence["input_ids"]])
        labels = torch.full((len(rows), batch["input_ids"].shape[1]), -100)
        for r, (row, start) in enumerate(zip(full, starts, strict=True)):
            labels[r, start : len(row) - 1] = torch.tensor(row[start + 1 :])
        labels = labels.to(lm.device)
        n = int((labels[0] >= 0).sum())
        delta = torch.zeros(lm.site(given["layer"]).d_out, device=lm.device, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=given["lr"])
        first: Any = None
        base: Any = None
        each = torch.arange(len(at), device=lm.device)
        where = torch.tensor(at, device=lm.device)

        def add(module: Any, args: Any, output: Any) -> Any:
            nonlocal first
            out = output[0] if isinstance(output, tuple) else output
            first = out[0, at[0]].detach().float() if first is None else first
            moved = out.index_put((each, where), delta.to(out.dtype), accumulate=True)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        losses = []
        for step in range(given["steps"]):
            adam.zero_grad()
            handle = self.place.register_forward_hook(add)
            logits = lm.model(**batch).logits.float()
            handle.remove()
            drift = torch.log_softmax(logits[-1, at[-1]], -1)
            base = drift.detach() if base is None else base
            logprobs = torch.log_softmax(logits[:-1], -1)
            picked = logprobs.gather(2, labels.clamp(min=0)[..., None])[..., 0]
            nll = -(picked * (labels >= 0)).sum(1) / n
            kl = torch.nn.functional.kl_div(base, drift, log_target=True, reduction="sum")
            decay = delta.norm() / first.norm() ** 2
            loss = nll.mean() + given["kl_factor"] * kl + given["weight_decay"] * decay
            losses.append(float(loss.detach()))
            if losses[-1] < 0.05 or step == given["steps"] - 1:
                break
            loss.backward()
            adam.step()
            limit = given["clamp"] * first.norm()
            if delta.norm() > limit:
                with torch.no_grad():
                    delta *= limit / delta.norm()
        return (first + delta).detach(), len(losses) - 1, losses


# ---------------------------------------------------------------------- errata


def errata_rome(lm: Any, given: dict[str, Any], **savings: bool) -> Any:
    """Return the editor, prepared."""
    from errata.editors import get_editor

    editor = get_editor("rome", {**given, **savings})
    editor.prepare(lm)
    return editor


def change_of(patch: Any) -> Any:
    """Return the change of a patch as a matrix."""
    (change,) = patch.changes
    return change.B.double() @ change.A.double()


def difference(plain: list[Any], patches: list[Any]) -> float:
    """Return the largest relative difference of the weight changes."""
    pairs = zip(plain, map(change_of, patches), strict=True)
    return max(float((b - a).norm() / a.norm()) for a, b in pairs)


def ways(lm: Any, given: dict[str, Any], edits: list[Any], ablation: bool) -> dict[str, Any]:
    """Return the ways to edit that are compared."""
    plain = PlainRome(lm, given)

    def together(**savings: bool) -> Any:
        editor = errata_rome(lm, given, **savings)
        return lambda: editor.edit(lm, [[edit] for edit in edits])

    def alone(**savings: bool) -> Any:
        editor = errata_rome(lm, given, **savings)
        return lambda: [editor.edit_one(lm, [edit]) for edit in edits]

    found = {"plain": lambda: [plain.edit(edit) for edit in edits], "all": together()}
    found["all, one edit at a time"] = alone()
    if ablation:
        off = dict.fromkeys(ECONOMY, False)
        found["batching alone"] = together(**off)
        for name in ECONOMY:
            found[f"{name} alone"] = alone(**{**off, name: True})
        for name in ECONOMY:
            found[f"all but {name}"] = together(**{name: False})
    return found


def main() -> None:
    args = common.options(__doc__, records=6, repeats=2, steps=20, ablation_steps=5)
    if args.quick:
        args.steps, args.ablation_steps, args.records = 4, 2, 2
    lines: list[common.Line] = []
    table: dict[str, dict[str, float]] = {}
    for model in args.models:
        layer = 5 if model == SMALL else 2
        lm = common.build_model(model, args)
        edits = [case.edits[0] for case in common.records(model, args.records)]
        given = settings(lm, layer, args.steps)
        timings, results = common.interleaved(
            ways(lm, given, edits, False), args.repeats, args.device
        )
        for name, what in (
            ("all", f"ROME, {len(edits)} edits together"),
            ("all, one edit at a time", "ROME, one edit at a time"),
        ):
            gap = difference(results["plain"], results[name])
            lines.append(
                common.line(
                    what, model, "one request at a time, full passes, all logits",
                    timings["plain"], timings[name], args.device,
                    aim=5.0 if model == SMALL else None,
                    equal=f"weight changes differ by {gap:.1e} (relative)",
                    note=f"{args.steps} steps, {len(given['contexts']) + 1} contexts",
                )
            )  # fmt: skip
        given = settings(lm, layer, args.ablation_steps)
        timings, results = common.interleaved(ways(lm, given, edits[:2], True), 1, args.device)
        table[model] = {
            name: common.ratio(timings["plain"], timing, args.device)
            for name, timing in timings.items()
        }
        print(f"{model}: times faster than the plain loop, {args.ablation_steps} steps")
        for name, value in table[model].items():
            gap = difference(results["plain"], results[name]) if name != "plain" else 0.0
            print(f"  {name:<26} {value:5.2f}   (changes differ by {gap:.1e})")
    common.finish("rome_edit", args, lines, {"ablation": table})


if __name__ == "__main__":
    main()
