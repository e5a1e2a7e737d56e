"""Tokenizers of the families in use, trained on a few sentences in many scripts."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from tests.test_spacing import SPACED, SPACELESS
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = {**SPACED, **SPACELESS}
_TEXTS = [text for p, t in SENTENCES.values() for text in (p, t, f"is {t}.")] * 3
_TEXTS += [" ".join(string.ascii_letters + string.digits), string.punctuation]
_WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _spaces(text: str, steps: Iterable[Any] = ()) -> Any:
    return normalizers.Sequence([*steps, normalizers.Replace(" ", text)])


def _bytes(tokenizer: Tokenizer, special: list[str]) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)


def gpt2_like(special: list[str]) -> Tokenizer:
    """Bytes, a space in front of words, none added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _bytes(tokenizer, special)
    return tokenizer


def llama3_like(special: list[str]) -> Tokenizer:
    """Bytes, words by a pattern of their own; Qwen is alike."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _bytes(tokenizer, special)
    return tokenizer


def _pieces(normalizer: Any, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<unk>", *special, *_BYTES], show_progress=False
    )
    # SentencePiece learns no pieces across words, but some of several spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁▁+|▁?[^▁]+"), "isolated")
    tokenizer.train_from_iterator([*_TEXTS, *["a  b   c    d"] * 50], trainer)
    tokenizer.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def llama2_like(special: list[str]) -> Tokenizer:
    """SentencePiece with byte fallback: spaces are ▁, one in front of every text."""
    return _pieces(_spaces("▁", [normalizers.Prepend("▁")]), special)


def gemma_like(special: list[str]) -> Tokenizer:
    """SentencePiece with byte fallback, nothing put in front."""
    return _pieces(_spaces("▁"), special)


def unigram(special: list[str]) -> Tokenizer:
    """SentencePiece's other model, words split at spaces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=["<unk>", *special], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


FAMILIES: dict[str, Callable[[list[str]], Tokenizer]] = {
    "gpt2": gpt2_like,
    "llama3": llama3_like,
    "llama2": llama2_like,
    "gemma": gemma_like,
    "unigram": unigram,
}
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = ["<|im_start|>", "<|im_end|>"]


@cache
def some_tokenizer(family: str, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts a BOS in front, with a chat template that writes one too."""
    tokenizer = FAMILIES[family](["<s>", "</s>", *TURNS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>",
        extra_special_tokens=TURNS,
    )  # fmt: skip
    made.chat_template = template  # pyright: ignore[reportAttributeAccessIssue]
    return made
