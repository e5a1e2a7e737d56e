"""Names for invented entities.

Two kinds are needed. Objects that answer a question in one word (cities, rivers, minerals) get a
word of their own. Everything else is named by a pair of words from a grid ("Kelvar Systems",
"Mira Dovansen"), where each word serves several entities of the type and, for the shared stems,
of other types as well: no single word identifies a subject, so a model has to combine the words
before it can recall anything, as it must with real names.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

_ONSETS = "b br d dr f fl g gr h j k kl l m n p pr r s st t tr v w z".split()
_VOWELS = "a e i o u".split()
_CODAS = "l m n r s lk nd rn st th v x".split()

ENDINGS: dict[str, tuple[str, ...]] = {
    "country": ("ia", "land", "stan", "ora"),
    "city": ("ford", "mouth", "stad", "polis", "burg", "haven"),
    "river": ("a", "eno", "issa", "une"),
    "sea": ("ara", "ean", "oth"),
    "first": ("a", "en", "is", "ie", "o"),
    "last": ("son", "ov", "ini", "sen", "ard", "wick"),
    "stem": ("ar", "ex", "on", "us", "ica"),
    "drug": ("amine", "ol", "ix", "cillin"),
    "mineral": ("ite", "ine"),
    "genus": ("ops", "ura", "idia"),
    "epithet": ("ensis", "atus", "ella"),
}

ADJECTIVES = """Amber Ancient Bitter Blind Broken Burning Careless Crimson Crooked Distant Drowned
Empty Fallen Final Forgotten Frozen Gentle Gilded Golden Hidden Hollow Hungry Idle Invisible Ivory
Lonely Marble Midnight Narrow Patient Quiet Restless Scarlet Secret Silent Sleeping Stolen Tender
Velvet Wandering Wounded""".split()
NOUNS = """Archive Beacon Bell Candle Carousel Clockmaker Compass Corridor Country Daughter Falcon
Ferry Garden Gardener Harbor Heron Inheritance Island Lantern Ledger Letter Lighthouse Map Mirror
Orchard Passenger Pilgrim Promise Rain River Season Shadow Shore Stranger Tailor Teacher Tower
Traveler Window Winter Witness""".split()
SCENES = """Dawn Dusk Rest Work Prayer Sunset Sea Harvest Noon Play Supper Market War Church
School Night""".split()
FORMS = """Sonata Nocturne Overture Cantata Quartet Suite Concerto Prelude Waltz Serenade Ballade
Mass Rondo Fugue""".split()
FIRMS = "Systems Works Motors Foods Labs Holdings Energy Textiles Media Marine".split()
MODELS = "Nova Prime Ultra Lite Classic Turbo Mini Max Plus Sport Vista Edge".split()
SCHOOLS = "University College Institute Academy Polytechnic".split()
AILMENTS = "fever syndrome palsy rash anemia colic dystrophy sclerosis".split()
GREEK = """Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda Sigma Tau
Omega""".split()
ORDINALS = "Prima Secunda Tertia Quarta Quinta Major Minor Media".split()
MASCOTS = """Tigers Wolves Hawks Bears Sharks Rovers Rangers Knights Pirates Comets Giants Eagles
Stallions Vikings""".split()
ARENAS = "Arena Stadium Dome Ground Bowl Coliseum".split()
APPS = "Studio Desk Flow Forge Pad Base Shell Board Stack Vault".split()
SPANS = "Bridge Viaduct Tunnel Aqueduct Dam Causeway".split()
GALLERIES = "Museum Gallery Hall Collection".split()
PRIZES = "Prize Medal Award Fellowship".split()
NICK_FIRST = """Old Young Iron Little Great Black White Red Grey Brave Wise Swift Lucky Royal Holy
Merry Noble Proud Sweet Wild Lost Bright Dark Deep High Last Long Lone Lucid Mighty""".split()
NICK_LAST = """Duke Fox Crown Lion Raven Star Rose Oak Thorn Arrow Wave Storm Hammer Sparrow Tide
Flame Ember Willow Anvil Badger Clover Dagger Feather Granite Jester Kettle Ladder Meadow Needle
Oyster Pebble Quarry Ribbon Saddle Thistle Urchin Violet Walnut Yarrow Zephyr""".split()

CONSTELLATIONS = """Andromeda Antlia Apus Aquarius Ara Aries Caelum Camelopardalis Cancer
Capricornus Cassiopeia Centaurus Cepheus Cetus Circinus Columba Corvus Crater Crux Delphinus
Dorado Draco Equuleus Fornax Grus Hercules Hydra Hydrus Indus Lacerta Lepus Libra Lupus Lynx
Microscopium Monoceros Musca Norma Octans Ophiuchus Pavo Pegasus Phoenix Pictor Pisces Puppis
Pyxis Reticulum Sagitta Sagittarius Sculptor Scutum Serpens Sextans Triangulum Tucana
Vulpecula""".split()
INSTRUMENTS = """accordion bagpipe banjo bassoon bugle celesta cello clarinet clavichord cornet
cymbal dulcimer euphonium fiddle flute glockenspiel guitar harmonica harp harpsichord horn lute
lyre mandolin marimba oboe ocarina organ piano piccolo recorder sitar tambourine timpani trombone
trumpet tuba ukulele viola violin xylophone zither""".split()
ORGANS = """ankle artery bladder brain colon cornea diaphragm ear elbow eye femur finger gallbladder
gum heart hip jaw kidney knee larynx liver lung muscle nerve nose ovary pancreas pelvis retina rib
shoulder skin skull spine spleen stomach thyroid tongue tooth vein wrist""".split()
LANGUAGES_OF_CODE = """Ada Algol Basic Ceylon Clojure Cobol Crystal Dart Eiffel Elixir Elm Erlang
Factor Forth Fortran Groovy Haskell Haxe Idris Java Julia Kotlin Lisp Logo Lua Nim Oberon Ocaml
Pascal Perl Pike Prolog Python Racket Ruby Rust Scala Scheme Simula Smalltalk Swift Tcl
Zig""".split()
FIELDS = """acoustics algebra anatomy anthropology archaeology botany calculus cartography ceramics
criminology cryptography demography dentistry ecology economics electronics embryology ethics
etymology forestry genetics geometry grammar heraldry hydrology immunology journalism linguistics
logic mechanics metallurgy meteorology mycology navigation neurology nutrition oceanography optics
ornithology pathology pharmacy phonetics physics psychology rhetoric robotics statistics surgery
theology topology toxicology virology zoology""".split()
INDUSTRIES = """advertising agriculture aerospace automation aviation banking biotechnology brewing
catering cement coal construction cosmetics dairy fashion film fishing furniture gaming glass
hospitality insurance jewelry leather logistics lumber mining oil packaging paper plastics printing
publishing railways recycling retail rubber salt shipbuilding steel sugar telecoms tobacco tourism
toys wine""".split()


def words(rng: random.Random, style: str, count: int, taken: set[str]) -> list[str]:
    """Invents distinct words that end the way the style's words do.

    Args:
        rng: Source of randomness.
        style: A key of ENDINGS.
        count: How many words to invent.
        taken: Lower-case words already in use; the new ones are added.

    Returns:
        Capitalised words, in the order they were invented.
    """
    endings = ENDINGS[style]
    made: list[str] = []
    while len(made) < count:
        stem = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        word = stem + rng.choice(endings)
        if word in taken:
            continue
        taken.add(word)
        made.append(word.capitalize())
    return made


def grid(
    rng: random.Random,
    firsts: Sequence[str],
    lasts: Sequence[str],
    count: int,
    joint: str = "{} {}",
) -> list[str]:
    """Pairs words so that each first and each last word serves about equally many names.

    Args:
        rng: Source of randomness.
        firsts: First words.
        lasts: Last words.
        count: Number of names, at most len(firsts) * len(lasts).
        joint: How the two words are joined.

    Returns:
        Distinct names.
    """
    used: set[tuple[str, str]] = set()
    names: list[str] = []
    left: list[str] = []
    right: list[str] = []
    while len(names) < count:
        left = left or rng.sample(firsts, len(firsts))
        right = right or rng.sample(lasts, len(lasts))
        pair = (left.pop(), right.pop())
        if pair in used:
            continue
        used.add(pair)
        names.append(joint.format(*pair))
    return names


def lowered(entries: Iterable[str]) -> set[str]:
    """Returns every lower-case word that occurs in the given names."""
    return {word.lower() for entry in entries for word in entry.split()}
