"""Metrics on hand-made logits and values: nothing here runs a model."""

from __future__ import annotations

import math

import pytest
import torch

from errata.evaluation.metrics import (
    harmonic_mean,
    hits,
    margin,
    mean,
    mean_nll,
    prefers,
)
from errata.model.logprobs import score_logits


def ranked(order: list[int], vocabulary: int = 12) -> torch.Tensor:
    """Logits under which the tokens of `order` are most probable, in that order."""
    logits = torch.full((vocabulary,), -5.0, dtype=torch.float64)
    for place, token in enumerate(order):
        logits[token] = 5.0 - place
    return logits


ORDER = [7, 3, 11, 0, 5, 9, 1]


@pytest.mark.parametrize(("place", "hit"), [(0, 1), (4, 1), (5, 0)])
def test_fifth_place_is_a_hit_and_sixth_a_miss(place, hit):
    logprobs, _, ranks = score_logits(ranked(ORDER)[None], torch.tensor([ORDER[place]]))
    assert ranks == [place]
    assert hits(ranks, logprobs, 5) == [hit]
    assert hits(ranks, logprobs, 1) == [int(place == 0)]


def test_a_metric_is_the_fraction_of_tokens():
    logits = torch.stack([ranked(ORDER)] * 4)
    labels = torch.tensor([ORDER[0], ORDER[4], ORDER[5], ORDER[2]])
    logprobs, argmax, ranks = score_logits(logits, labels)
    assert argmax == [ORDER[0]] * 4
    assert mean(hits(ranks, logprobs, 5)) == 0.75
    assert mean(hits(ranks, logprobs, 1)) == 0.25


def test_every_token_is_a_hit_when_the_whole_vocabulary_counts():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 12, generator=generator)
    logprobs, _, ranks = score_logits(logits, torch.randint(12, (6,), generator=generator))
    assert all(hits(ranks, logprobs, 12))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_destroyed_model_hits_nothing(bad):
    logits = torch.full((3, 12), bad)
    logprobs, _, ranks = score_logits(logits, torch.tensor([0, 5, 11]))
    assert hits(ranks, logprobs, 12) == [0, 0, 0]
    assert mean_nll(logprobs) is None


def test_a_label_of_nan_is_a_miss_whatever_its_rank():
    """Nothing compares greater than NaN, so that a rank that was counted may well be 0."""
    assert hits([0, 0, 3], [math.nan, -0.1, math.nan], 5) == [0, 1, 0]


def test_mean_nll_is_normalised_by_length():
    assert mean_nll([math.log(0.5), math.log(0.125)]) == pytest.approx(2 * math.log(2))
    assert mean_nll([-math.inf, -1.0]) is None


def test_comparisons_and_magnitudes():
    assert prefers(1.0, 2.0) == 1
    assert prefers(2.0, 1.0) == 0
    assert prefers(1.0, 1.0) == 0
    assert prefers(None, None) == 0
    assert prefers(1.0, None) == 0
    assert margin(math.log(2), math.log(4)) == pytest.approx(0.25)
    assert margin(math.log(4), math.log(2)) == pytest.approx(-0.25)
    assert margin(None, math.log(2)) == pytest.approx(-0.5)


def test_harmonic_mean():
    assert harmonic_mean([0.5, 1.0, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.9, 0.0, 0.9]) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        harmonic_mean([])
