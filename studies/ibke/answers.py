"""The questions that the page was made for, answered from the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studies.ibke.found import at_equal, of_part, side
from studies.ibke.plan import BOTTLENECK, NETWORKS, PARTS, REFERENCE
from studies.ibke.run import key_of
from studies.real.found import Rate, Rates, gap_of, paired

WANTED = 0.05
"""Points of generality by which a form of IBKE is to beat MEND."""

OPEN = (
    ("Does the starred training (512 records of each other set) carry over?", "Not measured: "
     "there is no UniEdit here to train the unstarred form on. The first part's training "
     "mixes three sets, and is tested on one of them."),
    ("Other blocks, normalisers, widths, losses?", "Not measured: none was tried against another."),
)  # fmt: skip


def answers() -> str:
    """Return questions and answers."""
    asked = [_bottleneck(), *(f"* **{q}** {a}" for q, a in OPEN)]
    lines = [*_beats("held"), *_beats("seen"), _rounds(), *asked]
    return "## Questions\n\n" + "\n".join(lines)


WHERE = {"held": "on held-out relations", "seen": "on relations that training has seen"}


def _beats(part: str) -> list[str]:
    found = of_part(part)
    question = (
        f"* **Does a form of IBKE beat matched MEND by 5 points of generality {WHERE[part]}, "
        "at equal locality?**"
    )
    held = [(name, NETWORKS[name].against) for name in found]
    pairs = [(name, other) for name, other in held if other in found]
    told = [_against(found, name, other) for name, other in pairs]
    told += [
        _against(found, name, other, rounds=True)
        for name, other in pairs if "rounds" in found[name] and "rounds" in found[other]
    ]  # fmt: skip
    if not told:
        return [f"{question} Not measured."]
    return [f"{question} {' '.join(told)}"]


def _against(found: Mapping[str, Any], name: str, other: str, rounds: bool = False) -> str:
    title = NETWORKS[name].title + (", both in rounds" if rounds else "")
    equal = at_equal(found[name], found[other], rounds)
    if equal is None:
        return f"{title}: the strengths that were measured reach no common locality."
    level, own, theirs, gap = equal
    return (
        f"{verdict(gap)}: {title} has {own}, MEND {theirs} at top 1 where both keep "
        f"{100 * level:.0f} % of locality at top 1; difference {gap.signed} points."
    )


def _rounds() -> str:
    """Say what each network gains in rounds."""
    strength, most = REFERENCE
    question = (
        f"* **Do several rounds help?** At most {most} of strength {strength:g} (`rounds={most} "
        f"scale={strength:g}`), against one of full strength, points."
    )
    told = []
    for part in PARTS:
        for name, own in of_part(part).items():
            if "rounds" in own:
                one, two, _ = paired(own["rounds"][key_of(*REFERENCE)], own["records"])
                told.append(f"{NETWORKS[name].title} {WHERE[part]}: {', '.join(_gaps(one, two))}.")
    return f"{question} {' '.join(told) or 'Not measured.'}"


def _bottleneck() -> str:
    """Say what each pair of networks, with the bottleneck and without it, differs by."""
    question = "* **Does the bottleneck help anywhere?**"
    told = []
    for part in PARTS:
        found = of_part(part)
        for name, other in BOTTLENECK:
            if name in found and other in found:
                told.append(f"{NETWORKS[name].title} {WHERE[part]}: {_gap(found, name, other)}.")
    beside = "On pocket it made no difference (docs/results-pocket.md)."
    if not told:
        return f"{question} Not measured on this model. {beside}"
    return f"{question} With it minus without it, points. {' '.join(told)} {beside}"


def _gap(found: Mapping[str, Any], name: str, other: str) -> str:
    one, two, _ = paired(found[name]["records"], found[other]["records"])
    told = _gaps(one, two)
    equal = at_equal(found[name], found[other])
    if equal is not None:
        level, _, _, gap = equal
        told.append(f"generality where both keep {100 * level:.0f} % of locality {gap.signed}")
    return ", ".join(told)


def _gaps(one: Rates, two: Rates) -> list[str]:
    """Return the differences of the three rates, in words."""
    names = {"reliability": "reliability", "generality_top1": "generality at top 1",
             "locality_top1": "locality at top 1"}  # fmt: skip
    gaps = {words: gap_of(one, two, metric) for metric, words in names.items()}
    return [f"{words} {gap.signed} ({side(gap)})" for words, gap in gaps.items() if gap is not None]


def verdict(gap: Rate) -> str:
    """Say what a difference means for the question."""
    assert gap.low is not None
    if gap.low >= WANTED:
        return "Yes, also at the lower end of the interval"
    if gap.value >= WANTED and gap.low > 0:
        return "Yes by the estimate, and the interval excludes none but not fewer than five"
    if side(gap) == "not told apart":
        return "Not told apart"
    return "No" if gap.value < WANTED else "Not told apart"
