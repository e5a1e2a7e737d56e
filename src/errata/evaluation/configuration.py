"""What a run folder and its records say of an evaluation, and when two evaluations are one.

What is asked for by a path is compared by content when a run is resumed, see [`compared`][].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata import __version__
from errata.case import Case
from errata.data import LoadedData
from errata.evaluation.measures import Measures, file_of
from errata.evaluation.protocol import Protocol
from errata.store.digest import digest_of_value
from errata.store.files import sha256_of
from errata.store.runs import UNCOMPARED

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM

BY_CONTENT = ("references", "perplexity", "general")
"""Settings that name files: the section `content` holds what was in them."""

PLACES = ("general_data", "judge")
"""Settings that say where something is to be had, which changes no number."""

HASH_DIGITS = 16
"""Hexadecimal digits of fingerprints and hashes in records."""


def _content(protocol: Protocol, measures: Measures) -> dict[str, Any]:
    """Return what was in the files that the protocol names, wherever they lie."""
    tracker, references = measures.tracker, file_of(protocol.references)
    text, general = (tracker.text, tracker.general) if tracker is not None else (None, None)
    return {
        "references": None if references is None else sha256_of(references),
        "perplexity": text and text.id,
        "general": general and general.id,
    }


def config_of(
    lm: LM,
    editor: Editor,
    data: LoadedData,
    cases: Sequence[Case],
    protocol: Protocol,
    measures: Measures,
) -> dict[str, Any]:
    """Return the configuration of a run, JSON values."""
    return {
        "model": _model(lm),
        "editor": {"name": editor.name, **_made_of(lm, editor), "config": _settings(editor)},
        "data": {
            "name": data.name,
            "version": data.version
            or digest_of_value([_plain_case(case) for case in cases])[:HASH_DIGITS],
            "cases": len(cases),
            "ids": digest_of_value([case.id for case in cases])[:HASH_DIGITS],
        },
        "protocol": protocol.section(),
        "content": _content(protocol, measures),
        UNCOMPARED: {
            "stack_size": protocol.stack_size,
            "device": str(lm.device),
            "errata": __version__,
            "data": dict(data.asked),  # to read the cases again; a path is compared by content
        },
    }


def stamp_of(
    config: Mapping[str, Any], protocol: Protocol, done: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what every record says; a run that an earlier version began keeps its own hash."""
    begun = next(iter(done.values()), {})
    model, data = config["model"], config["data"]
    return {
        "editor": config["editor"]["name"],
        "model": model["name"],
        "fingerprint": model["fingerprint"][:HASH_DIGITS],
        "data": data["name"],
        "data_version": data["version"],
        "seed": protocol.seed,
        "errata": __version__,
        "config_hash": str(begun.get("config_hash") or config_hash(config)),
        "regime": protocol.regime,
    }


def _model(lm: LM) -> dict[str, Any]:
    return {
        "name": lm.name,
        "revision": lm.revision,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        **({"compute": "bfloat16"} if lm.roughly else {}),
    }


def _made_of(lm: LM, editor: Editor) -> dict[str, Any]:
    """Return what an editor is made of besides settings; asked first, as it may complete them."""
    made_of = getattr(editor, "made_of", None)
    found = made_of(lm) if made_of is not None else {}
    origin = getattr(editor, "settings_from", "")
    return {**found, **({"settings_from": origin} if origin else {})}


def _settings(editor: Editor) -> dict[str, Any]:
    config = editor.config
    if config is None:
        return {}
    return config.model_dump(mode="json") if hasattr(config, "model_dump") else dict(config)


def _plain_case(case: Case) -> list[Any]:
    return [case.id, [repr(edit) for edit in case.edits], [repr(probe) for probe in case.probes]]


# ---------------------------------------------------------------------- when a run goes on


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to be equal for a run to go on: `config.json` as this version writes it.

    Of a configuration that an earlier version wrote, what it could not say yet has its default.
    Files of texts and tasks count by their content, wherever they lie.
    """
    found = {key: value for key, value in config.items() if key != UNCOMPARED}
    if not isinstance(found.get("protocol"), Mapping):
        return found  # of a training
    editor = _table(found.get("editor"))
    # before every editor had the setting, none of them could be told to keep contradictions
    editor["config"] = {"conflicts": "refuse", **_table(editor.get("config"))}
    found["editor"] = editor
    own = dict(found["protocol"])
    if not own.get("generate", True):  # what wild has taken the place of
        del own["generate"]
    if "content" not in found:  # before the protocol was a class, it held contents by these names
        found["content"] = {name: own.get(name) for name in BY_CONTENT}
        data = _table(found.get("data"))
        own["keep_collisions"] = data.pop("keep_collisions", False)
        found["data"] = data
        suite = _table(found.pop("suite", None))
        own["suite"] = suite.pop("name", None)
        own["suite_set"] = suite
    found["protocol"] = {
        name: value
        for name, value in (Protocol().section() | own).items()
        if name not in BY_CONTENT + PLACES
    }
    return found


def _table(value: Any) -> dict[str, Any]:
    """Return a table of a configuration; empty where an altered one has none: it compares so."""
    return dict(value) if isinstance(value, Mapping) else {}


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the hash that records carry: over everything that is compared when a run goes on.

    Equal hashes mean the same model, editor, data and protocol. Where the run lies, its device and
    what runs side by side do not enter it.
    """
    return digest_of_value(compared(config))[:HASH_DIGITS]
