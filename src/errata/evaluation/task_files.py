"""Task files of lm-evaluation-harness from a stranger: a subset of them that cannot run code.

A task file may name functions (`!function`) and holds templates; read by the harness itself, both
run whatever they say. Here a file is plain YAML with the fields below, its data lie in its own
folder, and its templates may only name fields and shape texts: no loops, no calls but a few methods
of texts, a bounded result. Everything else needs `trusting`, which the command line calls
`--trust-task-code`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from errata.errors import DataError
from errata.untrusted import Refused, check_file, check_values, check_yaml, read_text

TASK_BYTES = 1 << 20
"""Of a task file."""

TEMPLATE_LENGTH = 10_000
TEXT_LENGTH = 1_000_000
"""Characters of a template, and of any text that it makes on the way."""

TRUST = "If you trust its authors: --trust-task-code (the harness then runs what it says)."

_FIELDS = frozenset({
    "task", "task_alias", "tag", "dataset_path", "dataset_kwargs", "training_split",
    "validation_split", "test_split", "fewshot_split", "output_type", "doc_to_text",
    "doc_to_target", "doc_to_choice", "description", "target_delimiter", "fewshot_delimiter",
    "num_fewshot", "metric_list", "generation_kwargs", "metadata",
})  # fmt: skip
_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description")
_METRICS = frozenset({
    "acc", "acc_norm", "acc_mutual_info", "exact_match", "f1", "mcc", "perplexity",
    "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "likelihood",
})  # fmt: skip
_METRIC_FIELDS = frozenset({
    "metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation",
})  # fmt: skip
_GENERATION = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "num_beams"})
_OUTPUTS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
_READERS = ("json", "csv")
MOST_TOKENS = 2048

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting(wanted: bool) -> Iterator[None]:
    """Let task files run code inside a `with` block, if that is wanted."""
    token = _trusted.set(wanted or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


def read(path: Path) -> dict[str, Any]:
    """Read a task file.

    Raises:
        DataError: If it is none, or does what only trusted files may do.
    """
    if _trusted.get():  # the harness's own reader knows its `include` and `!function`
        load_yaml = import_module("lm_eval.tasks._yaml_loader").load_yaml
        return dict(load_yaml(path, resolve_func=True))
    import yaml

    try:
        text = read_text(path, limit=TASK_BYTES)
        try:
            check_yaml(text)
        except Refused as error:
            raise DataError(f"{path} cannot be read as a task: {error.message}", TRUST) from None
        config = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a task: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} is not one task: it holds no table")
    check_values(config)
    _check(config, path)
    return config


def _check(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what is not of the subset."""
    for name in config:
        if name not in _FIELDS:
            raise DataError(
                f"{path}: the field {name!r} is read from trusted task files only", TRUST
            )
    choices = (("output_type", _OUTPUTS), ("dataset_path", _READERS))
    for name, known in choices:
        if name in config and config[name] not in known:
            raise DataError(
                f"{path}: {name} is {config[name]!r}; expected {' or '.join(known)}", TRUST
            )
    arguments = config.get("dataset_kwargs") or {}
    if not isinstance(arguments, dict) or set(arguments) - {"data_files"}:
        raise DataError(f"{path}: dataset_kwargs may hold data_files only", TRUST)
    _check_files(arguments.get("data_files"), path)
    metrics = config.get("metric_list") or []
    for entry in metrics if isinstance(metrics, list) else [None]:
        if (
            not isinstance(entry, dict)
            or set(entry) - _METRIC_FIELDS
            or entry.get("metric") not in _METRICS
        ):
            raise DataError(
                f"{path}: unknown metric {entry!r}", f"Known: {', '.join(sorted(_METRICS))}"
            )
    generation = config.get("generation_kwargs") or {}
    if not isinstance(generation, dict) or set(generation) - _GENERATION:
        known = ", ".join(sorted(_GENERATION))
        raise DataError(f"{path}: generation_kwargs may hold {known} only", TRUST)
    most = generation.get("max_gen_toks", 0)
    if not isinstance(most, int) or not 0 <= most <= MOST_TOKENS:
        raise DataError(f"{path}: max_gen_toks is {most!r}; expected at most {MOST_TOKENS}")
    for name in _TEMPLATES:
        for text in _texts(config.get(name)):
            check_template(text, f"{path}: {name}")


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _check_files(files: Any, path: Path) -> None:
    """Refuse data that lie outside of the folder of the task."""
    folder = path.resolve().parent
    for name in _texts(list(files.values()) if isinstance(files, dict) else files):
        if not (folder / name).exists():
            continue  # said by who reads it
        check_file(folder / name, within=folder)


