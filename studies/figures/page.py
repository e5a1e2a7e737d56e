"""docs/results-figures.md: every figure of the papers, what draws it, and what it shows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from studies.common.statistics import mean
from studies.common.tables import table
from studies.figures.plan import PICTURES_OF_THE_PAGE, RESULTS, ROOT, Picture

PAGE = ROOT / "docs" / "results-figures.md"
INTRO = Path(__file__).parent / "intro.md"

Line = Mapping[str, str]


def lines(name: str) -> list[Line]:
    """Return the numbers of a figure; none if it has not been drawn here."""
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page_text() -> str:
    """Return the page."""
    parts = [INTRO.read_text(encoding="utf-8").strip(), _list()]
    for one in PICTURES_OF_THE_PAGE:
        if one.file.is_file():
            parts.append(_section(one))
    return "\n\n".join(parts) + "\n"


def _list() -> str:
    rows = [
        [
            one.paper, f"`{one.figure}`",
            f"[{one.file.name}](figures/{one.file.name})" if one.file.is_file() else "not drawn",
            f"`{one.command}`",
            f"`{one.runs}`" if one.runs else "kept scores",
        ]
        for one in PICTURES_OF_THE_PAGE
    ]  # fmt: skip
    rows.append(["IBKE, Table I", "–", "[Data](data.md)", "`errata ls datasets --sizes`", "–"])
    rows.append([
        "IBKE, Table II", "–", "[Table II](results-table2.md)", "`python -m studies.table2 run`",
        "`table2-pocket`",
    ])  # fmt: skip
    return table(["in the paper", "name", "file", "command", "drawn from"], rows)


def _section(one: Picture) -> str:
    found = SAYS[one.figure]()
    said = found or "Its numbers: [Figures](figures.md#what-was-found-on-pocket)."
    heading = f"## {one.paper}: {one.title[0].lower()}{one.title[1:]}"
    parts = [heading, f"`{one.command}`", said, f"![{one.title}](figures/{one.file.name})"]
    if one.metrics and one.table.is_file():
        parts += [f"`{one.tabled}`", one.table.read_text(encoding="utf-8").strip()]
    return "\n\n".join(parts)


# ---------------------------------------------------------------------- what each shows


def _percent(value: str | float) -> str:
    return f"{100 * float(value):.1f}"


def _answers() -> str:
    own = lines("answers")
    if not own:
        return ""
    first = [line for line in own if line["place"] in ("1", "1.0000")]
    rows = []
    for question in dict.fromkeys(line["question"] for line in first):
        asked = [line for line in first if line["question"] == question]
        rows.append([question, asked[0]["asked"], asked[0]["wanted"], *(
            f"{line['answer'].strip()} ({_percent(line['probability'])})" for line in asked
        )])  # fmt: skip
    editors = list(dict.fromkeys(line["editor"] for line in first))
    return "The most probable answer (probability in %):\n\n" + table(
        ["", "asked", "wanted", *editors], rows
    )


def _scatter() -> str:
    rows = [
        [line["model"], line["editor"], *(_percent(line[k]) for k in
                                          ("generality", "locality", "f1"))]
        for line in lines("scatter")
    ]  # fmt: skip
    return (
        "Of CounterFact, top 5, in percent: the one set that was asked of both models. Pocket "
        "cannot say most of its answers ([Table II](results-table2.md)); SmolLM2's rows are of 100 "
        "or 30 records ([IBKE](results-ibke-real.md)), and at top 5 hardly any of its neighbours "
        "moves: at top 1 they do ([Pretrained models](results-real.md)).\n\n"
        + table(["model", "editor", "generality", "locality", "F1"], rows)
    )


def _latents() -> str:
    own = lines("latents")
    spans = []
    for metric in ("reliability", "generality", "locality"):
        values = [100 * float(line["rate"]) for line in own if line["metric"] == metric]
        spans.append(f"{metric} {min(values):.1f} to {max(values):.1f} %")
    return (
        f"Over the {len(own) // 3} settings, means over two test splits of 200 steps of training "
        f"each: {', '.join(spans)}. Nothing like a best place stands out; β = 10 with ten latents "
        "writes least."
    )


def _variants() -> str:
    own = lines("variants")
    names = list(dict.fromkeys(line["variant"] for line in own))
    keys = list(dict.fromkeys((line["metric"], line["data"]) for line in own))
    value = {(line["variant"], line["metric"], line["data"]): line["rate"] for line in own}
    rows = [[name, *(_percent(value[name, *key]) for key in keys)] for name in names]
    return (
        "The paper's form, three seeds, on held-out entities and domains, top 5, in percent. "
        "Without the bottleneck (−IB) nothing changes; without the gates (−SF) edits are written "
        "less often.\n\n" + table(["", *(f"{metric}, {data}" for metric, data in keys)], rows)
    )


def _domains() -> str:
    own = [line for line in lines("domains") if line["metric"] == "generality"]
    rows, gains = [], []
    for trained in dict.fromkeys(line["trained"] for line in own):
        domain = trained.split(",")[0]
        mine = [float(line["rate"]) for line in own if line["trained"] == trained]
        at_home = [
            float(line["rate"])
            for line in own
            if line["trained"] == trained and line["domain"] == domain
        ]
        count = len(mine)
        others = (sum(mine) - at_home[0]) / (count - 1)
        gains.append(100 * (at_home[0] - others))
        rows.append([trained, _percent(at_home[0]), f"{100 * others:.1f}"])
    return (
        "Generality in percent (top 5, 200 steps of training, one seed) on the domain that was "
        "trained on and in the mean over the twelve others. A domain's own questions are answered "
        f"better by {min(gains):.0f} to {max(gains):.0f} points; with and without the bottleneck "
        "do not differ in one direction.\n\n"
        + table(["trained on, bottleneck", "own domain", "other domains"], rows)
    )


def _criteria() -> str:
    own = lines("criteria")
    value = {(line["hops"], line["criteria"], line["editor"]): line for line in own}
    groups = list(dict.fromkeys((line["hops"], line["criteria"]) for line in own))
    editors = list(dict.fromkeys(line["editor"] for line in own))
    rows = [
        [criteria, hops, value[hops, criteria, editors[0]]["questions"],
         *(_percent(value[hops, criteria, editor]["generality"]) for editor in editors)]
        for hops, criteria in groups
    ]  # fmt: skip
    return (
        "The paper's form, three seeds, both test splits, top 5, in percent; questions count once "
        "per seed. Rephrasings are nearly all answered, hops and reversals are what is missing, "
        "and the bottleneck makes no difference to any of them.\n\n"
        + table(["criteria", "hops", "questions", *editors], rows)
    )


def _relations() -> str:
    own = lines("relations-silhouette")
    if not own:
        return ""
    rows = []
    for of in dict.fromkeys(line["of"] for line in own):
        for editor in dict.fromkeys(line["editor"] for line in own):
            mine = [line for line in own if line["of"] == of and line["editor"] == editor]
            cells = [
                f"{mean(values):.3f}"
                for matrix in dict.fromkeys(line["matrix"] for line in mine)
                if (values := [float(x["silhouette"]) for x in mine if x["matrix"] == matrix])
            ]
            rows.append([of, editor, *cells])
    matrices = list(dict.fromkeys(line["matrix"] for line in own))
    return (
        "Silhouettes by relation (0: relations do not part, 1: they are apart), means over draws."
        "\n\n" + table(["of", "editor", *matrices], rows)
    )


def _gates() -> str:
    own = lines("gates-gini")
    if not own:
        return ""
    keys = [key for key in own[0] if key not in ("data", "gini_sd")]
    rows = [
        [line[key] if key in ("editor", "matrix", "edits") else f"{float(line[key] or 'nan'):.3f}"
         for key in keys]
        for line in own
    ]  # fmt: skip
    return (
        "Gini coefficient of each edit's gates (0: all equal), share of gates below 0.1, and means "
        "by place.\n\n" + table(keys, rows)
    )


def _pruning() -> str:
    own = lines("pruning")
    if not own:
        return ""
    shares = sorted({line["pruned"] for line in own}, key=float)
    value = {(x["editor"], x["kind"], x["number"], x["pruned"]): x["value"] for x in own}
    rows = [
        [editor, kind, number, *(
            f"{float(value[editor, kind, number, share]):.1f}" if number == "rank"
            else _percent(value[editor, kind, number, share])
            for share in shares
        )]
        for editor, kind, number in dict.fromkeys(key[:3] for key in value)
    ]  # fmt: skip
    taken = {x["editor"]: x["edits"] for x in own}
    counts = ", ".join(f"{editor}: {count}" for editor, count in taken.items())
    return (
        f"Means over the edits that are taken unpruned ({counts}); probabilities and likeness in "
        "percent, by share of the gates that are set to zero, the smallest first.\n\n"
        + table(["editor", "questions", "", *(f"{100 * float(s):.0f} %" for s in shares)], rows)
    )


def _keys() -> str:
    own = lines("keys")
    if not own:
        return ""
    rows = [
        [line["editor"], line["block"], line["group"].replace("_", " "), line["keys"],
         f"{float(line['q50']):.2f} [{float(line['q05']):.2f}, {float(line['q95']):.2f}]"]
        for line in own if line["number"] == "answer"
    ]  # fmt: skip
    best = []
    curves = lines("keys-threshold")
    for editor in dict.fromkeys(line["editor"] for line in curves):
        top = max((x for x in curves if x["editor"] == editor), key=lambda x: float(x["gap"]))
        best.append(
            f"{editor} {float(top['threshold']):.2f} ({_percent(top['perturbed'])} % of perturbed, "
            f"{_percent(top['unrelated'])} % of unrelated keys open)"
        )
    return (
        f"{_drawn_of(own)} Whitened similarity to the edit's own key, median with 5th and 95th "
        "percentile: what a "
        f"rank-one update answers by itself. Widest gap of the gates: {'; '.join(best)}. A longer "
        "context hardly changes the key; another name of the subject does, and a shuffled or "
        "possessive one leaves nothing of it. In the table below the pathway brings back other "
        "names and shuffled ones, for a little locality, and nothing of the possessive ones, at "
        "which its gates stay shut. R-ROME is ROME here: pocket's settings have no contexts, and "
        "so there is one key.\n\n"
        + table(["editor", "block", "keys", "number", "similarity"], rows)
    )


def _drawn_of(own: Sequence[Line]) -> str:
    """Say which of a recipe's editors the numbers are of: a sweep may be there in part."""
    return f"Drawn of {', '.join(dict.fromkeys(line['editor'] for line in own))}."


