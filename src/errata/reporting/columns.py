"""Metrics as columns: their names, groups and units, and where a record says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.case import BEYOND
from errata.config import did_you_mean
from errata.errors import ConfigError
from errata.evaluation.long import NAMES as LONG
from errata.evaluation.metrics import mean
from errata.evaluation.named_tests import ROBUSTNESS, SUCCESS
from errata.evaluation.summary import TOP1, scores_of

CORE = ("reliability", "generality", "locality", "average")
COUNTERFACT = ("ES", "PS", "NS", "S")
TEXTS = ("fluency", "consistency")
TEST, WILD, JUDGE, RETENTION, GENERAL = "test.", "wild.", "judge.", "retention.", "general."
PERPLEXITY = "perplexity"
GROUPS = (
    "core", "top1", "counterfact", "texts", "wild", "long", "beyond", "suite", "retention",
    "general",
)  # fmt: skip
"""Names of groups, in the order of their columns."""

_SHORT = {
    "reliability": "Rel", "generality": "Gen", "locality": "Loc", "average": "Avg",
    "generality_top1": "Gen top 1", "locality_top1": "Loc top 1",
    "fluency": "GE", "consistency": "RS", "perplexity": "PPL",
    "wild.reliability": "Rel wild", "wild.generality": "Gen wild", "wild.locality": "Loc wild",
    "judge.reliability": "Rel judged", "judge.generality": "Gen judged",
    "choice": "MC", "negation": "Neg", "leakage": "Leak",
    "wild.choice": "MC wild", "wild.negation": "Neg wild", "wild.leakage": "Leak wild",
    "long.rouge1.": "R1", "long.rouge2.": "R2", "long.rougeL.": "RL", "long.bleu.": "BLEU",
    "long.bleu_char.": "BLEU char", "long.similarity.": "Sim",
    "retention.immediate": "at once", "retention.final": "at end",
}  # fmt: skip
_TOLD = {
    "top1": "top 1: the most probable token alone",
    "counterfact": "ES, PS, NS, S: CounterFact's comparisons of likelihoods, and their mean",
    "texts": "GE, RS: fluency (100 times bits) and consistency of sampled texts",
    "wild": "wild: answers as the model itself writes them (WILD): exact match, and equal tokens; "
    "judged: by a judge instead",
    "long": "R1, R2, RL: recall of words, of pairs of words and of the longest common subsequence "
    "in long answers; BLEU: over words, and over characters as in published tables; Sim: cosine of "
    "sentence embeddings",
    "beyond": "MC: picks the new answer among objects of the relation; Neg: another answer is "
    "likelier behind the negated prompt; Leak: the old answer is still likelier (less is better)",
    "suite": "names in lower case: tests of the suite, micro-averages over their questions",
    "retention": "at once, at end: reliability right after each edit, and after all of them",
    "general": "PPL: perplexity after all edits; names with a slash: metrics of general ability",
}


@dataclass(frozen=True)
class Column:
    """A metric of a table.

    Attributes:
        name: As in the CSV.
        group: One of GROUPS.
        title: Heading.
        factor: What values are multiplied by where they are printed.
        unit: Of the value in the CSV: `percent` (times 100 there), else as it is.
        marked: Whether the best of a column is marked; more is better.
    """

    name: str
    group: str
    title: str
    factor: float = 100.0
    unit: str = "percent"
    marked: bool = True


def column_of(name: str) -> Column:
    """Return how a metric is shown."""
    title = _SHORT.get(name, name)
    if name in TOP1:
        return Column(name, "top1", title)
    if name in COUNTERFACT:
        return Column(name, "counterfact", title)
    if name in TEXTS:
        return Column(name, "texts", title, unit="bits" if name == "fluency" else "percent")
    if name.removeprefix(WILD) in BEYOND:
        return Column(name, "beyond", title, marked=not name.endswith("leakage"))
    if name.startswith((WILD, JUDGE)):
        return Column(name, "wild", title)
    if name in LONG:
        metric, kind = name.rsplit(".", 1)
        return Column(name, "long", f"{_SHORT[metric + '.']} {_SHORT[kind]}")
    if name.startswith(TEST):
        return Column(name, "suite", name.removeprefix(TEST))
    if name.startswith(RETENTION):
        return Column(name, "retention", title)
    if name == PERPLEXITY:
        return Column(name, "general", title, factor=1.0, unit="perplexity", marked=False)
    if name.startswith(GENERAL):
        return Column(name, "general", name.removeprefix(GENERAL))
    return Column(name, "core", title)


def ordered(names: Iterable[str]) -> list[str]:
    """Return metrics in the order of their columns."""
    first = [*CORE, *TOP1, *COUNTERFACT, *TEXTS, *(TEST + name for name in ROBUSTNESS)]
    first += [*(WILD + name for name in CORE), *(JUDGE + name for name in CORE)]
    first += [*LONG, *BEYOND, *(WILD + name for name in BEYOND)]
    first += [RETENTION + "immediate", RETENTION + "final", PERPLEXITY]
    ranks = {name: place for place, name in enumerate(first)}

    def place(name: str) -> tuple[int, int, str]:
        return GROUPS.index(column_of(name).group), ranks.get(name, len(ranks)), name

    return sorted(names, key=place)


def legend(names: Iterable[str]) -> list[str]:
    """Say what the columns of the groups beyond the core are, for the ones that are there."""
    there = {column_of(name).group for name in names}
    return [f"{_TOLD[group]}." for group in GROUPS if group in there and group in _TOLD]


def chosen(wanted: Sequence[str] | None, known: Iterable[str]) -> tuple[str, ...] | None:
    """Return the metrics that are asked for, by name or group; None for all.

    Raises:
        ConfigError: If a name is neither.
    """
    if wanted is None:
        return None
    names = ordered(set(known))
    found: list[str] = []
    for word in wanted:
        own = [n for n in names if word in (n, column_of(n).group, column_of(n).title)]
        if not own and word not in GROUPS and word not in (*CORE, *COUNTERFACT, *TEXTS):
            raise ConfigError(
                f"no metric {word!r} in these runs", did_you_mean(word, {*names, *GROUPS})
            )
        found += own
    return tuple(dict.fromkeys(found))


# ---------------------------------------------------------------------- from records


def scores_in(record: Mapping[str, Any]) -> dict[tuple[str, str], list[float]]:
    """Return the scores of a record that tables can show, by metric and sub-metric."""
    scores = {key: own for key, own in scores_of(record).items() if _is_shown(key[0])}
    if any(entry.get("exact") for entry in record["questions"]):
        for entry in record["questions"]:
            name = SUCCESS if entry["kind"] == "reliability" else entry["name"]
            scores.setdefault((TEST + name, ""), []).append(entry["score"])
    immediate = record.get("immediate")
    if immediate:
        final = [e["score"] for e in record["questions"] if e["kind"] == "reliability"]
        for when, values in (("immediate", immediate), ("final", final)):
            value = mean(values)
            if value is not None:
                scores[RETENTION + when, ""] = [value]
    return scores


def _is_shown(metric: str) -> bool:
    return metric in (*CORE, *TOP1, *COUNTERFACT, *TEXTS, *LONG, *BEYOND) or metric.startswith(
        (WILD, JUDGE)
    )


def is_column(metric: str) -> bool:
    """Whether a metric of a table of scores is a column of a report."""
    return _is_shown(metric) or metric.startswith((TEST, RETENTION))


def at_the_end(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured of the model after all edits of a sequence."""
    found: dict[str, float] = {}
    perplexity = (summary.get(PERPLEXITY) or {}).get("after")
    if perplexity is not None:
        found[PERPLEXITY] = float(perplexity)
    for name, value in ((summary.get("general") or {}).get("after") or {}).items():
        if value is not None:
            found[GENERAL + name] = float(value)
    return found
