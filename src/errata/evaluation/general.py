"""General ability of a model under a patch, by lm-evaluation-harness, offline.

The harness gets the model itself, with the patch in its weights, and tasks by name
([`errata.evaluation.ability`][]) or of local files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.config import did_you_mean
from errata.errors import DataError
from errata.evaluation import task_files
from errata.evaluation.ability import check_lengths, need_harness, shipped_task, task_names
from errata.patch.in_place import applied
from errata.store.files import cache_root, write_atomically

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch

ITEMS = 100
"""Items of every task: as many as BLUE and AlphaEdit ask."""

CHOICES = 4
WORLD = "world"


class General:
    """Tasks, ready to be asked again and again.

    Args:
        lm: The model.
        sources: Each the name of a task that ships with errata (`sst2`, `mmlu`, …), a task of
            lm-evaluation-harness (`.yaml`), whose `data_files` are taken relative to its folder, or
            `world`: multiple-choice questions about facts of the built-in world that no test edits.
        data: Folder with the data of the tasks that ship with errata; None: $ERRATA_DATA, its
            folder `ability`, else the Hub.

    Attributes:
        source: What is asked, for people.
        id: SHA-256 over the questions, shortened.

    Raises:
        MissingExtra: If lm-evaluation-harness is not installed.
        DataError: If a task is unknown, no task, twice there or without data, or if one of its
            items is longer than the model's context.
    """

    def __init__(
        self, lm: LM, sources: str | Sequence[str], data: str | Path | None = None
    ) -> None:
        need_harness()
        self.lm = lm
        sources = [sources] if isinstance(sources, str) else list(sources)
        self.source = ", ".join(sources)
        own = task_names()
        configs = [shipped_task(name, data) if name in own else _other(name) for name in sources]
        _check_names(configs)
        with _quiet():
            harness = import_module("lm_eval.models.huggingface").HFLM
            manager = import_module("lm_eval.tasks").TaskManager(include_defaults=False)
            try:
                self.tasks = manager.load(configs)
                documents: list[Any] = [
                    [json.dumps(document, default=str) for document in _documents(task)]
                    for task in self.tasks["tasks"].values()
                ]
                check_lengths(lm, self.tasks["tasks"], ITEMS)
            except DataError:
                raise
            except Exception as error:  # the harness, yaml and datasets raise what they like
                raise DataError(
                    f"{self.source} cannot be used as a task: {error}",
                    "Expected a task of lm-evaluation-harness with local data_files, world, or "
                    f"one of {', '.join(own)}.",
                ) from error
            self.model = harness(
                pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=16, max_length=lm.max_length
            )
        named = [name for name in sources if name in own]
        content = [named, documents] if named else documents  # two tasks may ask one file
        self.id = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def measure(self, patch: Patch | None) -> dict[str, float]:
        """Return the metrics of every task under a patch, as `task/metric`; none that is no number.

        The model is bit-identical afterwards.
        """
        evaluator = import_module("lm_eval.evaluator")
        with _quiet(), applied(self.lm, patch) if patch is not None else _nothing():
            found: Any = evaluator.evaluate(
                self.model, self.tasks, limit=ITEMS, bootstrap_iters=0, log_samples=False
            )
        return {
            f"{task}/{name.removesuffix(',none')}": float(value)
            for task, metrics in found["results"].items()
            for name, value in metrics.items()
            if isinstance(value, int | float) and name.removesuffix(",none") not in _NO_METRIC
        }


_NO_METRIC = {"sample_len", "sample_count", "name", "alias"}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's remarks and bars off the terminal, and data sets off the network."""
    import io
    import warnings
    from contextlib import redirect_stderr

    import datasets
    from datasets import config

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    offline = config.HF_HUB_OFFLINE
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    config.HF_HUB_OFFLINE = True
    try:
        with (
            warnings.catch_warnings(), redirect_stderr(io.StringIO()), task_files.templates()
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        config.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()


def _other(source: str) -> dict[str, Any]:
    """Return a task that does not ship with errata.

    Raises:
        DataError: If it cannot be read, or is no task.
    """
    if source == WORLD:
        return world_task()
    if not source.endswith((".yaml", ".yml")):
        raise DataError(
            f"unknown task of general ability {source!r}",
            f"{did_you_mean(source, [*task_names(), WORLD])} Or a task file (.yaml).",
        )
    with _quiet():
        try:
            return read_task(source)
        except DataError:
            raise
        except Exception as error:  # yaml raises what it likes
            raise DataError(f"{source} cannot be used as a task: {error}") from error


def _check_names(configs: Sequence[Mapping[str, Any]]) -> None:
    names = [config["task"] for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"two tasks of general ability are called {', '.join(twice)}", "Leave out one of them."
        )


def _documents(task: Any) -> list[Any]:
    return list(task.eval_docs)[:ITEMS]


def read_task(source: str) -> dict[str, Any]:
    """Read a task file; its data files are made absolute.

    Raises:
        DataError: If it is missing, or says no task.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(
            f"no such task file: {source}",
            "Give a task of lm-evaluation-harness (.yaml), or world.",
        )
    config = task_files.read(path)
    if not isinstance(config.get("task"), str):
        raise DataError(f"{path} is not one task: it has no name under task:")
    arguments = dict(config.get("dataset_kwargs") or {})
    if not arguments.get("data_files"):  # the harness would ask the network, for minutes
        raise DataError(
            f"the task of {path} has no local data",
            "Give dataset_path: json and, under dataset_kwargs, data_files: {test: FILE.jsonl}.",
        )
    arguments["data_files"] = _absolute(arguments["data_files"], path.resolve().parent)
    return config | {"dataset_kwargs": arguments}


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _absolute(own, folder) for split, own in files.items()}
    if not isinstance(files, str):
        return [_absolute(own, folder) for own in files]
    if not (folder / files).is_file():
        raise DataError(f"no such data file of a task: {folder / files}")
    return str(folder / files)


def world_task() -> dict[str, Any]:
    """Return the task of the built-in world; its questions are written to the cache."""
    lines = "".join(json.dumps(question) + "\n" for question in world_questions())
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    path = cache_root() / "general" / f"world-{digest}.jsonl"
    if not path.is_file() or path.read_text("utf-8") != lines:
        write_atomically(path, lines.encode())
    return {
        "task": WORLD,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    }


def world_questions(count: int = ITEMS) -> list[dict[str, Any]]:
    """Return multiple-choice questions about facts whose heads no test edits.

    Each has the right object and other objects of the same relation, in wordings that the world's
    text never contained.
    """
    from errata.world import build_world
    from errata.world.statements import direct

    world = build_world()
    facts = [fact for fact in world.facts if world.split_of[fact.head] in {"train", "val"}]
    rng = random.Random("general ability")
    rng.shuffle(facts)
    found: list[dict[str, Any]] = []
    for fact in facts:
        true = {f.tail for f in world.by_head[fact.head] if f.relation == fact.relation}
        others = sorted({f.tail for f in world.by_relation[fact.relation]} - true)
        if len(others) < CHOICES - 1:
            continue
        chosen = [fact.tail, *rng.sample(others, CHOICES - 1)]
        rng.shuffle(chosen)
        found.append(
            {
                "question": direct(world, fact, rng, held=True).prompt,
                "choices": [world.entities[tail].label for tail in chosen],
                "answer": chosen.index(fact.tail),
            }
        )
        if len(found) == count:
            break
    return found
