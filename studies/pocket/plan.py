"""The runs of the study: what is trained, with which settings, and why.

Settings were chosen on the validation split (`val`) with short runs. Every editor has the same
training records, batch and number of steps, the calibrated start of its edit learning rates, and
per-token unit norm, unless its name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SEEDS = (0, 1, 2)
SCALES = (0.5, 0.75, 1.3, 1.7)
"""Strengths of the finished update, besides 1, at which frontiers are measured."""

LAYERS = (3, 4, 5)
STEPS = 1000
SHORT = 200
"""Steps of the cells of the sweep and of editors trained on one domain."""

MATCHED: dict[str, Any] = {
    "layers": LAYERS,
    "matrices": "out",
    "norm": "unit",
    "eta_space": "log",
    "nonlinear": "mlp",
    "shared": False,
    "width": 950,
}
PAPER: dict[str, Any] = {"layers": LAYERS, "norm": "unit", "d_m": 256, "l_m": 10, "beta": 0.1}
OURS: dict[str, Any] = {
    "layers": LAYERS,
    "norm": "unit",
    "d_m": 192,
    "l_m": 10,
    "beta": 0.1,
    "token_path": 200,
    "tokens": "all",
    "together": "tokens",
    "mirror": True,
}
MALMEN: dict[str, Any] = {"layers": LAYERS, "norm": "unit"}


@dataclass(frozen=True)
class Run:
    """One trained editor, or an editor that needs no training.

    Attributes:
        name: Name of its result file.
        editor: Editor.
        settings: Of the editor.
        training: Of the loop; None: no training.
        domains: Train on records of these domains only.
        frontier: Whether it is also measured at other strengths.
        half: Whether it is measured on the first record of each fact only.
    """

    name: str
    editor: str
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    frontier: bool = False
    half: bool = False


def _seeded(
    name: str, editor: str, settings: dict[str, Any], training: dict[str, Any], **more: Any
) -> list[Run]:
    return [
        Run(f"{name}_s{seed}", editor, settings, {**training, "seed": seed}, **more)
        for seed in SEEDS
    ]


def untrained() -> list[Run]:
    """Return the editors without training, with the settings found for pocket."""
    return [Run(name, name, training=None) for name in ("none", "ft", "rome")]


def comparison() -> list[Run]:
    """Return the trained editors of the main table, three seeds each."""
    as_published = {
        "include_edit": False, "sg_weight": 0.1, "generality": "rephrase",
        "kl": "original_first", "calibrate": None,
    }  # fmt: skip
    one = {"seed": 0}
    return [
        *_seeded("ibke_ours", "ibke", OURS, {"lr": 7e-4}, frontier=True),
        *_seeded("mend_matched", "mend", MATCHED, {"lr": 2e-3}, frontier=True),
        *_seeded("ibke_paper", "ibke", PAPER, {"lr": 5e-4}),
        Run("mend_mirror_s0", "mend", {**MATCHED, "mirror": True}, {"lr": 2e-3, **one}),
        Run("ibke_ours_no_ib_s0", "ibke", {**OURS, "bottleneck": False}, {"lr": 7e-4, **one}),
        Run("ibke_no_mirror_s0", "ibke", {**OURS, "mirror": False}, {"lr": 7e-4, **one}),
        Run("mend_small_s0", "mend", {**MATCHED, "width": 640}, {"lr": 2e-3, "seed": 0}),
        Run(
            "mend_published_s0", "mend", {"layers": (4, 5, 6)},
            {**as_published, "lr": 3e-4, "rate_lr": 1e-4, "seed": 0},
        ),
    ]  # fmt: skip


def ablation() -> list[Run]:
    """Return the paper's ablation on the paper's form; its full form is in the comparison."""
    no_ib, no_sf = {"bottleneck": False}, {"scaling": False}
    train = {"lr": 5e-4}
    return [
        *_seeded("ablation_no_ib", "ibke", PAPER | no_ib, train),
        *_seeded("ablation_no_sf", "ibke", PAPER | no_sf, train),
        *_seeded("ablation_no_ib_no_sf", "ibke", PAPER | no_ib | no_sf, train),
    ]


def malmen() -> list[Run]:
    """Return MALMEN, one seed."""
    return [Run("malmen_s0", "malmen", MALMEN, {"lr": 1e-3, "seed": 0})]


RANKS = (1,)


def ranks() -> list[Run]:
    """Return our form compressed to a rank inside training, one seed each."""
    return [
        Run(f"rank_{k}_s0", "ibke", {**OURS, "rank": k}, {"lr": 7e-4, "seed": 0}) for k in RANKS
    ]


SWEEP_LATENTS = (1, 4, 10)
SWEEP_BETAS = (0.0, 0.1, 1.0, 10.0)


def sweep_name(l_m: int, beta: float) -> str:
    """Return the name of a cell of the sweep."""
    return f"sweep_l{l_m}_b{beta:g}".replace(".", "p")


def sweep() -> list[Run]:
    """Return the paper's sweep over latents and β, short runs of one seed."""
    return [
        Run(
            sweep_name(l_m, beta), "ibke", {**PAPER, "l_m": l_m, "beta": beta},
            {"lr": 5e-4, "steps": SHORT, "seed": 0}, half=True,
        )
        for l_m in SWEEP_LATENTS
        for beta in SWEEP_BETAS
    ]  # fmt: skip


DOMAINS = ("chemistry", "sociology", "literature")


def domain_name(domain: str, bottleneck: bool) -> str:
    """Return the name of an editor trained on one domain."""
    return f"domain_{domain.replace(' ', '_')}_{'with' if bottleneck else 'without'}"


def one_domain() -> list[Run]:
    """Return editors trained on one domain, with and without the bottleneck, one seed each."""
    return [
        Run(
            domain_name(domain, on), "ibke", {**PAPER, "bottleneck": on},
            {"lr": 5e-4, "steps": SHORT, "seed": 0}, domains=(domain,), half=True,
        )
        for domain in DOMAINS
        for on in (True, False)
    ]  # fmt: skip


def everything() -> list[Run]:
    """Return all runs, the most important first."""
    return [
        *untrained(), *comparison(), *ablation(), *malmen(), *ranks(), *sweep(), *one_domain(),
    ]  # fmt: skip
