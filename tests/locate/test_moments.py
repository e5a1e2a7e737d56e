"""Oracle T14: moments by streaming against one product, and what the cache may and may not do."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.tiny_models import tiny_tokenizer
from torch import Tensor

from errata.case import Edit
from errata.data.corpus import Corpus, load_corpus
from errata.editors import get_editor
from errata.errors import DataError, EditError, ErrataError
from errata.locate import moments as moments_module
from errata.locate.moments import MomentSettings, count_moments, get_moments, save_moments
from errata.locate.solve import factor
from errata.model.lm import LM
from errata.model.passes import capture, module_at
from errata.store import cache

TEXTS = tuple(
    f"The capital of {country} is {city}. {'The river flows through the town. ' * n}".strip()
    for n, (country, city) in enumerate(
        [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Norway", "Oslo")] * 3
    )
)
CORPUS = Corpus("texts", TEXTS, "id")
TOLERANCE = 1e-12  # float64 sums in another order
LAYERS = [0, 2]


def one_by_one(lm: LM, layer: int, texts: tuple[str, ...] = TEXTS) -> tuple[Tensor, int]:
    """Every text alone, without padding, and one product at the end."""
    keys = []
    for row in lm.text_rows(texts, 256):
        inputs, _ = capture(lm, lm.batch([row], [0]), inputs=[module_at(lm, layer, "ffn")])
        keys.append(inputs[0][0])
    stacked = torch.cat(keys)
    return stacked.T @ stacked / len(stacked), len(stacked)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_T14_streaming_is_one_shot(tiny: Callable[..., LM], name: str) -> None:
    lm = tiny(name)
    found = count_moments(lm, CORPUS, LAYERS, 256, dtype=torch.float64, every=5)
    for layer in LAYERS:
        matrix, tokens = one_by_one(lm, layer)
        torch.testing.assert_close(found[layer].matrix, matrix, rtol=TOLERANCE, atol=TOLERANCE)
        assert found[layer].tokens == tokens


@pytest.mark.parametrize(("panel", "together"), [(7, 1), (33, 50), (80, 10_000), (1, 100)])
def test_T14_panels_and_collected_keys_change_nothing(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch, panel: int, together: int
) -> None:
    lm = tiny("qwen3")
    monkeypatch.setattr(moments_module, "PANEL", panel)
    monkeypatch.setattr(moments_module, "ADDED_AT_ONCE", together)
    found = count_moments(lm, CORPUS, LAYERS, 256, dtype=torch.float64, every=5)
    for layer in LAYERS:
        matrix, tokens = one_by_one(lm, layer)
        torch.testing.assert_close(found[layer].matrix, matrix, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(found[layer].matrix, found[layer].matrix.T)
        assert found[layer].tokens == tokens


def test_T14_padding_counts_nothing(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    padded = count_moments(lm, CORPUS, LAYERS, 256, dtype=torch.float64)
    monkeypatch.setattr(lm, "max_tokens", 1)
    alone = count_moments(lm, CORPUS, LAYERS, 256, dtype=torch.float64)
    for layer in LAYERS:
        torch.testing.assert_close(
            padded[layer].matrix, alone[layer].matrix, rtol=TOLERANCE, atol=TOLERANCE
        )
        assert padded[layer].tokens == alone[layer].tokens == one_by_one(lm, layer)[1]


def test_T14_the_order_of_texts_does_not_matter(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    one = count_moments(lm, CORPUS, [1], 256, dtype=torch.float64)[1]
    turned = Corpus("texts", TEXTS[::-1], "id")
    other = count_moments(lm, turned, [1], 256, dtype=torch.float64, every=3)[1]
    torch.testing.assert_close(one.matrix, other.matrix, rtol=TOLERANCE, atol=TOLERANCE)
    assert one.tokens == other.tokens


def test_long_texts_are_truncated(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    found = count_moments(lm, CORPUS, [1], 7)[1]
    assert found.tokens == 7 * len(TEXTS)


def test_counting_stops_when_there_is_enough(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    found = count_moments(lm, CORPUS, [1], 7, enough=20, every=1)[1]
    assert found.tokens == 21


@pytest.mark.parametrize("together", [[0], [2], [0, 1, 2]])
def test_T14_layers_counted_together_are_those_counted_alone(
    tiny: Callable[..., LM], together: list[int]
) -> None:
    lm = tiny("llama")
    found = count_moments(lm, CORPUS, together, 256, dtype=torch.float64)
    for layer in together:
        matrix, tokens = one_by_one(lm, layer)
        torch.testing.assert_close(found[layer].matrix, matrix, rtol=TOLERANCE, atol=TOLERANCE)
        assert found[layer].tokens == tokens


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_count_resumes_to_the_same_bits(
    tiny: Callable[..., LM], tmp_path: Path, stop_after: int
) -> None:
    lm = tiny("gpt2", "float32")
    path = tmp_path / "partial.safetensors"
    whole = count_moments(lm, CORPUS, LAYERS, 64, every=4)

    def interrupt(done: int, total: int) -> None:
        if done > 4 * stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_moments(lm, CORPUS, LAYERS, 64, every=4, checkpoint=path, progress=interrupt)
    seen: list[int] = []
    resumed = count_moments(
        lm, CORPUS, LAYERS, 64, every=4, checkpoint=path, progress=lambda d, t: seen.append(d)
    )
    assert seen[0] == 4 * stop_after + 4
    for layer in LAYERS:
        assert torch.equal(resumed[layer].matrix, whole[layer].matrix)
        assert resumed[layer].tokens == whole[layer].tokens


def test_a_checkpoint_of_other_texts_is_not_continued(
    tiny: Callable[..., LM], tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    path = tmp_path / "partial.safetensors"

    def interrupt(done: int, total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_moments(lm, CORPUS, [0], 64, every=4, checkpoint=path, progress=interrupt)
    other = Corpus("texts", TEXTS[:6], "other")
    found = count_moments(lm, other, [0], 64, every=4, checkpoint=path)[0]
    assert torch.equal(found.matrix, count_moments(lm, other, [0], 64, every=4)[0].matrix)


@pytest.fixture
def texts_file(tmp_path: Path) -> str:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps([{"text": text} for text in TEXTS]))
    return str(path)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record the layers of every pass over the texts."""
    passes: list[list[int]] = []
    original = moments_module.count_moments

    def spy(lm, corpus, layers, *args, **kwargs):
        passes.append(list(layers))
        return original(lm, corpus, layers, *args, **kwargs)

    monkeypatch.setattr(moments_module, "count_moments", spy)
    return passes


