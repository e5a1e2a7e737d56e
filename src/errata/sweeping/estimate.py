"""What a unit will need: memory and time, from published widths and a stated throughput.

Rough on purpose, and meant to be read. Memory is

```
weights        parameters × bytes of the model's dtype
networks       parameters of the editor's networks × 16 bytes (float32 weights, gradient and two
               moments of Adam) in a training, × 4 bytes in a cell
factors        tokens of the edits held at once × D × matrices × 4 bytes, twice in a training
activations    tokens of a pass × numbers kept per token × bytes: 8 hidden + 3 inner per block that
               a gradient passes, or of one block where none does
editor         what an editor holds beside: FT its changes and Adam's state, ROME and AlphaEdit a
               second moment of keys in float64
```

Time is `floating-point operations / (device_tflops × 10¹²) + startup_seconds`. A forward pass costs
`2 × parameters` operations per token, a backward pass to the activations as much again. An edit
costs its tokens × `EDIT_PASSES`; questions are asked once, locality questions twice. A step of a
training runs the edits forward and back, generality questions likewise, and locality questions once
more, with everything below the edited blocks once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from errata.sweeping.backbones import Backbone, backbone, float_bytes
from errata.sweeping.check import Resolved
from errata.sweeping.counts import edited_layers, matrices, network_parameters
from errata.sweeping.recipe import DataEntry, Hardware, ModelEntry, Recipe
from errata.sweeping.units import Unit

DEFAULT_CASES = 5000
STACKED = 32  # edits that a cell evaluates side by side
PASS_TOKENS = 4096  # tokens of one forward pass of an evaluation
TUNED_BYTES = 4e9  # FT tunes as many edits at once as fit here
TRAIN_BATCH, TRAIN_STEPS = 16, 3000

EDIT_PASSES: dict[str, tuple[int, float]] = {
    # name: (steps, passes over the edit's tokens per step)
    "none": (0, 0.0),
    "ft": (25, 3.0),  # forward, backward, gradient of the weights
    "rome": (20, 44.0),  # forward and backward of 21 contexts and the bare prompt
    "r_rome": (20, 44.0),
    "memit": (25, 14.0),
    "pmet": (25, 14.0),
    "emmet": (25, 14.0),
    "alphaedit": (25, 14.0),
    "t_patcher": (75, 3.0),  # states of the text in which units keep quiet are computed once
    "lemoe": (100, 2.0),
    "grace": (100, 2.0),
    "serac": (1, 1.0),
    "ike": (0, 0.0),
    "mend": (1, 2.0),
    "malmen": (1, 2.0),
    "ke": (1, 2.0),
    "ibke": (1, 2.0),
}
QUESTION_FACTOR = {"serac": 2.0, "ike": 10.0}
"""How much longer questions are under an editor: SERAC asks two models, IKE adds demonstrations."""

SECOND_MOMENT = {"rome": 2, "r_rome": 2, "memit": 6, "pmet": 6, "emmet": 6, "alphaedit": 10}
"""`d_in × d_in` matrices in float64: second moments per layer and a factor, or projections."""


@dataclass(frozen=True)
class Estimate:
    """What a unit needs, as far as widths tell.

    Attributes:
        memory: Parts in bytes by name; empty if the model's sizes are unknown.
        seconds: Time; None if unknown.
        network: Parameters of the editor's networks.
    """

    memory: Mapping[str, float]
    seconds: float | None
    network: int = 0

    @property
    def bytes(self) -> float | None:
        """All memory together; None if unknown."""
        return sum(self.memory.values()) if self.memory else None


def estimate(
    unit: Unit, recipe: Recipe, resolved: Resolved, limit: int | None, steps: int | None
) -> Estimate:
    """Estimate a unit of a recipe.

    Args:
        unit: The unit.
        recipe: Its recipe.
        resolved: All its settings.
        limit: Cases at most, as given to `expand`.
        steps: Steps at most, likewise.
    """
    entry = recipe.models[unit.model]
    model = backbone(entry)
    if model is None:
        return Estimate({}, None)
    if unit.kind == "train":
        return _training(unit, entry, model, recipe, resolved, steps)
    data = recipe.data[unit.data]
    cases = min(n for n in (data.limit, limit, data.cases or DEFAULT_CASES) if n is not None)
    return _cell(unit.entry.editor, entry, model, data, recipe.hardware, resolved.settings, cases)


def flops_per_second(hardware: Hardware, entry: ModelEntry) -> float:
    """Return what a device sustains in the model's dtype."""
    given = hardware.device_tflops
    if isinstance(given, dict):
        given = given.get(entry.dtype or "float32", min(given.values()))
    return given * 1e12