# ---------------------------------------------------------------------- templates

_FILTERS = frozenset({
    "trim", "lower", "upper", "title", "capitalize", "length", "int", "string", "list", "first",
    "last", "default", "replace", "join",
})  # fmt: skip
_METHODS = frozenset({
    "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "split", "replace",
    "join", "startswith", "endswith", "removeprefix", "removesuffix",
})  # fmt: skip
_NODES = frozenset({
    "Template", "Output", "TemplateData", "Name", "Getattr", "Getitem", "Const", "Filter", "If",
    "CondExpr", "Concat", "Add", "Sub", "Compare", "Operand", "List", "Tuple", "Not", "And", "Or",
    "Slice", "Call", "Neg",
})  # fmt: skip


@cache
def _environment() -> Any:
    """Return what templates of strangers are rendered with."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """Calls methods of texts only, and makes no text longer than TEXT_LENGTH."""

        intercepted_binops = frozenset({"+"})

        def call(self, context: Any, function: Any, /, *args: Any, **named: Any) -> Any:
            owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
            if not isinstance(owner, str) or name not in _METHODS or named:
                raise DataError("a template may call a few methods of texts only", TRUST)
            if name in ("replace", "join"):
                _bounded(owner, name, args)
            return super().call(context, function, *args)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            return _short(super().call_binop(context, operator, left, right))

    made = Bounded(
        loader=jinja2.BaseLoader(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    own = {name: made.filters[name] for name in _FILTERS - {"replace", "join"}}

    def replaced(text: str, old: str, new: str) -> str:
        _bounded(text, "replace", (old, new))
        return text.replace(old, new)

    def joined(parts: Any, between: str = "") -> str:
        return _short(between.join(str(_short(str(part))) for part in parts))

    made.filters.clear()
    made.filters.update(own | {"replace": replaced, "join": joined})
    made.globals.clear()
    return made


def _bounded(text: str, name: str, given: Any) -> None:
    """Refuse a call whose result would be too long, before it is made."""
    try:
        if name == "join":
            size = sum(len(str(part)) + len(text) for part in given[0])
        else:
            size = len(text) + text.count(given[0]) * len(given[1])
    except (IndexError, TypeError):
        return  # python says what is wrong
    if size > TEXT_LENGTH:
        raise DataError(f"a template makes a text of more than {TEXT_LENGTH:,} characters")


def _short(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > TEXT_LENGTH:
        raise DataError(f"a template makes a text of more than {TEXT_LENGTH:,} characters")
    return value


def check_template(text: str, where: str) -> None:
    """Refuse a template that does more than name fields and shape texts.

    Raises:
        DataError: Says what it does.
    """
    import jinja2
    from jinja2 import nodes

    if len(text) > TEMPLATE_LENGTH:
        raise DataError(
            f"{where} has {len(text):,} characters; expected at most {TEMPLATE_LENGTH:,}"
        )
    environment = _environment()
    try:
        tree = environment.parse(text)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise DataError(f"{where} is no template: {error}") from None
    for node in [tree, *tree.find_all(nodes.Node)]:
        kind = type(node).__name__
        name = getattr(node, "name" if kind == "Filter" else "attr", "")
        if kind not in _NODES:
            raise DataError(f"{where} uses {kind.lower()}, which needs a trusted task file", TRUST)
        if kind == "Filter" and name not in _FILTERS:
            raise DataError(f"{where} uses the filter {name!r}", TRUST)
        if kind == "Getattr" and str(name).startswith("_"):
            raise DataError(f"{where} asks for {name!r}, which is no field", TRUST)
        if kind == "Call" and getattr(getattr(node, "node", None), "attr", "") not in _METHODS:
            raise DataError(f"{where} calls something, which needs a trusted task file", TRUST)


@contextmanager
def templates() -> Iterator[None]:
    """Render the harness's templates with limits in a `with` block, unless files are trusted."""
    utils: Any = import_module("lm_eval.utils")
    if _trusted.get():
        yield
        return
    before = utils.env
    utils.env = _environment()
    try:
        yield
    finally:
        utils.env = before
