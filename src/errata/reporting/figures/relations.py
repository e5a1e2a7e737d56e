"""Fig. 6: the latents of edits on a plane, coloured by relation; and whether they part by it.

```
edits of the largest relations ──▶ editor.latents(lm, edits): μ of every matrix, [E, l_m d_m]
   plane    50 principal components ──▶ t-SNE
   number   silhouette by relation of μ itself; beside it that of the signals that the network
            read, of the plane, and of μ with relations shuffled
```
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from errata.case import Case, Edit
from errata.errors import MissingExtra, RunError
from errata.progress import watched
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, MARKERS, Drawing, Numbers
from errata.reporting.reopened import Reopened, reopened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from errata.editors.base_inside import InsideEditor

RELATIONS = 8
"""The most frequent ones are shown: as many as there are colours."""

FEWEST = 5
"""Edits of a relation; fewer are left out."""

COMPONENTS, PERPLEXITY = 50, 30.0
FAINTEST = 0.8
"""How far towards white a point without any confidence is."""

MADE = "errata sweep recipes/ibke-inside-pocket.toml makes runs of IBKE with and without it."


@dataclass(frozen=True)
class _Read:
    """Latents of the edits of one run.

    Attributes:
        label: Its row.
        relations: Relation of each edit.
        confidence: Mean probability of each target's tokens after the edit.
        matrices: By name, latents and signals, `[E, …]` each.
    """

    label: str
    relations: tuple[str, ...]
    confidence: tuple[float, ...]
    matrices: dict[str, tuple[Any, Any]]


def drawing(cells: Sequence[Cell], limit: int | None = None, seeds: int = 3) -> Drawing:
    """Return the planes: a row per run, a column per edited matrix.

    Args:
        cells: Runs of editors with latents; others are passed over.
        limit: Cases of each run at most.
        seeds: Draws of edits, and of the plane, that the silhouettes are taken over.

    Raises:
        RunError: If no run has latents, or cases have no relation, or two relations of them.
        MissingExtra: If scikit-learn is not installed.
    """
    _need_sklearn()
    reads = [_read(run) for run in looked_into(cells, limit)]
    points: list[tuple[Any, ...]] = []
    scores: list[tuple[Any, ...]] = []
    with watched("t-SNE and silhouettes") as step:
        total = sum(len(read.matrices) for read in reads)
        for read in reads:
            for name, (latents, signals) in read.matrices.items():
                step(len({row[:2] for row in points}), total)
                planes = [_plane(latents, seed) for seed in range(seeds)]
                points += [
                    (read.label, name, relation, sure, float(x), float(y))
                    for relation, sure, (x, y) in zip(
                        read.relations, read.confidence, planes[0], strict=True
                    )
                ]
                for seed in range(seeds):
                    found = _silhouettes(latents, signals, planes[seed], read.relations, seed)
                    scores += [(read.label, name, seed, of, *value) for of, value in found.items()]
    head = ("editor", "matrix", "seed", "of", "silhouette", "edits", "relations")
    shape = len({row[1] for row in points}), len(reads)
    return Drawing(
        "relations", ("editor", "matrix", "relation", "confidence", "x", "y"), tuple(points),
        lambda figure: _paint(figure, points, scores),
        (2.6 * shape[0] + 1.9, 2.6 * shape[1] + 0.4),
        (Numbers("silhouette", head, tuple(scores)),),
    )  # fmt: skip


def _need_sklearn() -> None:
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise MissingExtra("planes of latents", "scikit-learn", "report")


def looked_into(cells: Sequence[Cell], limit: int | None) -> Iterator[Reopened]:
    """Yield the runs whose editors can be looked into, reopened.

    Raises:
        RunError: If there is none.
    """
    from errata.editors import editors
    from errata.editors.base_inside import InsideEditor

    known = [
        cell
        for cell in cells
        if cell.editor in editors and issubclass(editors.load(cell.editor), InsideEditor)
    ]
    if not known:
        raise RunError("no run is of an editor with latents and gates (ibke)", MADE)
    yield from reopened(known, limit)


def _read(run: Reopened) -> _Read:
    chosen = _chosen(run)
    edits = [case.edits[0] for case, _ in chosen]
    insides = cast("InsideEditor", run.editor).insides(run.lm, edits)
    names = {path: f"block {name}" for name, path in blocks_of(run)}
    return _Read(
        run.cell.label,
        tuple(relation for _, relation in chosen),
        tuple(_confidence(run, edits)),
        {
            names[path]: (inside.latents.flatten(1).cpu().numpy(), inside.seen.cpu().numpy())
            for path, inside in insides.items()
        },
    )


def blocks_of(run: Reopened) -> list[tuple[str, str]]:
    """Return a name and the path of each edited matrix."""
    sites = cast("InsideEditor", run.editor).sites(run.lm)
    several = Counter(layer for layer, _ in sites)
    return [
        (
            f"{layer}" if several[layer] == 1 else f"{layer} {site.path.rpartition('.')[2]}",
            site.path,
        )
        for layer, site in sites
    ]


def _chosen(run: Reopened) -> list[tuple[Case, str]]:
    """Return the cases of the most frequent relations, and the relation of each."""
    found = [(case, relation_of(case)) for case in run.cases]
    if any(relation is None for _, relation in found):
        raise RunError(
            f"{run.cell.run.path} lacks the relation of its edits (meta.relation)",
            "Relations are those of world, uniedit and CounterFact in its nested form.",
        )
    counts = Counter(relation for _, relation in found)
    most = [r for r, count in counts.most_common(RELATIONS) if count >= FEWEST]
    if len(most) < 2:
        raise RunError(
            f"{run.cell.run.path} has no two relations with {FEWEST} edits each",
            "Evaluate more cases: errata eval without --limit.",
        )
    return [(case, str(relation)) for case, relation in found if relation in most]


def relation_of(case: Case) -> str | None:
    """Return the relation of a case's edit, as far as its data set tells."""
    found = case.meta.get("relation") or case.meta.get("relation_id")
    return None if found is None else str(found)


