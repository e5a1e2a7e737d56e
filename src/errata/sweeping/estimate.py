"""What a unit will need: memory and time, from published widths and a stated throughput.

Rough on purpose, and meant to be read. Memory is

```
weights        parameters × bytes of the model's dtype
networks       parameters of the editor's networks × 16 bytes (float32 weights, gradient and two
               moments of Adam) in a training, × 4 bytes in a cell
factors        tokens of the edits held at once × D × matrices × 4 bytes, twice in a training
activations    tokens of a pass × numbers kept per token × bytes: 8 hidden + 3 inner per block that
               a gradient passes, or of one block where none does
editor         what an editor says that it holds beside: FT its changes and Adam's state, ROME and
               AlphaEdit second moments of keys in float64
```

Time is `floating-point operations / (device_tflops × 10¹²) + startup_seconds`. A forward pass costs
`2 × parameters` operations per token, a backward pass to the activations as much again. An edit
costs its tokens × the passes that its editor says (`Editor.cost`); questions are asked once,
locality questions twice. A step of a training runs the edits forward and back, generality questions
likewise, and locality questions once more, with everything below the edited blocks once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from errata.evaluation.protocol import Protocol
from errata.sweeping.backbones import Backbone, backbone, float_bytes
from errata.sweeping.check import Resolved
from errata.sweeping.counts import Needs, needs_of
from errata.sweeping.recipe import DataEntry, Hardware, ModelEntry, Recipe
from errata.sweeping.units import Unit

DEFAULT_CASES = 5000
PASS_TOKENS = 4096  # tokens of one forward pass of an evaluation
GPU_TFLOPS = 10.0  # of a GPU that the recipe says nothing about
GPU_STARTUP, CPU_STARTUP, READ_RATE = 60.0, 5.0, 2e8
"""Until a unit's model is loaded: seconds on a GPU; on a CPU, and its bytes per second."""

MEASURED_WIDTH, MEASURED_TOKENS, MEASURED_SECONDS = 512, 256, 0.2
EFFICIENCY = 0.3
"""Share of the speed of a product of matrices that a whole model reaches on a CPU."""


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
    needs = needs_of(unit.entry.editor, resolved.settings, model)
    protocol = recipe.protocol_on(unit.data)
    return _cell(needs, entry, model, data, recipe.hardware, cases, protocol)


def flops_per_second(hardware: Hardware, entry: ModelEntry) -> float:
    """Return what a device sustains in the model's dtype."""
    given = hardware.device_tflops
    if given is None:
        given = usual_tflops(entry.device)
    if isinstance(given, dict):
        given = given.get(entry.dtype or "float32", min(given.values()))
    return given * 1e12


def on_cpu(device: str | None) -> bool:
    """Whether a model runs on the CPU of this machine, if the recipe does not say otherwise."""
    import torch

    return device == "cpu" or (device is None and not torch.cuda.is_available())


@cache
def usual_tflops(device: str | None) -> float:
    """Return what is assumed of a device that the recipe says nothing about.

    Of a GPU a round figure; of this machine's CPU what a few products of matrices reach, and of
    that the share that a model gets.
    """
    if not on_cpu(device):
        return GPU_TFLOPS
    import torch

    left = torch.randn(MEASURED_TOKENS, MEASURED_WIDTH)
    right = torch.randn(MEASURED_WIDTH, 4 * MEASURED_WIDTH)
    torch.mm(left, right)  # the first product starts threads
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < MEASURED_SECONDS:
        torch.mm(left, right)
        count += 1
    each = 2.0 * MEASURED_TOKENS * MEASURED_WIDTH * 4 * MEASURED_WIDTH
    return EFFICIENCY * count * each / taken / 1e12


def startup(hardware: Hardware, entry: ModelEntry, model: Backbone) -> float:
    """Return the seconds from the start of a unit until its model is loaded."""
    if hardware.startup_seconds is not None:
        return hardware.startup_seconds
    if not on_cpu(entry.device):
        return GPU_STARTUP
    return CPU_STARTUP + model.parameters * float_bytes(entry) / READ_RATE


def _kept(model: Backbone) -> int:
    """Numbers per token and block that are alive in a pass."""
    return 8 * model.hidden + 3 * model.inner


def _cell(
    needs: Needs, entry: ModelEntry, model: Backbone, data: DataEntry, hardware: Hardware,
    cases: int, protocol: Protocol,
) -> Estimate:  # fmt: skip
    width, cost = float_bytes(entry), needs.cost
    edit, generality, locality = data.tokens
    blocks = model.layers if cost.passes >= 2 else 1
    memory = {
        "weights": model.parameters * width,
        "networks": 4.0 * needs.network,
        "factors": protocol.stack_size * edit * model.signal * needs.matrices * 4,
        "activations": (PASS_TOKENS * blocks * _kept(model) * width),
        "editor": cost.held,
    }
    asked = min(cases, protocol.ask or cases)
    questions = cost.questions * (edit + generality + locality) + locality
    tokens = cases * cost.passes * edit + asked * questions
    flops = tokens * 2 * model.parameters + cases * edit * 2 * needs.network
    seconds = flops / flops_per_second(hardware, entry) + startup(hardware, entry, model)
    return Estimate(memory, seconds, needs.network)


def _training(
    unit: Unit, entry: ModelEntry, model: Backbone, recipe: Recipe, resolved: Resolved,
    steps: int | None,
) -> Estimate:  # fmt: skip
    row, width = unit.entry, float_bytes(entry)
    assert row.train is not None
    needs = needs_of(row.editor, resolved.settings, model)
    network, lowest = needs.network, needs.lowest
    above = (model.layers - lowest) / model.layers
    edit, generality, locality = training_tokens(recipe)
    batch = resolved.loop["batch"]
    memory = {
        "weights": model.parameters * width,
        "networks": 16.0 * network,
        "factors": 2 * batch * edit * model.signal * needs.matrices * 4,
        "activations": batch * (generality + locality) * (model.layers - lowest) * _kept(model)
        * width,
        "editor": 0.0,
    }  # fmt: skip
    passes = (edit + generality) * (1 + above) + locality * (1 + 2 * above)
    per_step = batch * (passes * 2 * model.parameters + edit * 2 * network * 3)
    asked = row.train.steps or resolved.loop["steps"]
    wanted = [n for n in (asked, steps) if n is not None]
    hardware = recipe.hardware
    seconds = min(wanted) * per_step / flops_per_second(hardware, entry)
    seconds += startup(hardware, entry, model)
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
