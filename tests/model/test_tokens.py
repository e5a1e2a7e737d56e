"""Tokenisation rules: joint ids, supervised positions, subjects by offsets, right padding."""

from __future__ import annotations

import pytest
from tests.tiny_models import tiny_tokenizer

from errata.case import Case, Edit, Probe
from errata.errors import DataError, EditError, ModelError
from errata.model.tokens import (
    Row,
    bucket,
    encode_row,
    find_subject,
    make_batch,
    positions_of,
    share_rows,
)
from errata.spacing import PUBLISHED

TOKENIZER = tiny_tokenizer()
WITH_BOS = tiny_tokenizer(bos=True)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, WITH_BOS], ids=["plain", "bos"])
@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The capital of France is", "Rome"),
        ("What is it? The answer is: ", "New South Wales"),
        ("Naïve café 日本", "東京 {x}"),
        ("The capital is", " Rome"),
    ],
)
def test_labels_follow_the_prompt(tokenizer, prompt, target):
    row = encode_row(tokenizer, prompt, target, joiner=PUBLISHED)
    whole = tokenizer(f"{prompt} {target.strip()}")["input_ids"]
    assert row.ids + row.labels[-1:] == tuple(whole)
    assert row.prompt_length == len(tokenizer(prompt)["input_ids"])
    assert [whole[p + 1] for p in row.positions] == list(row.labels)
    assert tokenizer.decode(row.labels) == f" {target.strip()}"


def test_subject_is_found_by_offsets_behind_a_bos():
    plain = encode_row(TOKENIZER, "The capital of France is", "Rome", "France")
    shifted = encode_row(WITH_BOS, "The capital of France is", "Rome", "France")
    words = TOKENIZER.convert_ids_to_tokens(plain.ids)
    covered = "".join(words[plain.subject[0] : plain.subject[1] + 1])
    assert "France" in covered
    assert shifted.ids[0] == WITH_BOS.bos_token_id
    assert shifted.subject == (plain.subject[0] + 1, plain.subject[1] + 1)
    assert shifted.subject_last == shifted.subject[1]


def test_subject_is_searched_in_the_prompt_not_in_the_prefix():
    prefix = "France is large. "
    row = encode_row(TOKENIZER, "In France is", "Rome", "France", prefix=prefix)
    assert TOKENIZER.decode(row.ids[: row.subject_last + 1]) == "France is large. In France"


def test_whole_words_are_preferred_and_the_last_of_them_is_meant():
    prompt = "Arthur and Art and Art and Arthur"
    assert find_subject(prompt, "Art") == (19, 22)
    assert find_subject(prompt, "Art", "last") == find_subject(prompt, "Art", 2) == (19, 22)
    assert find_subject(prompt, "Art", "first") == find_subject(prompt, "Art", 1) == (11, 14)
    with pytest.raises(EditError, match=r"subject_at is 3: the subject 'Art' occurs 2 times"):
        find_subject(prompt, "Art", 3)
    row = encode_row(TOKENIZER, "In France France is", None, "France", subject_at="first")
    assert (
        row.subject_last < encode_row(TOKENIZER, "In France France is", None, "France").subject[0]
    )
    assert find_subject("Arthurs", "Art") == (0, 3)
    assert find_subject("a {x} b", "{x}") == (2, 5)


def test_absent_subject_is_named():
    with pytest.raises(EditError, match=r"'Spain' does not occur in the prompt 'The capital"):
        encode_row(TOKENIZER, "The capital of France is", "Rome", "Spain")


def test_too_long_prompt_is_refused():
    with pytest.raises(ModelError, match="the model's context holds 8"):
        encode_row(TOKENIZER, "word " * 50, "x", max_length=8)


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_empty_texts_are_refused(empty):
    with pytest.raises(DataError, match="target"):
        Edit("The capital of France is", empty)
    with pytest.raises(DataError, match="prompt"):
        Edit(empty, "Rome")
    with pytest.raises(DataError, match="probe target"):
        Probe("q", empty, "locality", "NQ")


@pytest.mark.parametrize("joiner", ["auto", "", " "])
def test_a_question_with_an_empty_answer_is_refused(joiner):
    with pytest.raises(EditError, match="the target of 'The capital' is empty"):
        encode_row(TOKENIZER, "The capital", "", joiner=joiner)


def test_a_case_needs_an_edit():
    with pytest.raises(DataError, match="no edit"):
        Case("7", ())


def test_batches_are_right_padded_with_explicit_positions():
    rows = [Row((5, 6, 7), (2,), (1,), 3), Row((8,), (0,), (2,), 1)]
    batch = make_batch(rows, [0, 1], pad=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert positions_of(rows, [1, 0]).tolist() == [[0, 0], [1, 2]]


def test_buckets_keep_the_budget_and_lose_nothing():
    rows = [Row(tuple(range(n)), (0,), (), n) for n in (9, 1, 5, 30, 2, 2, 7)]
    groups = list(bucket(rows, 16))
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or max(len(rows[i].ids) for i in group) * len(group) <= 16


def test_buckets_keep_padding_below_a_limit():
    rows = [Row(tuple(range(n)), (0,), (), n) for n in (2, 3, 40, 2, 41, 3, 90)]
    groups = list(bucket(rows, 1000, max_padding=2))
    assert [[len(rows[i].ids) for i in group] for group in groups] == [[2, 2, 3, 3], [40, 41], [90]]


def test_rows_of_equal_tokens_under_one_patch_are_run_once():
    rows = [
        Row((5, 6), (1,), (7,), 2),
        Row((5, 6), (1,), (8,), 2),
        Row((5, 6), (0, 1), (6, 7), 1),
        Row((5, 6, 7), (2,), (9,), 3),
        Row((5, 6), (1,), (7,), 2, patch=1),
    ]
    shared, hosts = share_rows(rows)
    assert hosts == [0, 0, 1, 2, 3]  # a prompt that ends elsewhere may be answered otherwise
    assert [(row.ids, row.positions, row.prompt_length, row.patch) for row in shared] == [
        ((5, 6), (1,), 2, -1),
        ((5, 6), (0, 1), 1, -1),
        ((5, 6, 7), (2,), 3, -1),
        ((5, 6), (1,), 2, 1),
    ]