def _kept(model: Backbone) -> int:
    """Numbers per token and block that are alive in a pass."""
    return 8 * model.hidden + 3 * model.inner


def _cell(
    editor: str, entry: ModelEntry, model: Backbone, data: DataEntry, hardware: Hardware,
    settings: Mapping[str, Any], cases: int,
) -> Estimate:  # fmt: skip
    width = float_bytes(entry)
    network = network_parameters(editor, settings, model)
    edit, generality, locality = data.tokens
    blocks = model.layers if EDIT_PASSES.get(editor, (1, 1.0))[1] >= 2 else 1
    memory = {
        "weights": model.parameters * width,
        "networks": 4.0 * network,
        "factors": STACKED * edit * model.signal * matrices(editor, settings, model) * 4
        if network
        else 0.0,
        "activations": (PASS_TOKENS * blocks * _kept(model) * width),
        "editor": _extra(editor, model),
    }
    steps, each = EDIT_PASSES.get(editor, (1, 2.0))
    asked = settings.get("steps")  # several: it optimises
    steps = asked if steps > 1 and isinstance(asked, int) else steps
    if settings.get("contexts") == "bare":
        each = min(each, 3.0)
    longer = QUESTION_FACTOR.get(editor, 1.0)
    tokens = steps * each * edit + longer * (edit + generality + locality) + locality
    flops = cases * (tokens * 2 * model.parameters + edit * 2 * network)
    seconds = flops / flops_per_second(hardware, entry) + hardware.startup_seconds
    return Estimate(memory, seconds, network)


def _extra(editor: str, model: Backbone) -> float:
    if editor == "ft":
        size = 6 * model.hidden * model.inner * 4.0  # change, gradient, Adam's two moments, copies
        return max(size, min(TUNED_BYTES, STACKED * size))
    return SECOND_MOMENT.get(editor, 0) * 8.0 * model.inner**2


def _training(
    unit: Unit, entry: ModelEntry, model: Backbone, recipe: Recipe, resolved: Resolved,
    steps: int | None,
) -> Estimate:  # fmt: skip
    row, settings, width = unit.entry, resolved.settings, float_bytes(entry)
    assert row.train is not None
    network = network_parameters(row.editor, settings, model)
    lowest = min(edited_layers(row.editor, settings, model), default=0)
    above = (model.layers - lowest) / model.layers
    edit, generality, locality = training_tokens(recipe)
    batch = resolved.loop.get("batch", TRAIN_BATCH)
    held = matrices(row.editor, settings, model)
    memory = {
        "weights": model.parameters * width,
        "networks": 16.0 * network,
        "factors": 2 * batch * edit * model.signal * held * 4,
        "activations": batch * (generality + locality) * (model.layers - lowest) * _kept(model)
        * width,
        "editor": 0.0,
    }  # fmt: skip
    passes = (edit + generality) * (1 + above) + locality * (1 + 2 * above)
    per_step = batch * (passes * 2 * model.parameters + edit * 2 * network * 3)
    asked = row.train.steps or resolved.loop.get("steps", TRAIN_STEPS)
    wanted = [n for n in (asked, steps) if n is not None]
    hardware = recipe.hardware
    seconds = min(wanted) * per_step / flops_per_second(hardware, entry) + hardware.startup_seconds
    return Estimate(memory, seconds, network)


def training_tokens(recipe: Recipe) -> tuple[float, float, float]:
    """Return the tokens of a training group: those of a case of the recipe's first data set."""
    return next(iter(recipe.data.values())).tokens


def total(estimates: Mapping[str, Estimate], devices: int) -> tuple[float, float] | None:
    """Return device seconds of all units, and the time until `devices` have done them.

    None if a unit's time is unknown.
    """
    found = [item.seconds for item in estimates.values()]
    if any(value is None for value in found):
        return None
    work = sum(value for value in found if value is not None)
    longest = max((value for value in found if value is not None), default=0.0)
    return work, max(work / devices, longest)
