"""`errata doctor`: is everything here, and does errata understand this model?"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata import __version__
from errata.cli import _output, _views
from errata.cli._completion import model_names
from errata.cli._options import JsonFlag, LoadOptions, expand
from errata.errors import ErrataError, ModelError

if TYPE_CHECKING:
    from errata.model.lm import LM

EXAMPLES = ("errata doctor", "errata doctor pocket", "errata doctor ./my-model --dtype bfloat16")

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "datasets")
PROBE = "The capital of France is"
ENOUGH_BYTES = 1 << 30  # free space below which a cache or run folder soon fills up


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: What was looked at.
        ok: Whether it is as it should be.
        found: What was found.
        hint: What to do about it, if it is not.
    """

    what: str
    ok: bool
    found: str
    hint: str | None = None


@expand
def doctor(
    load: LoadOptions,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Look at this model too: pocket, a folder or a Hub id.",
            autocompletion=model_names,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Check the installation, and how errata understands a model.

    Exits with 1 if something is wrong.
    """
    checks = [*_packages(), *_machine(), *_folders()]
    found: dict[str, Any] | None = None
    if model is not None:
        more, found = _model(model, load)
        checks += more
    ok = all(check.ok for check in checks)
    if json:
        document = {"errata": __version__, "ok": ok, "checks": [asdict(c) for c in checks]}
        _output.print_json({**document, "model": model, "sites": found})
    else:
        _print(checks, found)
    if not ok:
        bad = [check.what for check in checks if not check.ok]
        _output.note(f"{len(bad)} of {len(checks)} checks failed: {', '.join(bad)}")
        raise typer.Exit(1)


def _packages() -> list[Check]:
    checks = [Check("python", True, f"{platform.python_version()} on {platform.system()}")]
    for name in PACKAGES:
        try:
            checks.append(Check(name, True, metadata.version(name)))
        except metadata.PackageNotFoundError:
            checks.append(Check(name, False, "not installed", f"pip install {name}"))
    return checks


def _machine() -> list[Check]:
    import torch

    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [
        Check("cpu", True, threads),
        Check("gpu", True, ", ".join(devices) or "none; the CPU is used"),
    ]


def _folders() -> list[Check]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from errata.store.files import cache_root

    named = {
        "errata's cache": (cache_root(), "ERRATA_CACHE"),
        "model cache": (Path(HF_HUB_CACHE), "HF_HOME"),
        "this folder": (Path.cwd(), None),
    }
    checks = []
    for what, (folder, variable) in named.items():
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
        free = shutil.disk_usage(nearest).free
        text = f"{folder} · {_output.size(free)} free"
        hint = f"Set {variable} to a folder you may write to." if variable else None
        if not writable:
            checks.append(Check(what, False, f"{text} · read-only", hint))
        else:
            few = free < ENOUGH_BYTES
            checks.append(Check(what, not few, text, "Free some space." if few else None))
    return checks


def _model(name: str, load: LoadOptions) -> tuple[list[Check], dict[str, Any] | None]:
    checks: list[Check] = []
    started = time.perf_counter()
    try:
        lm = load.load_named(name)
    except ErrataError as error:
        return [Check("model loads", False, error.message, error.hint)], None
    took = _output.seconds(time.perf_counter() - started)
    checks.append(
        Check("model loads", True, f"{took}; weights are finite, {lm.dtype}, {lm.device}")
    )
    try:
        found = _views.sites(lm)
    except ErrataError as error:
        return [*checks, Check("sites", False, error.message, error.hint)], None
    checks.append(Check("sites", True, f"{found['n_blocks']} blocks, found by probe"))
    checks.append(Check("weights", True, _stored(lm)))
    tests: dict[str, Callable[[LM], str]] = {
        "padding changes nothing": _padding,
        "a patch shows and is undone": _undo,
        "stacked patches agree": _stacked,
        "key/value cache": _cache,
        "published settings": _published,
        **({"experts": _experts} if any(lm.spec.mixtures) else {}),
        "causal trace": _traced,
    }
    for what, test in tests.items():
        try:
            checks.append(Check(what, True, test(lm)))
        except ErrataError as error:
            checks.append(Check(what, False, error.message, "Please report this model."))
    return checks, found


def _logits(lm: LM, texts: list[str], patch: int = -1) -> Any:
    import torch

    from errata.model.tokens import patched, positions_of

    rows = patched(lm.rows(texts), [patch] * len(texts))
    batch = lm.batch(rows, range(len(rows)))
    with torch.no_grad():
        return lm.logits(batch, positions_of(rows, range(len(rows)), lm.device)).float()


def _tolerance(lm: LM) -> float:
    """Return the largest relative difference of logits that rounding explains."""
    import torch

    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(lm.dtype, 0.05)


def _require(ok: bool, otherwise: str) -> None:
    if not ok:
        raise ModelError(otherwise)


def _agree(lm: LM, left: Any, right: Any, what: str) -> str:
    scale = max(float(left.abs().max()), 1.0)
    off = float((left - right).abs().max()) / scale
    _require(off <= _tolerance(lm), f"{what} differ by {off:.1e} of the largest logit")
    return f"largest relative difference {off:.1e}"


def _padding(lm: LM) -> str:
    alone = _logits(lm, [PROBE])
    padded = _logits(lm, [PROBE, f"{PROBE} not easily forgotten, as everybody knows"])
    return _agree(lm, alone[0], padded[0], "logits alone and in a padded batch")


def _small_patch(lm: LM) -> Any:
    import torch

    from errata.model.spec import weight_of
    from errata.patch import LowRank, Patch

    # which expert a text reaches depends on the text; what attends does not
    middle = lm.n_layers // 2
    site = lm.site(middle, "attn_out" if lm.spec.routed(middle) else "ffn_out")
    draw = torch.Generator().manual_seed(0)
    size = float(weight_of(lm.model, site).float().norm()) / site.d_out**0.5
    B = torch.randn(site.d_out, 1, generator=draw) / site.d_out**0.5
    A = torch.randn(1, site.d_in, generator=draw) / site.d_in**0.5
    return Patch((LowRank(site.path, size * B, A),))


def _undo(lm: LM) -> str:
    import torch

    before, patch = _logits(lm, [PROBE]), _small_patch(lm)
    with patch.applied(lm):
        during = _logits(lm, [PROBE])
    after = _logits(lm, [PROBE])
    _require(not torch.equal(before, during), "a patch has no effect on the logits")
    _require(torch.equal(before, after), "the logits are others after the undo")
    return "bit for bit"


def _stacked(lm: LM) -> str:
    from errata.patch.stack import Stack

    patch = _small_patch(lm)
    with patch.applied(lm):
        in_place = _logits(lm, [PROBE])
    with Stack(lm, [patch]):
        stacked = _logits(lm, [PROBE], 0)
    return _agree(lm, in_place, stacked, "logits in place and stacked")


def _cache(lm: LM) -> str:
    return "used" if lm.prefix_cache_works else "not usable here; whole prompts are run (slower)"


def _stored(lm: LM) -> str:
    from errata.model.stored import quantised_in

    paths = quantised_in(lm.model)
    away = sum(parameter.is_meta for parameter in lm.model.parameters())
    found = []
    if paths:
        kinds = sorted({type(lm.module(path)).__name__ for path in paths})
        found.append(f"{len(paths)} matrices quantised ({', '.join(kinds)})")
    if away:
        found.append(f"{away} offloaded")
    if not found:
        return "plain matrices" + (", over several devices" if lm.spread else "")
    return f"{', '.join(found)}: patches work beside them and leave as LoRA, never merged"


def _experts(lm: LM) -> str:
    from errata.editors.base_experts import said
    from errata.model.experts import routes

    mixtures = {n: m for n, m in enumerate(lm.spec.mixtures) if m is not None}
    shared = [n for n, m in mixtures.items() if m.shared]
    counts = ", ".join(sorted({str(m.count) for m in mixtures.values()}))
    text = f"{counts} in {len(mixtures)} of {lm.n_layers} blocks"
    if shared:
        return f"{text}; edits go to the shared expert, which sees every token"
    row = lm.row(PROBE, None, "France")
    (where,) = routes(lm, [row], [row.subject_last])
    return f"{text}; “France” in “{PROBE}” goes to {said(where)}; edits go to the first"


def _published(lm: LM) -> str:
    from errata.editors import editors
    from errata.editors.base import suited
    from errata.model.backbones import keys_for

    keys = keys_for(lm.name, lm.backbone)
    origins = {name: suited(editors.load(name), keys)[0] for name in editors.entries}
    there = [name for name, origin in origins.items() if origin]
    what = "no backbone that settings are known for" if lm.backbone is None else str(lm.backbone)
    if not there:
        return f"{what}; layer=auto is what a trace found, else a rule of thumb by depth"
    return f"{what}; settings for {', '.join(there)}"


def _traced(lm: LM) -> str:
    from errata.tracing.trace import cached_choice

    chosen = cached_choice(lm)
    return str(chosen) if chosen is not None else f"none yet; errata trace {lm.name} makes one"


def _print(checks: list[Check], found: dict[str, Any] | None) -> None:
    from rich.text import Text

    console = _output.out()
    table = _output.table("", "", f"errata {__version__}")
    for check in checks:
        mark = Text("✓", style="green") if check.ok else Text("✗", style="bold red")
        text = check.found if check.hint is None else f"{check.found}\n→ {check.hint}"
        table.add_row(mark, check.what, text)
    console.print(table)
    if found is not None:
        sites = _output.table("site", "path or value")
        for key, value in found.items():
            sites.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
        console.print(sites)
    if all(check.ok for check in checks):
        console.print("Everything is as it should be.")
