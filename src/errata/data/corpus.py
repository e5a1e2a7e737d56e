"""Ordinary text for moments and perplexity: a local file, a data set of the Hub, or a default."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from errata.errors import DataError
from errata.store.digest import digest_of_all
from errata.untrusted import DATA_BYTES, parse, read_text

SHUFFLE_SEED = 1
"""Seed of the choice of documents; the published code uses `random.Random(1)` too."""

SUFFIXES = {".txt", ".json", ".jsonl"}

WIKITEXT = "Salesforce/wikitext:wikitext-103-raw-v1"
"""What `auto` means for every model but the pocket one: what REP's scripts count moments on."""


WORLD = "world"
"""Names the text of the built-in world."""


@dataclass(frozen=True)
class Corpus:
    """Documents on which second moments are counted.

    Attributes:
        name: Where they come from, for messages.
        texts: The chosen documents, in the order they are processed.
        id: SHA-256 over the documents: the same texts are the same corpus, whatever their file's
            name.
    """

    name: str
    texts: tuple[str, ...]
    id: str


def load_corpus(model: str, source: str, samples: int) -> Corpus:
    """Choose documents.

    Args:
        model: Name of the model, for `auto`.
        source: `auto` (the pocket model's own world; else wikitext-103 from the Hub), `world` (the
            built-in world's text, for any model: works without a network), a local file
            (`.txt`: paragraphs separated by blank lines; `.json`: a list of texts or of `{"text":
            …}`; `.jsonl`), or a data set of the Hub as `owner/name` or `owner/name:configuration`.
        samples: How many documents are drawn; fewer are there if the source holds fewer.

    Raises:
        DataError: If the source is missing, malformed or holds no text.
    """
    from errata.world.shipped import knows_world

    if source == WORLD or (source == "auto" and knows_world(model)):
        return _chosen(WORLD, None, None, samples)
    name = WIKITEXT if source == "auto" else source
    path = Path(name).expanduser()
    if path.is_file():
        state = path.stat()
        written = (str(path.resolve()), state.st_mtime_ns, state.st_size)
        return _chosen(name, path, written, samples)
    if name[:1] in "/.~" or path.suffix in SUFFIXES:
        raise DataError(
            f"no such file: {name}", "Give a file, or a data set of the Hub as owner/name"
        )
    return _chosen(name, None, None, samples)


@lru_cache(maxsize=2)
def _chosen(
    source: str, path: Path | None, written: tuple[str, int, int] | None, samples: int
) -> Corpus:
    """Read and choose; an edit asks for its text once for each of its blocks, and again.

    Args:
        source: Its name: `world`, a file or a data set.
        path: The file, if it is one.
        written: Tells the file from what another time stood in its place.
        samples: How many documents are drawn.
    """
    if source == WORLD:
        name, found = "the built-in world", _world_texts()
    else:
        name, found = source, _read_hub(source, samples) if path is None else _read_file(path)
    texts = [text for text in found if text.strip()]
    if not texts:
        raise DataError(f"{name} holds no text")
    order = list(range(len(texts)))
    random.Random(SHUFFLE_SEED).shuffle(order)
    chosen = tuple(texts[i] for i in order[:samples])
    return Corpus(name, chosen, digest_of_all(chosen))


def _world_texts() -> Iterable[str]:
    from errata.world import build_world, texts

    return texts(build_world())


def _read_file(path: Path) -> Iterator[str]:
    try:
        body = read_text(path, limit=DATA_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if path.suffix == ".json":
        try:
            records = parse(body)
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(records, list):
            raise DataError(f"{path} holds a {type(records).__name__}; expected a list of texts")
        for number, record in enumerate(records):
            yield _text_of(record, f"{path}, entry {number}")
    elif path.suffix == ".jsonl":
        for number, line in enumerate(body.split("\n"), 1):  # a text may hold U+2028 and others
            if not line.strip():
                continue
            try:
                record = parse(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}") from None
            yield _text_of(record, f"{path}, line {number}")
    else:
        yield from body.split("\n\n")


def _text_of(record: Any, where: str) -> str:
    text = record.get("text") if isinstance(record, dict) else record
    if not isinstance(text, str):
        raise DataError(f'{where}: expected a text or an object with "text"')
    return text


def _read_hub(name: str, samples: int) -> Iterator[str]:
    """Stream the training split of a data set of the Hub, so that only what is used is fetched.

    Documents are drawn from the first `5 * samples`, which is also all that is fetched.
    """
    from datasets import load_dataset

    dataset, _, configuration = name.partition(":")
    try:
        rows = load_dataset(dataset, configuration or None, split="train", streaming=True)
        for row in islice(rows, 5 * samples):
            yield _text_of(row, name)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"cannot read texts from {name!r}: {str(error).strip().partition(chr(10))[0]}",
            "Give a local file: --set moments_text=FILE.txt (or .json, .jsonl), "
            "the model's own text: --set moments_text=self, or the built-in one: "
            "--set moments_text=world",
        ) from error