def _residuals() -> str:
    own = lines("residuals")
    rows = [
        [line["editor"], line["block"], line["distance"], *(f"{float(line[k]):.2f}" for k in
                                                            ("error", "error_spread", "cosine"))]
        for line in own
    ]  # fmt: skip
    return (
        f"{_drawn_of(own)} How far the last block's residual is from what a block itself misses, "
        "relative to the latter: undivided, and as MEMIT spreads it.\n\n"
        + table(["editor", "block", "below the last", "undivided", "spread", "cosine"], rows)
        if rows
        else ""
    )


def _trajectory() -> str:
    own = lines("trajectory")
    if not own:
        return ""
    last = max(int(line["edits"]) for line in own)
    ends: Sequence[Line] = [line for line in own if int(line["edits"]) == last]
    numbers = list(dict.fromkeys(line["number"] for line in ends))
    value = {(line["editor"], line["number"]): float(line["value"]) for line in ends}
    rows = [
        [editor, *(
            "–" if (found := value.get((editor, number))) is None
            else f"{found:.1f}" if number == "perplexity" else _percent(found)
            for number in numbers
        )]
        for editor in dict.fromkeys(line["editor"] for line in ends)
    ]  # fmt: skip
    return f"{_drawn_of(own)} After {last} edits, in percent but for perplexity.\n\n" + table(
        ["editor", *numbers], rows
    )


SAYS: dict[str, Callable[[], str]] = {
    "answers": _answers, "scatter": _scatter, "latents": _latents, "variants": _variants,
    "domains": _domains, "criteria": _criteria, "relations": _relations, "gates": _gates,
    "pruning": _pruning, "keys": _keys, "residuals": _residuals, "trajectory": _trajectory,
}  # fmt: skip
"""By figure, what its numbers say; empty where they are not kept."""


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page_text(), encoding="utf-8")
