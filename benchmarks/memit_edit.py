"""MEMIT edits of a batch: values side by side and cached factors, against the plain form.

The plain form is the published one (Meng et al. 2023 and its descendants): values one request at a
time with a full forward pass over all contexts in every step, keys and residuals by full passes,
and a general float64 solve of the size of the FFN in every block. Same contexts, same second
moments, same steps; the weight changes are compared.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _common as common
from benchmarks._common import SMALL
from benchmarks.rome_edit import PlainRome, context_templates, random_moment

CONTEXTS = 5


def settings(lm: Any, layers: tuple[int, ...], steps: int) -> dict[str, Any]:
    """Return the settings that both ways use."""
    moments = str(random_moment(lm, layers, common.CACHE))
    return {
        "layers": layers, "layer": layers[-1], "steps": steps, "moments_file": moments,
        "contexts": context_templates(lm)[-CONTEXTS:], "mom2_weight": 100.0,
        "lr": 0.5, "weight_decay": 0.5, "clamp": 0.75, "kl_factor": 0.0625,
    }  # fmt: skip


class PlainMemit(PlainRome):
    """MEMIT with plain transformers calls."""

    def __init__(self, lm: Any, given: dict[str, Any]) -> None:
        from safetensors.torch import load_file

        self.lm, self.given = lm, given
        self.prefixes = ["", *(c.removesuffix("{}") for c in given["contexts"])]
        self.moments = load_file(given["moments_file"])
        self.place = lm.module(lm.spec.blocks[given["layer"]])

    def batch(self, edits: list[Any]) -> dict[str, Any]:
        """Return the change of each weight, in its stored shape; the model is put back."""
        import torch

        lm, layers = self.lm, self.given["layers"]
        targets = torch.stack([self._value(edit)[0] for edit in edits])
        found = {}
        for i, layer in enumerate(layers):
            site = lm.site(layer)
            self.module = lm.module(site.path)
            keys = self._keys(edits).double()
            missing = (targets - self._hidden(edits)).double() / (len(layers) - i)
            moment = self.moments[f"mom2.{layer}"].double().to(keys.device)
            system = self.given["mom2_weight"] * moment + keys.T @ keys
            delta = missing.T @ torch.linalg.solve(system, keys.T).T
            found[site.weight] = (delta.T if site.transposed else delta).float()
            with torch.no_grad():
                lm.model.get_parameter(site.weight).add_(found[site.weight])
        with torch.no_grad():
            for name, delta in found.items():
                lm.model.get_parameter(name).sub_(delta)
        return found

    def _keys(self, edits: list[Any]) -> Any:
        import torch

        found = []
        for edit in edits:
            rows, at = self._tokens(edit, "")
            keys, _ = self._in_out(rows, at)
            found.append((keys[0] + keys[1:].mean(0)) / 2)
        return torch.stack(found)

    def _hidden(self, edits: list[Any]) -> Any:
        import torch

        seen = []
        handle = self.place.register_forward_hook(
            lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        at = []
        with torch.no_grad():
            for edit in edits:
                rows, where = self._tokens(edit, "")
                at.append(where[0])
                self.lm.model(**self._pad(rows[:1]))
        handle.remove()
        return torch.stack([states[0, t] for states, t in zip(seen, at, strict=True)]).float()


def main() -> None:
    args = common.options(__doc__, records=20, repeats=2, steps=20)
    if args.quick:
        args.steps, args.records = 4, 4
    lines: list[common.Line] = []
    for model in args.models:
        from errata.editors import get_editor
        from errata.patch.deltas import weight_deltas

        layers = (3, 4, 5, 6, 7) if model == SMALL else (1, 2, 3)
        lm = common.build_model(model, args)
        edits = [case.edits[0] for case in common.records(model, args.records)]
        given = settings(lm, layers, args.steps)
        plain = PlainMemit(lm, given)
        editor = get_editor("memit", {k: v for k, v in given.items() if k != "layer"})
        editor.prepare(lm)  # once per model, like the published cache of moments
        timings, results = common.interleaved(
            {
                "plain": lambda p=plain, e=edits: p.batch(e),
                "together": lambda m=editor, on=lm, e=edits: m.edit_one(on, e),
            },
            args.repeats,
            args.device,
        )
        mine = weight_deltas(lm, results["together"].changes)
        gap = max(
            float((mine[name] - delta).norm() / delta.norm())
            for name, delta in results["plain"].items()
        )
        lines.append(
            common.line(
                f"MEMIT, batch of {len(edits)}, {len(layers)} blocks", model,
                "one request at a time, full passes, general solve",
                timings["plain"], timings["together"], args.device, aim=5.0,
                equal=f"weight changes differ by {gap:.1e} (relative)",
                note=f"{args.steps} steps, {CONTEXTS + 1} contexts; moments and factors ready",
            )
        )  # fmt: skip
    common.finish("memit_edit", args, lines, {})


if __name__ == "__main__":
    main()
