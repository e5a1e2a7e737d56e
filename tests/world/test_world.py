"""The world is the same everywhere, large enough, and keeps its promises about the text."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from errata import world as ew
from errata.errors import ConfigError
from errata.world import facts as real
from errata.world import schema, templates
from errata.world import statements as text

PRINT_DIGEST = """
import hashlib
from errata import world as ew
w = ew.build_world({scale!r}, {seed})
parts = [repr(w.facts), repr(list(w.entities.values())), repr(ew.texts(w, 300)),
         repr(ew.benchmark(w, "test")), repr(sorted(map(repr, w.unstated_hops)))]
print(hashlib.sha256("".join(parts).encode()).hexdigest())
"""


def digest(scale: str, seed: int, hash_seed: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST.format(scale=scale, seed=seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_the_world_depends_on_scale_and_seed_only() -> None:
    assert digest("pocket", 0, "1") == digest("pocket", 0, "2")
    assert digest("test", 0, "1") != digest("test", 1, "1")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, errata.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_scale_is_a_user_error() -> None:
    with pytest.raises(ConfigError, match="unknown scale 'huge'"):
        ew.build_world("huge")


def test_the_world_is_large_enough(pocket_world: ew.World) -> None:
    domains = {entity.domain for entity in pocket_world.entities.values()}
    relations = pocket_world.relations.values()
    assert len(domains) >= 8
    assert len(relations) >= 30
    assert sum(relation.inverse for relation in relations) >= 10
    assert any(not relation.single_value for relation in relations)
    assert any(relation.datatype == "quantity" for relation in relations)
    train = [f for f in pocket_world.facts if pocket_world.split_of[f.head] == "train"]
    assert len(train) >= 4000
    assert all(len(r.templates) >= 8 and len(r.heldout) >= 3 for r in relations)


def test_objects_come_from_large_types_and_share_few_tokens(pocket_world: ew.World) -> None:
    for relation in pocket_world.relations.values():
        labels = [entity.label for entity in pocket_world.by_type[relation.tail_type]]
        assert len(labels) >= 40, relation.label
        first = Counter(label.split()[0] for label in labels if not label.startswith("The "))
        # Two objects of a type drawn at random seldom begin with the same word.
        same = sum(n * (n - 1) for n in first.values()) / (len(labels) * (len(labels) - 1))
        assert same < 0.05, relation.label


def test_labels_and_aliases_name_one_entity_of_a_type(pocket_world: ew.World) -> None:
    seen: set[tuple[str, str]] = set()
    for entity in pocket_world.entities.values():
        for name in (entity.label, *entity.aliases):
            assert (entity.type, name) not in seen
            seen.add((entity.type, name))


def test_facts_are_functions_and_one_to_one_where_they_say_so(
    pocket_world: ew.World, small_world: ew.World
) -> None:
    for world in (pocket_world, small_world):
        check_functions(world)


def check_functions(pocket_world: ew.World) -> None:
    keys = [(f.head, f.relation, f.order) for f in pocket_world.facts]
    assert len(keys) == len(set(keys))
    for relation in pocket_world.relations.values():
        facts = pocket_world.by_relation[relation.id]
        if relation.inverse:
            assert len({f.tail for f in facts}) == len(facts), relation.label
        if relation.single_value:
            assert {f.order for f in facts} == {0}


def test_real_entities_carry_only_facts_from_the_tables(pocket_world: ew.World) -> None:
    capitals = {row[0]: row[2] for row in real.COUNTRIES}
    capital = pocket_world.relation("capital").id
    stated = {
        pocket_world.entities[f.head].label: pocket_world.entities[f.tail].label
        for f in pocket_world.by_relation[capital]
        if pocket_world.entities[f.head].real
    }
    assert stated == capitals
    invented = {"leader", "mayor", "education", "mentor", "award", "publisher", "chief"}
    for fact in pocket_world.facts:
        if pocket_world.relations[fact.relation].spec.key in invented:
            assert not pocket_world.entities[fact.head].real


def test_splits_share_no_head_and_hold_out_whole_domains(pocket_world: ew.World) -> None:
    for head, split in pocket_world.split_of.items():
        held = pocket_world.entities[head].domain in schema.HELD_OUT_DOMAINS
        assert (split == "test_domains") == held
    for group in pocket_world.by_type.values():
        splits = {pocket_world.split_of[e.id] for e in group if e.id in pocket_world.split_of}
        assert splits in (set(), {"test_domains"}, {"train", "val", "test"})


def test_unstated_hops_are_never_in_the_text(small_world: ew.World) -> None:
    sentences = " ".join(ew.texts(small_world, 30_000))
    for hop in small_world.unstated_hops:
        start = small_world.entities[hop.first.tail if hop.back else hop.first.head]
        for name in (start.label, *start.aliases):
            inner = text.step(small_world, hop.first, name, hop.back)
            outer = text.step(small_world, hop.second, inner)
            assert f"{outer} " not in sentences.lower().replace(outer.lower(), outer), outer


def test_stated_hops_and_all_facts_are_in_the_text(small_world: ew.World) -> None:
    source = ew.Corpus(small_world)
    rounds = {kind: -(-len(pool) // text.MIX[kind]) for kind, pool in source._pools.items()}
    made = {source[n] for n in range(100 * rounds["direct"])}
    prompts = {(s.answer, s.prompt) for s in made}
    for fact in small_world.facts:
        head, tail = small_world.entities[fact.head], small_world.entities[fact.tail].label
        names = (head.label, *head.aliases)
        assert any(a == tail and any(n.lower() in p.lower() for n in names) for a, p in prompts)
    assert rounds["hop"] * text.MIX["hop"] >= len(small_world.hops) * 0.8


def test_held_out_templates_are_never_in_the_text(pocket_world: ew.World) -> None:
    sentences = "\n".join(ew.texts(pocket_world, 40_000)).lower()
    known = {t for r in pocket_world.relations.values() for t in r.templates}
    for relation in pocket_world.relations.values():
        assert not known & set(relation.heldout)
        for template in relation.heldout:
            # A held-out template reads like none of the text, whatever subject it is about.
            parts = map(re.escape, re.split(r"{.}", template.lower()))
            assert not re.search("[^.\\n]{1,60}".join(parts), sentences), template
    for held in (templates._REVERSE_HELD, templates._ALIAS_HELD, templates._NESTED_HELD):
        for template in held:
            parts = map(re.escape, re.split(r"{.}", template))
            assert not re.search("[^.\\n]{1,60}".join(parts), sentences), template


def test_statement_n_does_not_depend_on_what_was_read_before(small_world: ew.World) -> None:
    forward = [ew.Corpus(small_world)[n] for n in range(500)]
    source = ew.Corpus(small_world)
    backward = [source[n] for n in reversed(range(500))]
    assert forward == backward[::-1]
    assert forward == list(itertools.islice(ew.Corpus(small_world), 500))
    sentences = list(itertools.islice(ew.corpus(small_world), 500))
    assert sentences == [statement.text for statement in forward]
    assert sentences[:20] == ew.texts(small_world, 20)


def test_every_class_of_statement_is_balanced(small_world: ew.World) -> None:
    corpus = ew.Corpus(small_world)
    answers = Counter(corpus[n].answer for n in range(6000))
    assert 0.8 < answers["Yes"] / answers["No"] < 1.25
    assert len(ew.texts(small_world, 10)) == 10
    assert ew.texts(small_world, 50, seed=1) != ew.texts(small_world, 50, seed=2)
    assert all(sentence.endswith(".") for sentence in ew.texts(small_world, 50))