def _confidence(run: Reopened, edits: Sequence[Edit]) -> list[float]:
    from errata.evaluation.scoring import Scorer

    patches = run.editor.edit(run.lm, [[edit] for edit in edits])
    scores = Scorer(run.lm).score([run.lm.row_of(edit) for edit in edits], patches)
    return [sum(map(math.exp, s.logprobs)) / len(s.logprobs) for s in scores]


# ---------------------------------------------------------------------- numbers


def _reduced(values: Any) -> Any:
    made = import_module("sklearn.decomposition").PCA(
        min(COMPONENTS, *values.shape), svd_solver="full"
    )
    return made.fit_transform(values.astype("float64"))


def _plane(values: Any, seed: int) -> Any:
    made = import_module("sklearn.manifold").TSNE(
        2,
        perplexity=min(PERPLEXITY, (len(values) - 1) / 3),
        init="pca",
        random_state=seed,
        n_jobs=1,
    )
    return made.fit_transform(_reduced(values))


def _silhouettes(
    latents: Any, signals: Any, plane: Any, relations: Sequence[str], seed: int
) -> dict[str, tuple[float, int, int]]:
    """Return silhouettes by relation, on equally many edits of each, drawn by the seed."""
    import numpy as np

    silhouette_score = import_module("sklearn.metrics").silhouette_score
    generator = np.random.default_rng(seed)
    names = sorted(set(relations))
    labels = np.array([names.index(r) for r in relations])
    each = min(int((labels == n).sum()) for n in range(len(names)))
    drawn = np.concatenate(
        [generator.permutation((labels == n).nonzero()[0])[:each] for n in range(len(names))]
    )
    own = labels[drawn]
    shuffled = generator.permutation(own)
    return {
        of: (float(silhouette_score(values[drawn], given)), len(drawn), len(names))
        for of, values, given in (
            ("latents", latents, own),
            ("signals", signals, own),
            ("plane", plane, own),
            ("latents, relations shuffled", latents, shuffled),
        )
    }


# ---------------------------------------------------------------------- picture


def lighter(colour: str, sure: float) -> tuple[float, float, float]:
    """Return a colour, the nearer to white the less sure."""
    from matplotlib.colors import to_rgb

    share = FAINTEST * (1 - min(1.0, max(0.0, sure)))
    red, green, blue = (own + (1 - own) * share for own in to_rgb(colour))
    return red, green, blue


def _paint(
    figure: Figure, points: Sequence[tuple[Any, ...]], scores: Sequence[tuple[Any, ...]]
) -> None:
    labels = list(dict.fromkeys(row[0] for row in points))
    matrices = list(dict.fromkeys(row[1] for row in points))
    relations = sorted({row[2] for row in points})
    for line, label in enumerate(labels):
        for column, matrix in enumerate(matrices):
            axes = figure.add_subplot(len(labels), len(matrices), line * len(matrices) + column + 1)
            for number, relation in enumerate(relations):
                own = [row for row in points if row[:3] == (label, matrix, relation)]
                colour = COLOURS[number % len(COLOURS)]
                axes.scatter(
                    [row[4] for row in own], [row[5] for row in own], s=14, linewidths=0.3,
                    c=[lighter(colour, row[3]) for row in own], edgecolors=colour,
                    marker=MARKERS[number % len(MARKERS)],
                )  # fmt: skip
            found = [s[4] for s in scores if s[:2] == (label, matrix) and s[3] == "latents"]
            axes.set_title(f"{matrix} · s = {sum(found) / len(found):.2f}", fontsize=9)
            axes.set(xticks=[], yticks=[])
            if not column:
                axes.set_ylabel(label, fontsize=9)
    _key(figure, relations)


def _key(figure: Figure, relations: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[n % len(MARKERS)], markersize=5,
               color=COLOURS[n % len(COLOURS)], label=relation)
        for n, relation in enumerate(relations)
    ]  # fmt: skip
    handles += [
        Line2D([], [], linestyle="", marker="o", markersize=6, markeredgecolor="black",
               markerfacecolor=lighter("black", sure), label=f"confidence {sure:.0%}")
        for sure in (1.0, 0.5, 0.0)
    ]  # fmt: skip
    figure.legend(handles=handles, fontsize=8, loc="outside right center", frameon=False)
