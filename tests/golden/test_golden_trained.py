"""MEND and MALMEN against numbers that EasyEdit's code produced on a fixed model (float32).

Both start from saved networks, statistics and rates. The signals are compared with ours first; the
networks are then fed the saved signals, in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.published import golden, near, stored
from tests.golden.published import requests_of as model_requests
from torch import Tensor

from errata.case import Edit
from errata.editors.malmen import Malmen, MalmenConfig
from errata.editors.mend import Mend, MendConfig
from errata.model.lm import LM
from errata.model.loading import load
from errata.model.tokens import positions_of
from errata.nets.capture import Factors, Signals, capture, edit_rows
from errata.nets.normalise import Normaliser
from errata.patch import LowRank

SIGNALS = 1e-5
UPDATE = 1e-6
LOGITS = 1e-4
SHIFT = 1e-4  # the published solve is in float32
STATISTICS = 1e-5


@pytest.fixture(scope="module")
def lm(reference: Path, model: str) -> LM:
    return load(str(reference / "models" / model), dtype="float32")


def load_statistics(norm: Any, mean: Tensor, std: Tensor, n: float = 1e4) -> None:
    """Fill running statistics so that they give this mean and deviation."""
    assert isinstance(norm, Normaliser)
    assert norm.running is not None
    norm.running.n.fill_(n)
    norm.running.mean.copy_(mean)
    norm.running.m2.copy_(std.double().square() * (n - 1))


# ---------------------------------------------------------------------- MEND


def mend_editor(lm: LM, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    config = facts["config"]
    names = [name.removesuffix(".weight") for name in config["inner_params"]]
    layers = sorted({int(part) for name in names for part in name.split(".") if part.isdigit()})
    editor = Mend(
        MendConfig(
            layers=tuple(layers), width=config["rank"], n_layers=config["n_hidden"] + 1,
            sign="ascent",
        )
    )  # fmt: skip
    sites = editor.sites(lm)
    assert {site.path for _, site in sites} == set(names)
    network = editor.build(sites, lm).double()
    for shape, modes in facts["mode_index"].items():
        u, v = (int(n) for n in shape.strip("()").split(","))  # signals: (inputs, gradients)
        net, norm = network.nets[f"{u}x{v}"], network.norms[f"{u}x{v}"]
        mine = [site.path for _, site in sites if (site.d_in, site.d_out) == (u, v)]
        order = torch.tensor([modes.index(f"{path}.weight") for path in mine])
        prefix = f"net.{shape}"
        for number, layer in enumerate(net):  # type: ignore[arg-type]
            with torch.no_grad():
                for name in ("u", "v", "bias"):
                    getattr(layer, name).copy_(tensors[f"{prefix}.layer{number}.{name}"])
                for name in ("mode_scale", "mode_shift"):
                    getattr(layer, name).copy_(tensors[f"{prefix}.layer{number}.{name}"][order])
        load_statistics(
            norm,
            torch.cat([tensors[f"{prefix}.u_mean"], tensors[f"{prefix}.v_mean"]]),
            torch.cat([tensors[f"{prefix}.u_std"], tensors[f"{prefix}.v_std"]]),
        )
    rates = dict(zip(names, tensors["edit_lrs"], strict=True))
    with torch.no_grad():
        network.rates.value.copy_(torch.stack([rates[site.path] for _, site in sites]))
    return editor, network, sites


def requests_of(facts: dict[str, Any]) -> list[tuple[str, Edit]]:
    return [
        (key, Edit(r["prompt"], r["target"]))
        for key, r in zip(("0", "4"), facts["requests"], strict=True)
    ]


def test_mend_signals_are_the_published_ones(reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, "mend", model, "f32")
    _, _, sites = mend_editor(lm, facts, tensors)
    for key, edit in requests_of(facts):
        rows = edit_rows(lm, [edit])
        ids = tensors[f"{key}.input_ids"][0].tolist()
        assert list(rows[0].ids) == ids
        for (_, site), f in zip(sites, capture(lm, sites, rows), strict=True):
            x, delta = (tensors[f"{key}.{site.path}.weight.{n}"] for n in ("x", "delta"))
            near(f.h[0], x, SIGNALS)
            near(f.u[0], delta, SIGNALS)
            assert torch.equal(f.mask[0], (delta != 0).any(-1))


def test_mend_update(reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, "mend", model, "f32")
    _, network, sites = mend_editor(lm, facts, tensors)
    for key, _ in requests_of(facts):
        factors = []
        for _, site in sites:
            h, u = (tensors[f"{key}.{site.path}.weight.{n}"][None].double() for n in ("x", "delta"))
            factors.append(Factors(h, u, (h != 0).any(-1) & (u != 0).any(-1)))
        with torch.no_grad():
            update = network(Signals(tuple(factors), torch.tensor([0])))
        changes = {c.path: c.B @ c.A for c in update.changes([s for _, s in sites], 0)}
        for number, ((_, site), term) in enumerate(zip(sites, update.terms, strict=True)):
            name = f"{key}.{site.path}.weight"
            mask = term.mask[0]
            near(
                term.keys[0][mask] / -network.rates.value[number],
                tensors[f"{name}.x_out"],
                UPDATE,
            )
            near(term.values[0][mask], tensors[f"{name}.delta_out"], UPDATE)
            want = tensors[f"{name}.delta_weight"]
            weight = lm.model.get_parameter(f"{site.path}.weight")
            near(stored(changes[site.path], weight), want, UPDATE)


def test_mend_descends_where_the_published_code_ascends(
    reference: Path, model: str, lm: LM
) -> None:
    tensors, facts = golden(reference, "mend", model, "f32")
    editor, network, sites = mend_editor(lm, facts, tensors)
    descent = Mend(editor.config.model_copy(update={"sign": "descent"}))
    other = descent.build(sites, lm).double()
    other.load_state_dict(network.state_dict())
    signals = Signals(
        capture(lm, sites, edit_rows(lm, [requests_of(facts)[0][1]])), torch.tensor([0])
    )
    signals = Signals(
        tuple(Factors(f.h.double(), f.u.double(), f.mask) for f in signals.factors), signals.owner
    )
    with torch.no_grad():
        for a, b in zip(network(signals).terms, other(signals).terms, strict=True):
            assert torch.equal(a.keys, -b.keys)
            assert torch.equal(a.values, b.values)


def test_mend_from_text_to_logits(reference: Path, model: str, lm: LM) -> None:
    """The whole editor in float32, and the edited model's logits."""
    tensors, facts = golden(reference, "mend", model, "f32")
    editor, network, _ = mend_editor(lm, facts, tensors)
    editor.adopt(lm, network.float().requires_grad_(False).eval())
    for key, edit in requests_of(facts):
        (patch,) = editor.edit(lm, [[edit]])
        rows = edit_rows(lm, [edit])
        row = rows[0]
        for place, context in (("before", None), ("after", patch)):
            with torch.no_grad():
                at = positions_of(rows, [0])
                if context is None:
                    logits = lm.logits(lm.batch(rows, [0]), at)
                else:
                    with context.applied(lm):
                        logits = lm.logits(lm.batch(rows, [0]), at)
            near(logits, tensors[f"{key}.logits_{place}"][0][list(row.positions)], LOGITS)