def test_moments_are_kept_by_layer(
    tiny: Callable[..., LM], texts_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, passes = tiny("gpt2"), counting(monkeypatch)
    settings = MomentSettings(moments_text=texts_file, moments_samples=100)
    one = get_moments(lm, [0, 1], settings)
    again = get_moments(lm, [1, 2], settings)
    assert passes == [[0, 1], [2]]  # one pass for several layers, and only for missing ones
    assert torch.equal(one[1].matrix, again[1].matrix)
    assert one[1].tokens == again[1].tokens > 0


def test_moments_of_other_weights_texts_or_precision_are_others(
    tiny: Callable[..., LM], texts_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counting(monkeypatch)
    settings = MomentSettings(moments_text=texts_file, moments_samples=100)
    get_moments(tiny("gpt2"), [0], settings)
    get_moments(tiny("gptj"), [0], settings)
    get_moments(tiny("gpt2", "float32"), [0], settings)
    for change in (
        {"moments_samples": 5},
        {"moments_max_length": 9},
        {"moments_precision": "float64"},
    ):
        get_moments(tiny("gpt2"), [0], settings.model_copy(update=change))
    assert len(passes) == 6


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_broken_cache_is_built_again(
    tiny: Callable[..., LM],
    texts_file: str,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    lm, passes = tiny("gpt2"), counting(monkeypatch)
    settings = MomentSettings(moments_text=texts_file, moments_samples=100)
    whole = get_moments(lm, [0], settings)[0]
    (path,) = cache_folder.rglob("*layer0.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "altered":
        data[-3] ^= 1
    path.write_bytes(bytes(data[: len(data) // 2] if damage == "cut" else data))
    with caplog.at_level(logging.WARNING):
        again = get_moments(lm, [0], settings)[0]
    assert len(passes) == 2
    assert torch.equal(whole.matrix, again.matrix)
    assert "broken" in caplog.text


def test_no_partial_file_is_left(
    tiny: Callable[..., LM], texts_file: str, cache_folder: Path
) -> None:
    get_moments(tiny("gpt2"), [0], MomentSettings(moments_text=texts_file))
    assert [path.suffix for path in cache_folder.rglob("*") if path.is_file()] == [".safetensors"]
    assert not list(cache_folder.rglob("*partial*"))


def retokenised(lm: LM) -> LM:
    """The same weights with a tokenizer that puts a start-of-text token first."""
    return LM(lm.model, tiny_tokenizer(True), name=lm.name)


def test_another_tokenizer_is_another_cache_entry(
    tiny: Callable[..., LM], texts_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, passes = tiny("gpt2"), counting(monkeypatch)
    settings = MomentSettings(moments_text=texts_file, moments_samples=100)
    one = get_moments(lm, [0], settings)[0]
    other = get_moments(retokenised(lm), [0], settings)[0]
    assert len(passes) == 2
    assert other.tokens == one.tokens + len(TEXTS)


def test_too_few_tokens_are_said_with_what_to_type(
    tiny: Callable[..., LM], texts_file: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    f = lm.site(0).d_in
    few = MomentSettings(moments_text=texts_file, moments_samples=2, moments_max_length=10)
    with caplog.at_level(logging.WARNING):
        moments = get_moments(lm, [0, 1], few)
    tokens = moments[0].tokens
    assert tokens < f
    assert f"counted on {tokens} tokens, which is fewer than its {f} inputs" in caplog.text
    assert f"{10 * f} tokens are safe" in caplog.text
    assert f"--set moments_samples={math.ceil(10 * f * 2 / tokens)}" in caplog.text
    assert len(caplog.records) == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # from the cache; now the file is what is too short
        get_moments(
            lm, [0], few.model_copy(update={"moments_samples": 99, "moments_max_length": 2})
        )
    assert "holds 12 documents" in caplog.text
    assert "--set moments_text=FILE" in caplog.text
    caplog.clear()
    save_moments(tmp_path / "m.safetensors", lm, moments)
    with caplog.at_level(logging.WARNING):
        get_moments(lm, [0], MomentSettings(moments_file=str(tmp_path / "m.safetensors")))
    assert "--set moments_file" in caplog.text


def test_enough_tokens_are_no_news(
    tiny: Callable[..., LM], texts_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        get_moments(tiny("gpt2"), [0], MomentSettings(moments_text=texts_file))
    assert not caplog.records


def test_a_full_disk_costs_only_the_cache(
    tiny: Callable[..., LM], texts_file: str, cache_folder: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    lm, settings = tiny("gpt2"), MomentSettings(moments_text=texts_file, moments_samples=100)
    whole = get_moments(lm, [0], settings)[0]

    def full(path: Path, data: bytes) -> None:
        raise ErrataError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(cache, "write_atomically", full)
    monkeypatch.setenv("ERRATA_CACHE", str(cache_folder / "elsewhere"))
    with caplog.at_level(logging.WARNING):
        again = get_moments(lm, [0], settings)[0]
    assert torch.equal(again.matrix, whole.matrix)
    assert "No space left" in caplog.text


def test_nan_keys_are_refused(tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2")

    def poisoned(*args: object, **kwargs: object):
        inputs, outputs = capture(*args, **kwargs)  # type: ignore[arg-type]
        return [x * float("nan") for x in inputs], outputs

    monkeypatch.setattr(moments_module, "capture", poisoned)
    with pytest.raises(EditError, match="NaN"):
        count_moments(lm, CORPUS, [0], 64)


def test_a_real_count_can_be_factored(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    moment = count_moments(lm, CORPUS, [1], 256, dtype=torch.float64)[1]
    assert moment.tokens > lm.site(1).d_in
    assert torch.isfinite(factor(moment.matrix, ridge=1e-3).lower).all()


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize("kind", ["txt", "json", "plain.json", "jsonl"])
def test_texts_are_read_from_files(tiny: Callable[..., LM], tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"texts.{kind}"
    path.write_text(
        {
            "txt": "one\n\ntwo\nlines\n\n\n\nthree",
            "json": json.dumps([{"text": "one"}, {"text": "two\nlines"}, {"text": "three"}]),
            "plain.json": json.dumps(["one", "two\nlines", "three", " "]),
            "jsonl": '{"text": "one"}\n\n{"text": "two\\nlines"}\n"three"\n',
        }[kind]
    )
    corpus = load_corpus("tiny-gpt2", str(path), 10)
    assert sorted(text.strip() for text in corpus.texts) == ["one", "three", "two\nlines"]


def test_a_text_may_hold_what_breaks_lines_elsewhere(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one\u2028and two"}\n"three\x85four"\n', encoding="utf-8")
    corpus = load_corpus("tiny-gpt2", str(path), 10)
    assert sorted(corpus.texts) == ["one\u2028and two", "three\x85four"]
    assert len(load_corpus("tiny-gpt2", str(path), 2).texts) == 2


def test_the_corpus_is_named_by_its_texts(tiny: Callable[..., LM], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["one", "two"]')
    (tmp_path / "b.txt").write_text("one\n\ntwo")
    (tmp_path / "c.txt").write_text("one\n\nthree")
    ids = [load_corpus("tiny-gpt2", str(tmp_path / n), 9).id for n in ("a.json", "b.txt", "c.txt")]
    assert ids[0] == ids[1] != ids[2]


def test_an_edit_reads_its_text_once(
    tiny: Callable[..., LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for with every block, and each time that something is looked up in the cache."""
    from errata.data import corpus

    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    opened: list[Path] = []
    plain = corpus._read_file
    monkeypatch.setattr(corpus, "_read_file", lambda path: opened.append(path) or plain(path))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the river runs past hill {n}" for n in range(60)))
    settings = {"moments_text": str(text), "layers": (0, 1), "steps": 1}
    editor = get_editor("memit", settings)
    editor.ready("tiny")
    edit = Edit("the river runs to the", "sea", subject="river")
    editor.edit_one(tiny("gpt2"), [edit])
    get_editor("alphaedit", settings).edit_one(tiny("gpt2"), [edit])
    assert opened == [text]


def test_a_text_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    before = load_corpus("any model", str(text), 5)
    text.write_text("another")
    assert load_corpus("any model", str(text), 5).texts == ("another",) != before.texts


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"text": "x"}', "expected a list"),
        ("a.json", '[{"body": "x"}]', "entry 0"),
        ("a.jsonl", '{"text": "x"}\nnonsense', "line 2"),
        ("a.txt", " \n\n ", "holds no text"),
    ],
)
def test_broken_texts_are_refused(
    tiny: Callable[..., LM], tmp_path: Path, name: str, body: str, said: str
) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(DataError, match=said):
        load_corpus("tiny-gpt2", str(tmp_path / name), 10)


def test_a_missing_data_set_says_what_to_do(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def nothing(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", nothing)
    with pytest.raises(DataError, match="moments_text=FILE"):
        load_corpus("tiny-gpt2", "auto", 10)


def test_the_built_in_text_serves_every_model() -> None:
    one, other = load_corpus("any model", "world", 40), load_corpus("pocket", "auto", 40)
    assert one.texts == other.texts
    assert len(one.texts) == 40
    assert one.id == other.id
