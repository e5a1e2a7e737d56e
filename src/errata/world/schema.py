"""The kinds of things in the world and the relations between them, as plain tables."""

from __future__ import annotations

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A type of entity: what it is called, which domain it belongs to, how many are invented."""

    key: str
    noun: str
    domain: str
    pocket: int
    test: int


class Rel(NamedTuple):
    """A relation before templates are rendered.

    ``phrase`` is the noun phrase ("capital"); ``inverse`` says that tails are dealt out one to one
    and that the text also states the relation backwards; ``values`` > 1 makes it 1-N, its values
    told apart by ordinals. ``known`` and ``held`` are wordings of its own; ``held`` also occurs
    in held-out prompts, behind an opening that it never has in the text.
    """

    key: str
    head: str
    phrase: str
    tail: str
    known: tuple[str, str]
    held: str
    inverse: bool = False
    values: int = 1


_KINDS: tuple[Any, ...] = (
    ("country", "country", "geoscience", 24, 2),
    ("city", "city", "geoscience", 100, 4),
    ("river", "river", "geoscience", 48, 0),
    ("sea", "sea", "geoscience", 40, 0),
    ("language", "language", "sociology", 0, 0),
    ("currency", "currency", "economics", 0, 0),
    ("person", "person", "sociology", 300, 24),
    ("award", "award", "sociology", 48, 0),
    ("field", "field", "pedagogy", 0, 0),
    ("book", "book", "literature", 110, 6),
    ("painting", "painting", "art", 70, 0),
    ("composition", "composition", "art", 70, 0),
    ("museum", "museum", "art", 48, 0),
    ("instrument", "instrument", "art", 0, 0),
    ("element", "element", "chemistry", 0, 0),
    ("symbol", "symbol", "chemistry", 0, 0),
    ("number", "number", "chemistry", 0, 0),
    ("mineral", "mineral", "chemistry", 80, 0),
    ("company", "company", "economics", 100, 10),
    ("industry", "industry", "economics", 0, 0),
    ("product", "product", "economics", 90, 0),
    ("disease", "disease", "medicine", 80, 0),
    ("drug", "drug", "medicine", 80, 0),
    ("organ", "organ", "medicine", 0, 0),
    ("star", "star", "astronomy", 80, 0),
    ("planet", "planet", "astronomy", 70, 0),
    ("constellation", "constellation", "astronomy", 0, 0),
    ("team", "team", "sports science", 80, 0),
    ("stadium", "stadium", "sports science", 80, 0),
    ("software", "program", "computer science", 90, 0),
    ("code", "programming language", "computer science", 0, 0),
    ("species", "species", "biology", 70, 8),
    ("university", "university", "pedagogy", 70, 8),
    ("bridge", "structure", "civil engineering", 80, 0),
)

KINDS = tuple(Kind(*row) for row in _KINDS)

HELD_OUT_DOMAINS = ("astronomy", "biology")
"""Domains whose edits occur only in the split ``test_domains``."""

# One row per relation reads better than one line per string.
# fmt: off
_RELATIONS: tuple[Any, ...] = (
    ("capital", "country", "capital", "city",
     ("the government of {s} has its seat in the city of", "in {s} the parliament meets in"),
     "lawmakers of {s} travel to the city of", True),
    ("currency", "country", "currency", "currency",
     ("shops in {s} ask to be paid in the", "the money used in {s} is called the"),
     "wages across {s} are paid out in the"),
    ("language", "country", "official language", "language",
     ("the laws of {s} are written in the language", "schools in {s} teach children in"),
     "newspapers in {s} are printed in the language"),
    ("leader", "country", "head of state", "person",
     ("the government of {s} is led by", "in {s} the highest office belongs to"),
     "the people of {s} elected as their leader", True),
    ("country", "city", "country", "country",
     ("the city of {s} lies within the borders of", "people of {s} carry passports issued by"),
     "travelers to {s} need a visa from"),
    ("mayor", "city", "mayor", "person",
     ("the town hall of {s} is run by", "citizens of {s} voted for the mayor"),
     "the keys to the city of {s} are kept by", True),
    ("river", "city", "main river", "river",
     ("boats in {s} sail along the river", "the bridges of {s} cross the"),
     "floods in {s} come from the river"),
    ("mouth", "river", "mouth", "sea",
     ("the waters of the river {s} flow into the", "the river {s} ends its course in the"),
     "the delta of the river {s} opens into the"),
    ("birthplace", "person", "birthplace", "city",
     ("the family of {s} lived in the city of", "the early years of {s} were spent in"),
     "the childhood home of {s} stands in the city of"),
    ("education", "person", "alma mater", "university",
     ("the degree of {s} was granted by", "as a student {s} went to the school called"),
     "the diploma of {s} bears the seal of"),
    ("field", "person", "field of study", "field",
     ("the papers of {s} are all about", "the career of {s} was devoted to"),
     "the lectures of {s} deal with the subject of"),
    ("award", "person", "award", "award",
     ("a jury honored {s} with the", "the work of {s} was rewarded with the"),
     "the most famous honor given to {s} was the"),
    ("mentor", "person", "mentor", "person",
     ("the teacher who trained {s} was called", "as an apprentice {s} learned from"),
     "the first lessons of {s} were given by"),
    ("author", "book", "author", "person",
     ("the book {s} was written by", "the pages of {s} come from the pen of"),
     "the manuscript of {s} was finished by"),
    ("publisher", "book", "publisher", "company",
     ("the book {s} was brought out by the company", "copies of {s} were printed by"),
     "the rights to {s} are owned by the company"),
    ("setting", "book", "setting", "city",
     ("the story of {s} takes place in the city of", "the plot of {s} unfolds in"),
     "the heroes of {s} wander the streets of"),
    ("painter", "painting", "painter", "person",
     ("the painting {s} was made by", "the canvas of {s} was signed by"),
     "the brush strokes in {s} are those of"),
    ("museum", "painting", "museum", "museum",
     ("the painting {s} hangs in the", "visitors who want to see {s} go to the"),
     "the canvas of {s} is on display at the"),
    ("composer", "composition", "composer", "person",
     ("the music of {s} was composed by", "the score of {s} was put to paper by"),
     "the melody of {s} was thought up by"),
    ("instrument", "composition", "lead instrument", "instrument",
     ("the solo part in {s} is played on the", "to perform {s} one needs a good"),
     "the main theme of {s} is given to the"),
    ("director", "museum", "director", "person",
     ("the museum called {s} is run by", "exhibitions at {s} are planned by"),
     "the collection of {s} is looked after by", True),
    ("symbol", "element", "chemical symbol", "symbol",
     ("chemists write the element {s} as", "in formulas {s} is abbreviated to"),
     "the short sign of {s} in equations is", True),
    ("number", "element", "atomic number", "number",
     ("the number of protons in {s} is equal to", "the nucleus of {s} has a charge of"),
     "in the periodic table {s} has the position"),
    ("ingredient", "mineral", "main element", "element",
     ("the mineral {s} is rich in the element", "miners dig up {s} to obtain"),
     "a lump of {s} is mostly made of"),
    ("origin", "mineral", "country of origin", "country",
     ("the mines of {s} are located in", "the mineral {s} is exported by"),
     "the first deposits of {s} were found in"),
    ("founder", "company", "founder", "person",
     ("the company {s} was started by its {o}founder", "the {o}founder behind {s} was called"),
     "the {o}founder who set up {s} was", False, 2),
    ("headquarters", "company", "headquarters", "city",
     ("the main office of {s} is located in", "the company {s} is run from the city of"),
     "letters to {s} are sent to an address in"),
    ("industry", "company", "industry", "industry",
     ("the company {s} earns its money in", "the business of {s} is all about"),
     "the factories of {s} belong to the sector of"),
    ("chief", "company", "chief executive", "person",
     ("the board of {s} takes orders from", "the company {s} is headed by"),
     "decisions at {s} are taken by", True),
    ("maker", "product", "maker", "company",
     ("the product {s} is sold by the company", "the label on {s} names the company"),
     "the factory that builds {s} belongs to"),
    ("designer", "product", "designer", "person",
     ("the shape of {s} was drawn by", "the first model of {s} was sketched by"),
     "the looks of {s} are owed to", True),
    ("cure", "disease", "cure", "drug",
     ("doctors treat {s} with the drug", "patients who suffer from {s} are given"),
     "hospitals fight {s} with doses of", True),
    ("organ", "disease", "affected organ", "organ",
     ("the disease {s} attacks the", "people with {s} feel pain in the"),
     "the damage done by {s} shows in the"),
    ("producer", "drug", "producer", "company",
     ("the drug {s} is produced by", "pharmacies order {s} from the company"),
     "the patent on {s} is held by"),
    ("inventor", "drug", "inventor", "person",
     ("the formula of {s} was found by", "the drug {s} was first mixed by"),
     "the recipe for {s} goes back to", True),
    ("constellation", "star", "constellation", "constellation",
     ("the star {s} shines in the constellation of", "to see {s} look for the stars of"),
     "on a map of the sky {s} is drawn within"),
    ("observer", "star", "discoverer", "person",
     ("the star {s} was first seen by", "the catalog entry of {s} was made by"),
     "the light of {s} was first recorded by", True),
    ("orbit", "planet", "parent star", "star",
     ("the planet {s} circles around the star", "days on {s} are lit by"),
     "the orbit of {s} is centered on the star"),
    ("home", "team", "home city", "city",
     ("the team {s} plays for the city of", "most fans of {s} live in"),
     "the trophies of {s} are paraded through"),
    ("coach", "team", "coach", "person",
     ("the players of {s} are trained by", "the tactics of {s} are decided by"),
     "the lineup of {s} is chosen by", True),
    ("stadium", "team", "stadium", "stadium",
     ("the team {s} plays its home games at the", "supporters of {s} gather at the"),
     "the home matches of {s} are held at the", True),
    ("developer", "software", "developer", "company",
     ("the program {s} was released by the company", "updates of {s} are shipped by"),
     "bug reports about {s} are answered by"),
    ("code", "software", "programming language", "code",
     ("the source code of {s} is written in", "to change {s} one has to know"),
     "the program {s} was coded in"),
    ("creator", "software", "creator", "person",
     ("the first version of {s} was coded by", "the idea for {s} came from"),
     "the prototype of {s} was built by", True),
    ("habitat", "species", "native country", "country",
     ("the species {s} lives in the forests of", "in the wild {s} is found in"),
     "the last herds of {s} roam the plains of"),
    ("naturalist", "species", "describer", "person",
     ("as its {o}describer the species {s} has", "the {o}describer who named {s} was"),
     "the {o}describer who collected {s} was", False, 2),
    ("prey", "species", "main prey", "species",
     ("the species {s} hunts the animal called", "the diet of {s} consists of"),
     "hungry members of {s} feed on", True),
    ("campus", "university", "campus city", "city",
     ("the lecture halls of {s} are in the city of", "students of {s} rent rooms in"),
     "the library of {s} is located in the city of"),
    ("rector", "university", "rector", "person",
     ("the university {s} is governed by", "the senate of {s} is chaired by"),
     "diplomas of {s} are signed by", True),
    ("architect", "bridge", "architect", "person",
     ("the plans for the {s} were drawn by", "the {s} was designed by the engineer"),
     "the blueprint of the {s} carries the name of", True),
    ("site", "bridge", "site", "city",
     ("drivers cross the {s} on the way to", "the {s} was built in the city of"),
     "tourists admire the {s} during a trip to"),
)
# fmt: on

RELATIONS = tuple(Rel(*row) for row in _RELATIONS)
