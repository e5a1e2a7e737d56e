"""Settings that suit a loaded model, for an editor that was asked for by name alone.

In this order: what the user set; what `errata tune` found for these very weights; what was
published or found for a model of this name; what the editor knows by the shape of a model.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.config import settings_from
from errata.errors import ConfigError
from errata.store.cache import folder_name, load_json, save_json
from errata.store.files import cache_root

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class Found:
    """What a search found for one editor and one model.

    Attributes:
        editor: The editor.
        settings: Those that were searched.
        facts: Facts that decided.
        id: Names the search.
        made: When it ended.
        report: What it measured, JSON values.
    """

    editor: str
    settings: Mapping[str, Any]
    facts: int
    id: str
    made: str
    report: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """Where the settings come from, in a few words."""
        return f"tuned for {self.editor} on {self.facts} facts that this model knows ({self.id})"


def folder_of(lm: LM) -> Path:
    """Return the folder of what was found for these weights."""
    return cache_root() / "tuned" / f"{folder_name(lm.name)}-{lm.fingerprint[:16]}"


def keep_found(lm: LM, found: Found) -> Path:
    """Write down what was found; editors that are asked for by name take it from now on.

    Raises:
        ErrataError: If it cannot be written.
    """
    path = folder_of(lm) / f"{found.editor}.json"
    save_json(path, {"format": FORMAT, **asdict(found)})
    return path


def found_for(lm: LM, editor: str) -> Found | None:
    """Return what was found for these weights; of a pair (`memit+blue`) else what its host has.

    The name of the model does not matter.
    """
    root = cache_root() / "tuned"
    if not root.is_dir():
        return None  # spares the fingerprint of a large model
    for name in dict.fromkeys((editor, editor.partition("+")[0])):
        for path in sorted(root.glob(f"*-{lm.fingerprint[:16]}/{name}.json")):
            stored = load_json(path)
            if isinstance(stored, dict) and stored.pop("format", None) == FORMAT:
                return Found(**stored)
    return None


def fitted(editor: Editor, lm: LM) -> Editor:
    """Return the editor with settings that suit this model, as far as nobody asked for others.

    An editor that was not built for a model by name, and one with published settings that were
    asked for, is returned as it is.

    Args:
        editor: The editor, as `get_editor(…, model=…)` built it.
        lm: The model.
    """
    if editor.asked is None:
        return editor
    found = found_for(lm, editor.name)
    if found is not None:
        origin, settings = found.origin, found.settings
    elif not editor.known_settings(lm):
        origin, settings = editor.rule_by_shape(lm)
    else:
        return editor
    fields = type(editor.config).model_fields
    new = {k: v for k, v in settings.items() if k not in editor.asked and k in fields}
    if not new:
        return editor
    try:
        checked = settings_from(type(editor.config), new, where=f"settings {origin}")
    except ConfigError as error:  # written by another version
        log.warning("%s; they are left out", error.message)
        return editor
    made = copy.copy(editor)
    values = {name: getattr(checked, name) for name in new}
    made.config = editor.config.model_copy(update=values)
    made.config.model_fields_set.intersection_update(editor.config.model_fields_set)
    made.origins = {**editor.origins, **dict.fromkeys(new, origin)}
    shown = ", ".join(f"{name}={plain(value)}" for name, value in values.items())
    made.settings_from = f"{origin}: {shown}"
    return made


def plain(value: Any) -> str:
    """Return the value of a setting as it is typed."""
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(str, value)) + "]"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
