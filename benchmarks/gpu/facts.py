"""Facts, questions and ordinary text for models of the real world, written here: no file is needed.

Fifty countries in the manner of CounterFact: one edit, rephrasings, and questions about others.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Norway": "Oslo",
    "Portugal": "Lisbon", "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Ireland": "Dublin", "Hungary": "Budapest",
    "Romania": "Bucharest", "Bulgaria": "Sofia", "Croatia": "Zagreb", "Serbia": "Belgrade",
    "Denmark": "Copenhagen", "Belgium": "Brussels", "Russia": "Moscow", "Ukraine": "Kyiv",
    "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra", "Japan": "Tokyo",
    "China": "Beijing", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Nepal": "Kathmandu",
    "Iran": "Tehran", "Iraq": "Baghdad", "Syria": "Damascus", "Lebanon": "Beirut", "Peru": "Lima",
    "Chile": "Santiago", "Cuba": "Havana", "Jamaica": "Kingston", "Colombia": "Bogota",
    "Ecuador": "Quito", "Venezuela": "Caracas", "Uruguay": "Montevideo", "Canada": "Ottawa",
    "Australia": "Canberra", "Mongolia": "Ulaanbaatar", "Qatar": "Doha", "Latvia": "Riga",
    "Estonia": "Tallinn", "Morocco": "Rabat", "Senegal": "Dakar",
}  # fmt: skip

SENTENCES = (
    "{c} is a country whose capital, {t}, lies on an old road between the coast and the hills.",
    "In {t} the museums are open from nine to five, and most visitors to {c} see them first.",
    "The government of {c} meets in {t}; its members come from every part of the country.",
    "A train leaves {t} every morning and reaches the border of {c} late in the afternoon.",
    "She studied law in {t}, worked as a teacher, and later wrote three books about {c}.",
    "The harvest in {c} was better than the year before, the newspapers of {t} reported.",
)


def cases(count: int) -> list[Any]:
    """Return records: every country is moved to the capital of another one."""
    from errata import Case, Edit, Probe

    names = list(CAPITALS)
    made = []
    for at, name in enumerate(names[:count]):
        target = CAPITALS[names[(at + 17) % len(names)]]
        near = [names[(at + step) % len(names)] for step in (1, 2, 3)]
        edit = Edit(f"The capital of {name} is", target, name, CAPITALS[name])
        asked = (
            Probe(f"The capital city of {name} is", target, "generality", "rephrase"),
            Probe(f"The seat of government of {name} is", target, "generality", "rephrase"),
            *(Probe(f"The capital of {n} is", CAPITALS[n], "locality", "near") for n in near),
        )
        made.append(Case(name, (edit,), asked))
    return made


def text_file(folder: Path, documents: int) -> Path:
    """Write ordinary text to count moments on: documents of six sentences, about 110 words."""
    draw = random.Random(0)
    names = list(CAPITALS)
    path = folder / f"text-{documents}.json"
    texts = []
    for _ in range(documents):
        parts = draw.sample(SENTENCES, len(SENTENCES))
        chosen = [draw.choice(names) for _ in parts]
        texts.append(
            " ".join(part.format(c=c, t=CAPITALS[c]) for part, c in zip(parts, chosen, strict=True))
        )
    path.write_text(json.dumps(texts))
    return path