# ---------------------------------------------------------------------- MALMEN


def malmen_editor(lm: LM, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    config = facts["config"]
    order = facts["name2idx"]
    layers = tuple(int(p) for name in order for p in name.split(".") if p.isdigit())
    editor = Malmen(MalmenConfig(layers=layers, width=config["rank"], n_blocks=config["n_blocks"]))
    sites = editor.sites(lm)
    assert [site.path for _, site in sites] == sorted(order, key=order.get)
    network = editor.build(sites, lm).double()
    (net,), (norm,) = network.nets.values(), network.norms.values()
    with torch.no_grad():
        for number, block in enumerate(net):  # type: ignore[arg-type]
            prefix = f"net.block{number}"
            for mine, theirs in (
                ("a", "A"), ("b", "B"), ("bias", "bias"),
                ("mode_scale", "scale"), ("mode_shift", "shift"),
            ):  # fmt: skip
                getattr(block, mine).copy_(tensors[f"{prefix}.{theirs}"])
        network.rates.value.copy_(tensors["net.lr"][:, 0])
        network.log_ridge.copy_(tensors["net.lamda"][:, 0])
    load_statistics(norm, tensors["normalizer.mean"], tensors["normalizer.std"])
    return editor, network, sites


def saved(tensors: dict[str, Tensor], path: str, number: int) -> tuple[Tensor, Tensor]:
    h, u = (tensors[f"{path}.edit{number}.{n}"].double() for n in ("keys", "values_grad"))
    return h, u


def test_malmen_signals_are_the_published_ones(reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, "malmen", model, "f32")
    _, _, sites = malmen_editor(lm, facts, tensors)
    for number, edit in enumerate(malmen_edits(reference, model, facts)):
        rows = edit_rows(lm, [edit])
        for (_, site), f in zip(sites, capture(lm, sites, rows), strict=True):
            h, u = saved(tensors, site.path, number)
            near(f.h[0], h, SIGNALS)
            near(f.u[0], u, SIGNALS)


def malmen_edits(reference: Path, model: str, facts: dict[str, Any]) -> list[Edit]:
    by_id = {r["case_id"]: r for r in model_requests(reference, model)}
    mine = [by_id[r["case_id"]] for r in facts["requests"]]
    return [Edit(r.get("prompt_filled") or r["prompt"], r["target_new"]) for r in mine]


def joint(tensors: dict[str, Tensor], sites: Any, count: int) -> Signals:
    """Return the saved signals of all edits as one group, the last tokens included."""
    factors = []
    for _, site in sites:
        pairs = [saved(tensors, site.path, number) for number in range(count)]
        mask = torch.zeros(count, max(len(h) for h, _ in pairs), dtype=torch.bool)
        h = torch.zeros(*mask.shape, site.d_in, dtype=torch.float64)
        u = torch.zeros(*mask.shape, site.d_out, dtype=torch.float64)
        for i, (a, b) in enumerate(pairs):
            h[i, : len(a)], u[i, : len(b)], mask[i, : len(a)] = a, b, True
        factors.append(Factors(h, u, mask))
    return Signals(tuple(factors), torch.zeros(count, dtype=torch.long))


def test_malmen_statistics(reference: Path, model: str, lm: LM) -> None:
    """Count and mean agree; the published sum of squares grows by n/(n-1) with every update."""
    tensors, facts = golden(reference, "malmen", model, "f32")
    editor, _, sites = malmen_editor(lm, facts, tensors)
    count = len(facts["requests"])
    fresh = editor.build(sites, lm).double()
    signals = joint(tensors, sites, count)
    fresh.observe(signals)
    (norm,) = fresh.norms.values()
    assert float(norm.running.n) == float(tensors["normalizer.n"])
    near(norm.running.mean, tensors["normalizer.mean"], STATISTICS)
    # the published merge, by hand
    n, mean, m2 = 0, torch.zeros(0), torch.zeros(0)
    for number in range(count):
        for _, site in sites:
            x = torch.cat(saved(tensors, site.path, number), -1)
            delta = x.mean(0) - (mean if n else 0)
            m2 = (m2 if n else 0) + x.var(0) * len(x) + delta.square() * n * len(x) / (n + len(x))
            mean = (mean if n else 0) + delta * len(x) / (n + len(x))
            n += len(x)
    near(m2, tensors["normalizer.var"], STATISTICS)
    near((m2 / (n - 1)).sqrt(), tensors["normalizer.std"], STATISTICS)


def test_malmen_update(reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, "malmen", model, "f32")
    _, network, sites = malmen_editor(lm, facts, tensors)
    with torch.no_grad():
        update = network(joint(tensors, sites, len(facts["requests"])))
    for (_, site), change in zip(sites, update.changes([s for _, s in sites], 0), strict=True):
        assert change.path == site.path
        delta = change.B @ change.A
        near(delta.T, tensors[f"{site.path}.param_shift"], SHIFT)
        weight = lm.model.get_parameter(f"{site.path}.weight")
        near(stored(delta, weight), tensors[f"{site.path}.delta_weight"], SHIFT)


def test_malmen_from_text_to_update(reference: Path, model: str, lm: LM) -> None:
    """The whole editor in float32, the edits as one group."""
    tensors, facts = golden(reference, "malmen", model, "f32")
    editor, network, _ = malmen_editor(lm, facts, tensors)
    editor.adopt(lm, network.float().requires_grad_(False).eval())
    (patch,) = editor.edit(lm, [malmen_edits(reference, model, facts)])
    for change in patch.changes:
        assert isinstance(change, LowRank)
        near((change.B @ change.A).T, tensors[f"{change.path}.param_shift"], SHIFT)
