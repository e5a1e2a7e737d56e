"""What is tried: for every editor that can be searched, the values of its settings.

A space has dimensions, a dimension has options, an option is one or more settings that belong
together (a threshold and its scale). What an editor is asked for depends on the settings it has,
so a new editor of a family has the family's space.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.editors import editors, get_editor
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM

Settings = Mapping[str, Any]

LOCATED: tuple[tuple[str, tuple[Settings, ...]], ...] = (
    ("clamp", tuple({"clamp": value} for value in (0.75, 1.5, 3.0, 4.0, 8.0))),
    (
        "mom2_weight",
        tuple({"mom2_weight": float(value)} for value in (100, 300, 1000, 3000, 8000, 20_000)),
    ),
    ("slack", tuple({"slack": value} for value in (0.01, 0.1))),
    ("l2", tuple({"l2": value} for value in (1.0, 10.0, 100.0))),
    (
        "nullspace_threshold",
        (
            {"nullspace_threshold": 0.005, "nullspace_scale": "absolute"},
            {"nullspace_threshold": 0.02, "nullspace_scale": "absolute"},
            {"nullspace_threshold": 0.1, "nullspace_scale": "absolute"},
            {"nullspace_threshold": 0.02, "nullspace_scale": "relative"},
        ),
    ),
    ("kl_factor", tuple({"kl_factor": value} for value in (0.0625, 0.5))),
    ("steps", ({"steps": 15}, {"steps": 20}, {"steps": 30})),
    ("lr", tuple({"lr": value} for value in (0.1, 0.25, 0.5))),
)
"""Dimensions of editors that write keys and values, by the setting that an editor has to have."""

TUNED: tuple[tuple[str, tuple[Settings, ...]], ...] = (
    ("lr", tuple({"lr": value} for value in (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3))),
    (
        "norm_constraint",
        tuple({"norm_constraint": value} for value in (2e-4, 5e-4, 1e-3, 2e-3, None)),
    ),
    ("steps", ({"steps": 10}, {"steps": 25}, {"steps": 50})),
    ("weight_decay", ({"weight_decay": 0.0}, {"weight_decay": 0.1, "optimizer": "adamw"})),
)
"""Those of fine-tuning."""

TURNS: tuple[tuple[str, tuple[Settings, ...]], ...] = (
    ("lr", tuple({"lr": value} for value in (1e-4, 2e-4, 3e-4, 6e-4, 1.2e-3, 2e-3, 4e-3))),
    ("whiten", ({"whiten": False}, {"whiten": True})),
    ("ridge", tuple({"ridge": value} for value in (0.1, 1.0, 10.0))),
)
"""Those of a ridge step against gradients (UltraEdit)."""

FACTORS: tuple[tuple[str, tuple[Settings, ...]], ...] = (
    ("lr", tuple({"lr": value} for value in (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3))),
    ("rank", tuple({"rank": rank, "alpha": 2.0 * rank} for rank in (2, 4, 8, 16))),
    ("steps", ({"steps": 10}, {"steps": 25}, {"steps": 50})),
)
"""Those of low-rank factors that are trained (LoRA)."""

BESIDE: Mapping[str, tuple[tuple[str, tuple[Settings, ...]], ...]] = {
    "radius": (  # GRACE
        ("radius", tuple({"radius": value} for value in (0.3, 1.0, 3.0, 10.0, 30.0))),
        ("lr", tuple({"lr": value} for value in (0.1, 0.3, 1.0))),
        ("steps", ({"steps": 30}, {"steps": 100})),
    ),
    "act_ratio": (  # WISE
        ("lr", tuple({"lr": value} for value in (0.1, 0.3, 1.0, 3.0))),
        ("limit", tuple({"limit": value} for value in (0.3, 1.0, 3.0))),
        ("act_ratio", tuple({"act_ratio": value} for value in (0.7, 0.88, 0.95))),
        ("steps", ({"steps": 30}, {"steps": 70})),
    ),
    "tau": (  # MEMOIR
        ("tau", tuple({"tau": value} for value in ("auto", 0.3, 0.5, 0.7, 0.9))),
        ("share", tuple({"share": value} for value in (0.1, 0.25, 0.5))),
        ("lr", tuple({"lr": value} for value in (0.1, 0.3, 1.0, 3.0))),
        ("steps", ({"steps": 30}, {"steps": 70})),
    ),
    "block_lr": (  # UnKE
        ("block_lr", tuple({"block_lr": value} for value in (5e-5, 1e-4, 2e-4, 5e-4, 1e-3))),
        ("block_steps", ({"block_steps": 20}, {"block_steps": 50})),
        ("clamp", tuple({"clamp": value} for value in (1.0, 2.0, 4.0))),
        ("keep_texts", ({"keep_texts": 20}, {"keep_texts": 60})),
    ),
    "memory_weight": (  # T-Patcher
        ("memory_weight", tuple({"memory_weight": value} for value in (0.1, 1.0, 3.0, 10.0))),
        ("fires_at", ({"fires_at": "all"}, {"fires_at": "answer"})),
        ("lr", tuple({"lr": value} for value in (0.003, 0.01, 0.03))),
        ("steps", ({"steps": 40}, {"steps": 75})),
    ),
    "top_k": (  # LEMoE
        ("rank", tuple({"rank": rank} for rank in (4, 8, 32))),
        ("lr", tuple({"lr": value} for value in (1e-4, 3e-4, 1e-3))),
        ("steps", ({"steps": 30}, {"steps": 100})),
    ),
}
"""Those of editors with a block of their own, by the setting that tells which it is."""

TOLD: tuple[tuple[str, tuple[Settings, ...]], ...] = (
    ("threshold", tuple({"threshold": value} for value in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9))),
    ("form", ({"form": "bare"}, {"form": "new_fact"}, {"form": "told"})),
    ("keys", ({"keys": "prompt"}, {"keys": "fact"})),
    ("confirm", ({"confirm": "none"}, {"confirm": "contrast"})),
)
"""Those of facts that are found and told (RAG)."""

LEADS: Mapping[str, tuple[Settings, ...]] = {
    "radius": ({"radius": 10.0}, {"radius": 3.0, "lr": 0.3}),
    "act_ratio": ({"lr": 0.3}, {"lr": 0.1, "limit": 3.0}),
    "tau": ({"lr": 0.3}, {"tau": 0.7}),
    "block_lr": ({"block_lr": 1e-4}, {"clamp": 1.0}),
    "memory_weight": ({"memory_weight": 3.0, "fires_at": "answer"}, {"memory_weight": 10.0}),
    "top_k": ({"rank": 4}, {"lr": 3e-4}),
    "confirm": ({"threshold": 0.7}, {"threshold": 0.8}, {"threshold": 0.9}, {"form": "new_fact"}),
    "mom2_weight": (
        {"clamp": 4.0, "mom2_weight": 1000.0},
        {"clamp": 3.0, "mom2_weight": 3000.0},
        {"clamp": 8.0, "mom2_weight": 300.0},
    ),
    "l2": ({"clamp": 4.0}, {"clamp": 4.0, "l2": 1.0}),
    "layer": ({"kl_factor": 0.5}, {"lr": 0.1, "steps": 30}),
    "whiten": ({"lr": 3e-4}, {"lr": 1.2e-3, "whiten": True}, {"lr": 1.2e-3}),
    "rank": ({"lr": 2e-4}, {"lr": 1e-3, "steps": 10}),
    "norm_constraint": (
        {"lr": 5e-4},
        {"lr": 2e-4},
        {"lr": 1e-4, "steps": 50},
    ),
}
"""What is tried first, by a setting that tells the family: strengths that worked elsewhere."""

ONE = (0.03, 0.1, 0.17, 0.24, 0.31, 0.4, 0.5)
"""Single blocks, as shares of the depth: subjects are recalled in the first half."""

SHIFTS = (-0.14, -0.07, 0.0, 0.07, 0.14, 0.24)
"""By how much of the depth a window of blocks is moved."""

TUNABLE = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Blocks for editors that train weights."""

