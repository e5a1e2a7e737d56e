"""Consistency: whether sampled text fits what is written about the new object (RS of CounterFact).

The cosine of TF-IDF vectors of all sampled texts of a case and of reference texts: texts about
other subjects for which the same relation has the new object (Meng et al. 2022,
https://arxiv.org/abs/2202.05262; tables show it times 100). The vectors are those of
scikit-learn's `TfidfVectorizer` with its defaults, fitted on all reference texts in use.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from errata.errors import DataError
from errata.untrusted import read_json

if TYPE_CHECKING:
    from errata.case import Case

_TERM = re.compile(r"\b\w\w+\b")
SENTENCES = 20
"""Most sentences of the built-in world that serve as reference of one case."""


class TfIdf:
    """Term frequency times inverse document frequency, `ln((1 + n) / (1 + df)) + 1`.

    Args:
        documents: What the frequencies of documents are counted on; other terms do not count.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        found: Counter[str] = Counter()
        n = 0
        for document in documents:
            n += 1
            found.update(set(_terms(document)))
        self.idf = {term: math.log((1 + n) / (1 + df)) + 1 for term, df in found.items()}

    def vector(self, text: str) -> dict[str, float]:
        """Return the weights of the terms of a text."""
        counts = Counter(term for term in _terms(text) if term in self.idf)
        return {term: count * self.idf[term] for term, count in counts.items()}

    def cosine(self, left: str, right: str) -> float:
        """Return the cosine of two texts; 0 if one of them holds no known term."""
        a, b = self.vector(left), self.vector(right)
        norms = [math.sqrt(math.fsum(x * x for x in v.values())) for v in (a, b)]
        if 0.0 in norms:
            return 0.0
        product = math.fsum(weight * b[term] for term, weight in a.items() if term in b)
        return product / (norms[0] * norms[1])


def _terms(text: str) -> list[str]:
    return _TERM.findall(text.lower())


class References:
    """Reference texts of cases, and the vectors to compare with them.

    Args:
        cases: The cases.
        source: A file in the form of ROME's `attribute_snippets.json`: a list of objects with
            `relation_id`, `target_id` and `samples`, each with a `text`. Without it, the built-in
            world's own sentences (`world`), or what a case brings: its `attribute_prompts`, each
            completed by the new object.
        world: Whether the cases are the built-in world's.

    Raises:
        DataError: If the file cannot be read.
    """

    def __init__(
        self, cases: Sequence[Case], source: str | Path | None = None, *, world: bool = False
    ) -> None:
        snippets = None if source is None else read_snippets(Path(source).expanduser())
        self.texts: dict[str, tuple[str, ...]] = {}
        for case in cases:
            if snippets is not None:
                key = (case.meta.get("relation_id"), case.meta.get("target_new.id"))
                self.texts[case.id] = snippets.get(key, ())
            elif world:
                relation = str(case.meta.get("relation"))
                self.texts[case.id] = _sentences(relation, case.edits[0].target)
            else:
                target = case.edits[0].target
                prompts = case.meta.get("attribute_prompts") or ()
                self.texts[case.id] = tuple(f"{prompt} {target}." for prompt in prompts)
        used = self.texts.values() if snippets is None else snippets.values()
        self.tfidf = TfIdf(text for texts in used for text in texts)

    def consistency(self, case: str, sampled: Sequence[str]) -> float | None:
        """Return the cosine of a case's sampled texts with its reference; None without one."""
        texts = self.texts.get(case)
        return self.tfidf.cosine(" ".join(sampled), " ".join(texts)) if texts else None


def read_snippets(path: Path) -> Mapping[tuple[str | None, str | None], tuple[str, ...]]:
    """Read a file in the form of ROME's `attribute_snippets.json`.

    Raises:
        DataError: If it is missing or of another form.
    """
    try:
        entries = read_json(path)
        return {
            (entry["relation_id"], entry["target_id"]): tuple(x["text"] for x in entry["samples"])
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as reference texts: {error!r}",
            "Expected a list of objects with relation_id, target_id and samples, each with text "
            "(ROME's attribute_snippets.json).",
        ) from None


@cache
def _world_sentences() -> dict[tuple[str, str], tuple[str, ...]]:
    from errata.world import build_world
    from errata.world.statements import direct

    world = build_world()
    found: dict[tuple[str, str], list[str]] = {}
    for number, fact in enumerate(world.facts):
        key = (world.relations[fact.relation].id, world.entities[fact.tail].label)
        own = found.setdefault(key, [])
        if len(own) < SENTENCES:
            own.append(direct(world, fact, random.Random(f"reference/{number}")).text)
    return {key: tuple(texts) for key, texts in found.items()}


def _sentences(relation: str, target: str) -> tuple[str, ...]:
    """Return sentences of the world's text that state a relation with that object."""
    return _world_sentences().get((relation, target), ())
