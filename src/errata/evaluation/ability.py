"""The tasks of general ability that ship with errata: chosen by name, their data found or fetched.

`sst2`, `mrpc`, `cola`, `rte`, `nli`, `mmlu`, `mmlu_cloze`, `dialogue`: what AlphaEdit and BLUE ask,
in their wording. The task files lie in `errata/evaluation/tasks` and run nothing; the questions do
not ship. They are read from a folder with one `NAME.jsonl` per task, or fetched from the Hub once
and kept in the cache, in the same form.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.errors import DataError, MissingExtra
from errata.store.files import cache_root, write_atomically

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)

TASKS = Path(__file__).parent / "tasks"
VARIABLE = "ERRATA_DATA"
SUBFOLDER = "ability"
KEPT = 1000
"""Most items that are kept of a set from the Hub; of these the first ITEMS are asked."""

SEED = 37
"""Order of the items of a set from the Hub: the seed that AlphaEdit and BLUE draw theirs with."""

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where the Hub has the data of a task.

    Attributes:
        path: Data set.
        name: Its configuration.
        split: Its part.
        label: Field by which items are balanced.
        made: Turns an item into what the task reads.
    """

    path: str
    name: str
    split: str
    label: str
    made: Callable[[Item], Item]


def need_harness() -> None:
    """Refuse to measure general ability without what measures it.

    Raises:
        MissingExtra: If lm-evaluation-harness is not installed.
    """
    if find_spec("lm_eval") is None:
        raise MissingExtra("measurements of general ability", "lm-eval", "general")


def _fields(*names: str) -> Callable[[Item], Item]:
    return lambda item: {name: item[name] for name in names}


def _with_words(item: Item) -> Item:
    label = ("entailment", "not_entailment")[item["label"]]
    return {"sentence1": item["sentence1"], "sentence2": item["sentence2"], "label": label}


_PAIR = _fields("sentence1", "sentence2", "label")
GLUE = "nyu-mll/glue"
SOURCES: Mapping[str, Source] = {
    "sst2": Source(GLUE, "sst2", "validation", "label", _fields("sentence", "label")),
    "mrpc": Source(GLUE, "mrpc", "validation", "label", _PAIR),
    "cola": Source(GLUE, "cola", "validation", "label", _fields("sentence", "label")),
    "rte": Source(GLUE, "rte", "validation", "label", _PAIR),
    "nli": Source(GLUE, "rte", "train", "label", _with_words),
    "mmlu": Source("cais/mmlu", "all", "test", "answer", _fields("question", "choices", "answer")),
}
"""Sets that the Hub has, by the name of their file; `dialogue` (MuTual) is read from a folder."""


def task_names() -> list[str]:
    """Return the names of the tasks that ship with errata."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def shipped_task(name: str, folder: str | Path | None = None) -> dict[str, Any]:
    """Return a task as lm-evaluation-harness takes it, with its data in place.

    Args:
        name: One of [`task_names`][errata.evaluation.ability.task_names].
        folder: Folder with the data; None: $ERRATA_DATA, its folder `ability`, else the Hub.

    Raises:
        DataError: If the data are nowhere, or not what the task reads.
    """
    load_yaml = import_module("lm_eval.tasks._yaml_loader").load_yaml
    config: dict[str, Any] = dict(load_yaml(TASKS / f"{name}.yaml", resolve_func=False))
    file = config["dataset_kwargs"]["data_files"]["test"]
    path = _data(name, file, folder)
    _check(name, path, config)
    return config | {"dataset_kwargs": {"data_files": {"test": str(path)}}}


def _data(name: str, file: str, folder: str | Path | None) -> Path:
    """Return the file with a task's data, fetched if it has to be."""
    hint = f"--general-data DIR, or ${VARIABLE}: a folder with {file} (see docs/evaluation.md)"
    if folder is not None:
        path = Path(folder).expanduser() / file
        if not path.is_file():
            raise DataError(f"task {name} has no data: no such file: {path}", f"Give {hint}.")
        return path.resolve()
    if os.environ.get(VARIABLE):
        given = Path(os.environ[VARIABLE]).expanduser()
        for path in (given / SUBFOLDER / file, given / file):
            if path.is_file():
                return path.resolve()
    stem = file.removesuffix(".jsonl")
    if stem not in SOURCES:
        raise DataError(f"task {name} has no data, and the Hub has none for it", f"Give {hint}.")
    path = cache_root() / "general" / f"hub-{file}"
    if not path.is_file():
        source = SOURCES[stem]
        try:
            items = drawn(_rows(source), source)
        except Exception as error:  # datasets and the network raise what they like
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"task {name} has no data: {source.path} cannot be read from the Hub: {reason}",
                f"Give {hint}.",
            ) from error
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        write_atomically(path, lines.encode())
        log.info("%d items of %s kept in %s", len(items), source.path, path)
    return path


def _rows(source: Source) -> Iterable[Item]:
    from datasets import load_dataset

    rows: Any = load_dataset(source.path, source.name, split=source.split)
    return rows


def drawn(rows: Iterable[Item], source: Source) -> list[Item]:
    """Return items as a task reads them: shuffled, the classes taking turns."""
    groups: dict[Any, list[Item]] = {}
    for row in rows:
        groups.setdefault(row[source.label], []).append(source.made(row))
    rng = random.Random(SEED)
    for label in sorted(groups, key=str):
        rng.shuffle(groups[label])
    least = min((len(own) for own in groups.values()), default=0)
    turns = zip(*(groups[label][:least] for label in sorted(groups, key=str)), strict=True)
    return [item for turn in turns for item in turn][:KEPT]


def _check(name: str, path: Path, config: Mapping[str, Any]) -> None:
    """Refuse data that a task cannot ask, before the harness stumbles over them."""
    wanted = set(config["metadata"]["fields"])
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold U+2028 and others
        items = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"task {name}: {path} is not a file of JSON lines: {error}") from None
    if not items:
        raise DataError(f"task {name} has no data: {path} is empty")
    for number, item in enumerate(items, 1):
        missing = wanted if not isinstance(item, Mapping) else wanted - item.keys()
        if missing:
            raise DataError(
                f"task {name}: {path}, line {number} has no field {', '.join(sorted(missing))}",
                f"Expected one JSON object a line, with {', '.join(sorted(wanted))}.",
            )


def check_lengths(lm: LM, tasks: Mapping[str, Any], items: int) -> None:
    """Refuse tasks with an item that the model's context does not hold.

    The harness would cut off its beginning and score the rest.

    Args:
        lm: The model.
        tasks: Tasks of the harness, by name.
        items: Items of each that are asked.

    Raises:
        DataError: Names the task, the item and both lengths.
    """
    if lm.max_length is None:
        return
    for name, task in tasks.items():
        task.build_all_requests(limit=items)
        for instance in task.instances:
            if instance.request_type == "loglikelihood_rolling":
                continue  # read in windows
            length = _tokens(lm, instance.args)
            if length > lm.max_length:
                raise DataError(
                    f"task {name}: item {instance.doc_id + 1} has {length:,} tokens, "
                    f"the model's context holds {lm.max_length:,}",
                    "Leave the task out, or give it data without such items: what does not fit "
                    "would be cut off and scored all the same.",
                )


def _tokens(lm: LM, parts: Sequence[Any]) -> int:
    text = "".join(part for part in parts if isinstance(part, str))
    return len(lm.tokenizer(text, verbose=False)["input_ids"])
