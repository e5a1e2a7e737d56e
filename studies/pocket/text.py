"""The words around the tables of docs/results-pocket.md."""

from __future__ import annotations

from pathlib import Path

from studies.pocket import page, plan
from studies.pocket.run import VARIANTS

FINDINGS = Path(__file__).parent / "findings.md"
"""What the tables show, in words: written by hand."""

INTRO = f"""# Trained editors on the pocket model

What IBKE, MEND and their relatives do on a model that knows its facts, and what of the published
claims holds there. Written by `python -m studies.pocket page` (`make results`) from
`studies/pocket/results/`; `python -m studies.pocket run` makes those again (a few CPU hours on
one core) and skips what is there. The plan, with every setting, is `studies/pocket/plan.py`.

* **Model and data.** The pocket model and the built-in world in UniEdit's schema:
  {VARIANTS["train"]} records for every training fact (13,788 in all), each with one generality and
  one locality question. *Held-out entities* (`test`) share no edited subject with training;
  *held-out domains* (`test_domains`: biology, astronomy) come from fields that occur in no training
  edit. Every edit is evaluated alone, hops unknown to the model are edited with it.
* **Training.** {plan.STEPS:,} steps of 16 edits for every editor, the same records in the order of
  the seed; edit learning rates calibrated so that an edit moves each matrix' output by a tenth;
  the checkpoint with the lowest validation loss (`val`, 256 edits) is the one measured.
  Settings were chosen on `val` with runs of 600 steps. The test splits had been looked at once, for
  one seed of some editors, when the last of them (the mirror) was added: see below.
* **Numbers.** Percent. *Top-1*: every answer token is the most probable one; *top-5*: it is among
  the five most probable (the published protocol; top-1 for yes/no questions). Means over seeds; in
  brackets 95 % intervals from a bootstrap over facts (an edit's records hang together).
* **Pocket's limits.** Yes/no questions about two entities (SER) are at chance before any edit and
  say nothing. Most two-hop answers stand in pocket's training text, so the model can know them by
  heart instead of composing them; an edit of one hop then does not reach them, whatever the editor.
"""


def write_page() -> None:
    """Write docs/results-pocket.md."""
    page.PAGE.write_text(page_text())


def page_text() -> str:
    """Return the whole page, made of the results that are there."""
    r = page.Results()
    ablation = [
        ("ibke_paper", "full"),
        ("ablation_no_ib", "−IB"),
        ("ablation_no_sf", "−SF"),
        ("ablation_no_ib_no_sf", "−IB −SF"),
    ]
    ranks = [("ibke_ours", "one per token"), *((f"rank_{k}", str(k)) for k in reversed(plan.RANKS))]
    parts = [
        INTRO,
        "## What holds\n\n" + FINDINGS.read_text(encoding="utf-8"),
        "## The comparison\n\n" + page.main_tables(r),
        "### Paired differences\n\nThe same edits under both editors, seed by seed.\n\n"
        + page.pair_table(r),
        "### At equal locality\n\nThe finished update is scaled by "
        + ", ".join(f"{s:g}" for s in plan.SCALES)
        + " and 1; generality is read off between the two neighbours of a locality. First record "
        "of each fact; lowest and highest seed in brackets; – where a seed does not reach that "
        "locality.\n\n" + page.frontier_table(r),
        "### By kind of question\n\n" + page.kinds_tables(r),
        "## Ablation of the paper's form\n\n" + page.simple_table(r, ablation, "variant"),
        f"## Latents and β\n\nPaper's form, {plan.SHORT} steps, one seed, first record of each "
        "fact.\n\n" + page.sweep_table(r),
        f"## Trained on one domain\n\nPaper's form, {plan.SHORT} steps, one seed, first record of "
        "each fact.\n\n" + page.domain_table(r),
        "## Rank-limited updates\n\nOur form, compressed inside training to a number of rank-one "
        "terms per edit and matrix.\n\n" + page.simple_table(r, ranks, "rank"),
        "## What training costs\n\nOne thread of a shared two-core machine, the measurements of "
        "one run per seed.\n\n" + page.cost_table(r),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
