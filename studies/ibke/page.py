"""docs/results-ibke-real.md: trained networks on held-out records, and direct editors beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.common import results
from studies.common.tables import table
from studies.ibke.answers import answers
from studies.ibke.choose import CHOSEN
from studies.ibke.found import (
    LOCALITY,
    Frontier,
    at_strength,
    direct,
    good,
    of_part,
    side,
)
from studies.ibke.plan import CHOSEN_ON, NETWORKS, PARTS
from studies.ibke.run import DTYPE
from studies.real.found import Rates, gap_of, paired

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results-ibke-real.md"
INTRO = Path(__file__).parent / "intro.md"

SCORES = {
    "reliability": "Rel", "generality": "Gen, top 5", "generality_top1": "top 1",
    "locality": "Loc, top 5", "locality_top1": "top 1", "ES": "ES", "PS": "PS", "NS": "NS",
}  # fmt: skip

COMPARED = {"reliability": "reliability", "generality_top1": "generality at top 1",
            "locality_top1": "locality at top 1", "NS": "NS"}  # fmt: skip
"""What the findings say of each comparison."""

Parts = Mapping[str, Mapping[str, Any]]


def page_text() -> str:
    """Return the page."""
    parts = [INTRO.read_text(encoding="utf-8").strip(), answers()]
    for key in PARTS:
        found = of_part(key)
        if found:
            parts += _part(key, found)
    missing = [f"{own.title} ({PARTS[own.part].title.lower()})" for name, own in NETWORKS.items()
               if name not in of_part(own.part)]  # fmt: skip
    if missing:
        parts.append(f"## Not measured yet\n\n{'; '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _part(key: str, found: Parts) -> list[str]:
    blocks = [
        f"## {PARTS[key].title}",
        "\n".join([*_data(key, found), *_holds(key, found)]),
        _rates(key, found),
        _gaps(key, found),
        _frontiers(found),
        _in_rounds(found),
        _chosen(key),
        _made(found),
        _losses(found),
    ]
    return [block for block in blocks if block]


# ---------------------------------------------------------------------- sentences


def _data(key: str, found: Parts) -> list[str]:
    """Say what was trained on and tested; the networks of a part share it."""
    first = next(iter(found.values()))
    training, shared = first["training"], first["training"]["shared"]
    files = ", ".join(f"{d['records']:,} of `{d['spec']}`" for d in training["data"])
    held = (
        f"of {first['limit']} tested records, {shared['prompts']} have the prompt, "
        f"{shared['subjects']} the subject and {shared['targets']} the answer of an edit among the "
        "first file's training records"
    )
    lines = [f"* **Trained** by `{PARTS[key].recipe}` on {files}."]
    if PARTS[key].without:
        names = ", ".join(PARTS[key].without["without"])
        lines.append(
            f"* **Held out by relation**: {names}. Training leaves them out "
            "(`--data-set without=…`), the tests are of nothing else (`--data-set relations=…`)."
        )
    return [*lines, f"* **Shared**: {held}."]


def _told(one: Rates, two: Rates) -> str:
    """Return what tells two apart, in words that follow from the numbers."""
    told: dict[str, list[str]] = {"lower": [], "not told apart": [], "higher": []}
    for metric, words in COMPARED.items():
        gap = gap_of(one, two, metric)
        if gap is not None and gap.low is not None:
            told[side(gap)].append(f"{words} ({gap.signed})")
    return "; ".join(f"{how}: {', '.join(own)}" for how, own in told.items() if own)


def _holds(key: str, found: Parts) -> list[str]:
    lines = []
    for name, other in _pairs(found):
        one, two, count = paired(found[name]["records"], found[other]["records"])
        lines.append(
            f"* **{NETWORKS[name].title} against {NETWORKS[other].title}** ({count} records), "
            f"points: {_told(one, two)}."
        )
    first, *_ = found
    for row in _beside(key).values():
        one, two, count = paired(found[first]["records"], row.good)
        if row.cell.editor != "none" and count > 1:
            lines.append(
                f"* **{NETWORKS[first].title} against {row.title}** ({count} records), points: "
                f"{_told(one, two)}."
            )
    return lines


def _pairs(found: Parts) -> list[tuple[str, str]]:
    """Return forms of IBKE and what each is held against."""
    held = [(name, NETWORKS[name].against) for name in found]
    held += [(own, name) for name in found if (own := NETWORKS[name].rival_of) is not None]
    return [(name, other) for name, other in held if other in found and name in found and other]


def _beside(key: str) -> Mapping[str, Any]:
    """Return the direct editors' rows, which are of the first part's records."""
    return direct() if key == "seen" else {}


# ---------------------------------------------------------------------- tables


def _rates(key: str, found: Parts) -> str:
    rows: list[list[str]] = []
    for row in _beside(key).values():
        rows.append([row.title, str(len(row.good)), *_cells(row.good), row.seconds()])
    if not rows:  # the update at no strength is the unedited model
        unedited = good(at_strength(next(iter(found.values())), "0"))
        rows.append(["No edit", str(len(unedited)), *_cells(unedited), "–"])
    for name, own in found.items():
        records = good(own["records"])
        title = f"**{NETWORKS[name].title}**"
        rows.append([title, str(len(records)), *_cells(records), seconds(own)])
    head = ["editor", "n", *SCORES.values(), "CPU-s / record"]
    return f"### Each edit alone\n\n{_precision(found)}{table(head, rows)}"


def _precision(found: Parts) -> str:
    """Name the networks that were evaluated in another precision than the most."""
    other = [NETWORKS[name].title for name, own in found.items() if own["dtype"] != DTYPE]
    return f"Evaluated in float32: {', '.join(other)}.\n\n" if other else ""


def seconds(found: Mapping[str, Any]) -> str:
    """Return the CPU seconds of a record, where it was a processor."""
    spent = found["cpu_each"]
    return "–" if spent is None else f"{spent:.1f}"


def _cells(records: Any) -> list[str]:
    rates = Rates(records)
    return [rates.text(key) for key in SCORES]


def _gaps(key: str, found: Parts) -> str:
    first, *_ = found
    pairs = [
        (f"{NETWORKS[a].title} − {NETWORKS[b].title}", found[a]["records"], found[b]["records"])
        for a, b in _pairs(found)
    ]
    pairs += [
        (f"{NETWORKS[first].title} − {row.title}", found[first]["records"], row.good)
        for row in _beside(key).values()
    ]
    rows = []
    for title, left, right in pairs:
        one, two, count = paired(left, right)
        if count > 1:
            gaps = [gap_of(one, two, metric) for metric in SCORES]
            rows.append([title, str(count), *("–" if g is None else g.signed for g in gaps)])
    if not rows:
        return ""
    head = ["difference", "n", *SCORES.values()]
    return (
        "### Differences on the records that both have\n\nPoints, with 95 % intervals of the "
        f"paired difference.\n\n{table(head, rows)}"
    )


def _frontiers(found: Parts) -> str:
    """Generality and locality by strength of the update."""
    rows = []
    able = {name: own for name, own in found.items() if own.get("strengths")}
    if not able:
        return ""
    for name, own in able.items():
        frontier = Frontier(own)
        cells = [
            f"{100 * rates.rates['generality_top1']:.0f} / {100 * rates.rates[LOCALITY]:.0f}"
            for rates in frontier.rates
        ]
        rows.append([NETWORKS[name].title, *cells])
    strengths = Frontier(next(iter(able.values()))).strengths
    head = ["generality / locality, top 1", *(f"× {s}" for s in strengths)]
    return (
        "### By strength of the update\n\n`--set scale=…` at edit time; × 1 is as trained, × 0 the "
        f"unedited model.\n\n{table(head, rows)}"
    )


def _in_rounds(found: Parts) -> str:
    """Rates of updates in rounds, and what an edit takes on disk."""
    rows = []
    for name, own in found.items():
        if "rounds" not in own:
            continue
        for how, records in {"once, × 1": own["records"], **own["rounds"]}.items():
            fine = good(records)
            size = sum(record["patch_bytes"] for record in fine) / len(fine) / 1000
            rows.append([NETWORKS[name].title, how, str(len(fine)), *_cells(fine), f"{size:.0f}"])
    if not rows:
        return ""
    head = ["editor", "strength x rounds at most", "n", *SCORES.values(), "kB / edit"]
    return (
        "### In rounds\n\n`--set rounds=… --set scale=…` at edit time: every round is computed on "
        "the model as edited so far, and an edit leaves when its answer has half of the "
        f"probability ([how](methods.md#trained-editors-in-rounds)).\n\n{table(head, rows)}"
    )


def _chosen(key: str) -> str:
    """Return what the choice of rounds rests on."""
    kept = {
        name: chosen for name, own in NETWORKS.items()
        if own.part == key and (chosen := results.read(CHOSEN, name)) is not None
    }  # fmt: skip
    rows = [
        [NETWORKS[name].title, how, *(f"{100 * rate:.0f}" for rate in rates.values())]
        for name, chosen in kept.items()
        for how, rates in chosen["rates"].items()
    ]
    if not rows:
        return ""
    first = next(iter(kept.values()))
    head = ["editor", "strength x rounds at most", *next(iter(first["rates"].values()))]
    spec = CHOSEN_ON[key][0]
    what = "its held-out relations" if CHOSEN_ON[key][1] else "behind those tested"
    about = f"{first['records']} records of `{spec}`, {what} (`python -m studies.ibke choose`)"
    return (
        f"### Which rounds\n\n{about}; rates at top 1 unless the column says otherwise.\n\n"
        + table(head, rows)
    )


def _made(found: Parts) -> str:
    rows = []
    for name, own in found.items():
        training, loop = own["training"], own["training"]["loop"]
        best = min(e["total"] for e in training["log"] if e["kind"] == "validation")
        rows.append([
            NETWORKS[name].title, f"{training['parameters']:,}", f"{training['made']}",
            f"{loop['lr']:g}", str(loop["seed"]), training["compute"],
            f"{best:.2f} ({training['best_step']})", training.get("device") or "one core",
            f"{training['seconds'] / 60:.0f}",
        ])  # fmt: skip
    head = ["networks", "parameters", "steps", "learning rate", "seed", "products",
            "lowest validation loss (step)", "made on", "minutes by the clock"]  # fmt: skip
    batch = next(iter(found.values()))["training"]["loop"]["batch"]
    return (
        f"### How they were trained\n\nBatches of {batch} records; the networks of the lowest "
        "validation loss (48 held-out training records; the bottleneck's penalty counts for IBKE) "
        f"are those tested. {_where(found)}\n\n{table(head, rows)}"
    )


def _where(found: Parts) -> str:
    devices = {own["training"].get("device") for own in found.values()}
    cards = sorted(devices - {None})
    told = "Another seed draws other records of the same files too."
    for name, own in found.items():
        if (weight := weight_of(own)) != 1.0:
            told += f" {NETWORKS[name].title} counts generality {weight:g} times."
    if cards:
        told += (
            f" The {' and '.join(cards)} was shared with a dozen other runs, so that minutes say "
            "little; what was made there was evaluated there as well."
        )
    return told + (" A core is one thread of a machine that others used too." * (None in devices))


def weight_of(found: Mapping[str, Any]) -> float:
    """Return what the loss of generality was multiplied by in training."""
    return float(found["training"]["loop"].get("sg_weight", 1.0))


def _losses(found: Parts) -> str:
    curves = {
        name: {
            e["step"]: {**e, "sg": e["sg"] / weight_of(own)}
            for e in own["training"]["log"] if e["kind"] == "validation"
        }
        for name, own in found.items()
    }  # fmt: skip
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = [
        [str(step), *(_loss(curve.get(step)) for curve in curves.values())]
        for step in steps if step % 100 == 0
    ]  # fmt: skip
    head = ["step", *(NETWORKS[name].title for name in curves)]
    return f"### Validation loss: generality + locality\n\n{table(head, rows)}"


def _loss(entry: Mapping[str, Any] | None) -> str:
    return "–" if entry is None else f"{entry['sg']:.2f} + {entry['il']:.2f}"


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page_text(), encoding="utf-8")
