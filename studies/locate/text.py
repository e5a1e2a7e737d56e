"""The words around the tables of docs/results-locate.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from studies.common.statistics import mean
from studies.locate import page, plan
from studies.locate.data import EDITS, GENERAL, SEEDS
from studies.locate.found import Results

FINDINGS = Path(__file__).parent / "findings.md"
"""What the tables show, in words: written by hand, with places for numbers (see `filled`)."""

SETTINGS = Path(__file__).parent / "settings.md"
"""How the settings for pocket were found: written by hand."""

INTRO = f"""# The locate-then-edit family on the pocket model

ROME's relatives one by one, in batches and in long sequences, with BLUE and with REP, on a model
that knows its facts; what of the published claims holds there. Written by
`python -m studies.locate page` (`make results`) from `studies/locate/results/`; `python -m
studies.locate run` makes those again (hours on one core) and skips what is there, and several such
processes share the work. The plan is `studies/locate/plan.py`.

* **Model and data.** The pocket model (7 blocks, FFN 512) and the built-in world: {EDITS:,} facts,
  all of the held-out splits `test` and `test_domains` and 53 of `train`, which teaches nothing to
  these editors. {len(SEEDS)} seeds: each has other new objects, other questions and another order
  of the same facts. The {EDITS:,} facts are about 443 subjects, so that edits of a sequence share
  subjects. Settings were found on 300 other facts (all but one).
* **Questions.** One generality question for four facts in five and one locality question for most;
  yes/no questions, which pocket cannot answer, are left out, and so are locality questions that
  hang on another edited fact. Hops are not edited beside a fact, so two-hop questions test whether
  the edit alone reaches them.
* **Numbers.** Percent, top-1: the answer's tokens are the most probable ones. Means over seeds; in
  brackets 95 % intervals from a bootstrap over facts (a fact's cases of all seeds are drawn
  together). Differences are paired: the same facts, objects and order under both editors.
* **General ability** is measured by {GENERAL} facts that no edit touches, in wordings that
  pocket's text never had (the unedited model knows all but a few), and by perplexity on 200
  held-out sentences about facts that no edit touches. The drift is `||W - W0|| / ||W0||` of the
  matrix that moved most.
"""


def write_page() -> None:
    """Write docs/results-locate.md."""
    page.PAGE.write_text(page_text(), encoding="utf-8")


def filled(text: str, r: Results) -> str:
    """Put numbers of the results in the places of a text.

    `[[rate PART LABEL COLUMN]]` is a rate, `[[gap PART LABEL LABEL COLUMN]]` a paired difference,
    both with their intervals; `[[mean …]]` and `[[only …]]` are the same without them, and
    `[[known LABEL]]` the share of untouched facts known after a sequence.

    Raises:
        ValueError: If there is no such result.
    """

    def value(found: re.Match[str]) -> str:
        what, *words = found[1].split()
        number = _NUMBERS[what](r, words)
        if number is None:
            raise ValueError(f"no result for {found[0]}")
        return number

    return re.sub(r"\[\[([^\]]+)\]\]", value, text)


def _rate(r: Results, words: list[str]) -> str | None:
    found = r.rate(*words)  # type: ignore[arg-type]
    return None if found is None else str(found)


def _mean(r: Results, words: list[str]) -> str | None:
    found = r.rate(*words)  # type: ignore[arg-type]
    return None if found is None else f"{found.mean:.1f}"


def _gap(r: Results, words: list[str]) -> str | None:
    part, left, right, column = words
    found = r.gap((part, left), (part, right), column)
    return None if found is None else found.signed


def _only(r: Results, words: list[str]) -> str | None:
    part, left, right, column = words
    found = r.gap((part, left), (part, right), column)
    return None if found is None else f"{found.mean:+.1f}"


def _known(r: Results, words: list[str]) -> str | None:
    runs = r.of("sequence", words[0])
    return f"{mean([mean(run['general']) for run in runs]):.1f}" if runs else None


_NUMBERS: dict[str, Callable[[Results, list[str]], str | None]] = {
    "rate": _rate, "mean": _mean, "gap": _gap, "only": _only, "known": _known,
}  # fmt: skip


def page_text() -> str:
    """Return the whole page, made of the results that are there."""
    r = Results()
    parts = [
        INTRO,
        "## What holds\n\n" + filled(FINDINGS.read_text(encoding="utf-8"), r),
        f"## Sequences of {EDITS:,} edits in batches of {plan.STEP}\n\n" + page.sequence_table(r),
        "### BLUE − host\n\n" + page.blue_sequences(r),
        "### Retention: reliability at the end by the number of later edits\n\n"
        + page.retention_table(r),
        "### Along the sequence: recall of all edits so far / perplexity\n\n"
        + page.trajectory_table(r),
        f"## Batches\n\nBatches below {EDITS:,} are made of the first {plan.SINGLES} facts of a "
        "seed, each batch on the unedited model. MEMIT-seq, without earlier edits, is MEMIT; "
        "R-ROME and p-ROME, without contexts, are ROME.\n\n" + page.batch_tables(r),
        "### BLUE − host by size of the batch\n\n" + page.blue_batches(r),
        f"### Restrained less and more\n\nBatches of {plan.STRENGTH_BATCH}; means over "
        "facts, of the seeds that all of these have.\n\n" + page.strength_table(r)
        + "\n\nRead off between two neighbours, at equal locality:\n\n"
        + page.equal_locality_table(r),
        "### Single edits by kind of question\n\n" + page.groups_table(r),
        f"## Robustness, with and without REP\n\nThe first {plan.ROBUST} facts of a seed, one at a "
        "time; whole answers have to be right. R-ROME has six contexts, without which it is "
        "ROME.\n\n" + page.robustness_table(r),
        "### REP − host\n\n" + page.rep_table(r),
        "## Errors of published code, and what they change here\n\n"
        f"{plan.FIXED} facts per seed.\n\n" + page.fix_table(r),
        "## What it costs\n\nSequences, on one thread of a busy two-core machine.\n\n"
        + page.cost_table(r),
        "## How the settings for pocket were found\n\n" + SETTINGS.read_text(encoding="utf-8"),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"