LATE = (0.25, 0.5, 0.64, 0.75, 0.86, 0.97)
"""Blocks for memories beside the model: they were published in the second half."""


@dataclass(frozen=True)
class Space:
    """What is tried for one editor on one model.

    Attributes:
        dimensions: Names and options.
        leads: What is tried first, behind the rule of thumb.
    """

    dimensions: tuple[tuple[str, tuple[Settings, ...]], ...]
    leads: tuple[Settings, ...]

    def candidates(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield settings without end: nothing, the leads, single blocks, then draws."""
        yield {}
        seen: list[Settings] = [{}]
        blocks = self.dimensions[0][1]
        firsts = [dict(lead) for lead in self.leads]
        # the first lead in every place, so that a good strength is seen where it works
        firsts += [{**(firsts[0] if firsts else {}), **block} for block in blocks]
        draw = random.Random(f"candidates/{seed}")
        for number in itertools.count():
            if number < len(firsts):
                made = firsts[number]
            else:
                made = {}
                for _, options in self.dimensions:
                    made |= draw.choice(options)
            if made not in seen:
                seen.append(made)
                yield made
            elif number > 100 * len(firsts) + 10_000:
                return

    def beside(self, settings: Settings, base: Settings) -> Iterator[dict[str, Any]]:
        """Yield settings that differ in one dimension, by one option where they are in order.

        Args:
            settings: Where to start.
            base: What holds where they say nothing.
        """
        for _, options in self.dimensions:
            now = {**base, **settings}
            at = next((i for i, o in enumerate(options) if _holds(now, o)), None)
            near = range(len(options)) if at is None else (at - 1, at + 1)
            for place in near:
                if 0 <= place < len(options):
                    yield {**settings, **options[place]}


def _holds(settings: Settings, option: Settings) -> bool:
    return all(settings.get(name) == value for name, value in option.items())


def base_of(lm: LM, given: Editor, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the editor knows by the model's shape, where nothing was published or given."""
    rule = {} if given.known_settings(lm) else given.rule_by_shape(lm)[1]
    fields = type(given.config).model_fields
    return {name: value for name, value in rule.items() if name in fields and name not in fixed}


def stands_on(lm: LM, given: Editor, fixed: Mapping[str, Any]) -> list[Any]:
    """Return all settings of the rule of thumb, its blocks as numbers: what outcomes depend on."""
    values = {**base_of(lm, given, fixed), **fixed}
    editor: Any = get_editor(given.name, values, model=lm.name)
    products = ["bfloat16 products"] if lm.roughly else []
    return [editor.config.model_dump(mode="json"), list(editor.edited_layers(lm) or ()), *products]


def space_of(editor: Editor, lm: LM, fixed: Sequence[str] = ()) -> Space:
    """Return what is tried.

    Args:
        editor: The editor, with the settings of the rule of thumb.
        lm: The model.
        fixed: Settings that the user gave: they are not searched.

    Raises:
        ConfigError: If the editor has no settings that can be searched, or all are given.
    """
    fields, family = type(editor.config).model_fields, check_editor(editor)
    dimensions = [("blocks", _blocks(editor, lm))]
    dimensions += [(name, options) for name, options in family if name in fields]
    left = []
    for name, options in dimensions:
        free = [
            {key: value for key, value in option.items() if key in fields} for option in options
        ]
        free = [option for option in free if option and not option.keys() & set(fixed)]
        if len(free) > 1:
            left.append((name, tuple(free)))
    if not left:
        raise ConfigError(
            f"every setting of {editor.name} that is searched was given", "Leave some out."
        )
    leads = [
        {k: v for k, v in lead.items() if k in fields and k not in fixed}
        for told, found in LEADS.items()
        if told in fields
        for lead in found
    ]
    return Space(tuple(left), tuple(lead for lead in leads if lead))


def check_editor(editor: Editor) -> tuple[tuple[str, tuple[Settings, ...]], ...]:
    """Return the dimensions of an editor's family.

    Raises:
        ConfigError: If no search is made for it.
    """
    trained = "training" in editor.needs
    family = None if trained else _family(type(editor.config).model_fields)
    if family is None:
        there = [name for name in editors.entries if _can(name)]
        raise ConfigError(
            f"no search is made for the settings of {editor.name}",
            f"It is made for: {', '.join(there)}.",
        )
    return family


def _family(fields: Mapping[str, Any]) -> tuple[tuple[str, tuple[Settings, ...]], ...] | None:
    if "kl_factor" in fields and "moments_text" in fields:
        return LOCATED
    for told, family in (("whiten", TURNS), ("rank", FACTORS), ("norm_constraint", TUNED)):
        if {told, "lr", "layers"} <= fields.keys():
            return family
    if {"confirm", "threshold"} <= fields.keys():
        return TOLD
    return next((own for told, own in BESIDE.items() if {told, "layer"} <= fields.keys()), None)


def _can(name: str) -> bool:
    cls = editors.load(name)
    return "training" not in cls.needs and _family(cls.Config.model_fields) is not None


def _blocks(editor: Editor, lm: LM) -> tuple[Settings, ...]:
    """Return where an editor may write, by depth; nothing for one without blocks."""
    depth, fields = lm.n_layers, type(editor.config).model_fields
    if not fields.keys() & {"layer", "layers"}:
        return ()

    def at(share: float) -> int:
        return max(0, min(depth - 1, round(share * depth)))

    if "layer" in fields:
        shares = ONE if editor.weights else LATE
        return tuple({"layer": block} for block in dict.fromkeys(at(share) for share in shares))
    rule = tuple(editor.edited_layers(lm) or ())
    if "norm_constraint" in fields:
        return tuple({"layers": (n,)} for n in dict.fromkeys(at(share) for share in TUNABLE))
    if len(rule) == 1:
        shares = ONE if "kl_factor" in fields else TUNABLE
        return tuple({"layers": (n,)} for n in dict.fromkeys(at(share) for share in shares))
    windows = []
    for width in (len(rule), max(1, len(rule) // 2)):
        for shift in SHIFTS:
            end = max(width - 1, min(depth - 1, rule[-1] + round(shift * depth)))
            windows.append(tuple(range(end - width + 1, end + 1)))
    return tuple({"layers": window} for window in dict.fromkeys(windows))


def blocks_tried(space: Space, editor: Editor, lm: LM) -> tuple[int, ...]:
    """Return all blocks that settings of a space may write into."""
    found = set(editor.edited_layers(lm) or ())
    for _, options in space.dimensions:
        for option in options:
            found |= set(option.get("layers", ()))
            found |= {option["layer"]} if "layer" in option else set()
    return tuple(sorted(found))
