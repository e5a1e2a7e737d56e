"""Published data sets keep the spacing of the code that they were published with."""

from __future__ import annotations

from dataclasses import replace

from errata.case import Case, Edit, Probe
from errata.spacing import AUTO, continued


def joined(case: Case, joiner: str) -> Case:
    """Return a case whose edits and questions say `joiner` wherever `auto` would differ from it."""
    if joiner == AUTO:
        return case
    edits = tuple(_edit(edit, joiner) for edit in case.edits)
    probes = tuple(_probe(probe, joiner) for probe in case.probes)
    if edits == case.edits and probes == case.probes:
        return case
    return replace(case, edits=edits, probes=probes)


def _edit(edit: Edit, joiner: str) -> Edit:
    same = _same(edit.prompt, (edit.target, edit.target_true), joiner)
    return edit if same or edit.joiner != AUTO else replace(edit, joiner=joiner)


def _probe(probe: Probe, joiner: str) -> Probe:
    hops = tuple(_edit(hop, joiner) for hop in probe.hops)
    if hops != probe.hops:
        probe = replace(probe, hops=hops)
    same = _same(probe.prompt, (probe.target, probe.foil), joiner)
    return probe if same or probe.joiner != AUTO else replace(probe, joiner=joiner)


def _same(prompt: str, answers: tuple[str | None, ...], joiner: str) -> bool:
    return all(
        continued(prompt, answer) == continued(prompt, answer, joiner)
        for answer in answers
        if answer and not answer.isspace()
    )
