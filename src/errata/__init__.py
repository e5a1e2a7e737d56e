"""errata: corrections for what a language model believes, as small, reversible, verified patches.

```python
import errata

lm = errata.load("pocket")
patch = errata.edit(lm, "The capital of France is", "Rome", subject="France")
with patch.applied(lm):
    print(lm.generate(["The capital of France is"], max_new_tokens=3))
```

Everything is imported on first use: `import errata` brings neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Case": "errata.case",
    "Edit": "errata.case",
    "Probe": "errata.case",
    "ErrataError": "errata.errors",
    "LM": "errata.model.lm",
    "load": "errata.model.loading",
    "Patch": "errata.patch",
    "LowRank": "errata.patch",
    "Dense": "errata.patch",
    "Module": "errata.patch",
    "Route": "errata.patch",
    "Context": "errata.patch",
    "Stack": "errata.patch.stack",
    "Editor": "errata.editors",
    "EditorConfig": "errata.editors",
    "get_editor": "errata.editors",
    "edit": "errata.api",
    "evaluate": "errata.evaluation",
    "Protocol": "errata.evaluation",
    "load_cases": "errata.data",
    "load_edits": "errata.data",
    "save_cases": "errata.data",
    "report": "errata.reporting",
    "trace": "errata.api",
    "train": "errata.api",
    "tune": "errata.api",
    "TrainConfig": "errata.training",
}

__all__ = [
    "LM",
    "Case",
    "Context",
    "Dense",
    "Edit",
    "Editor",
    "EditorConfig",
    "ErrataError",
    "LowRank",
    "Module",
    "Patch",
    "Probe",
    "Protocol",
    "Route",
    "Stack",
    "TrainConfig",
    "__version__",
    "edit",
    "evaluate",
    "get_editor",
    "load",
    "load_cases",
    "load_edits",
    "report",
    "save_cases",
    "trace",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from errata.api import edit as edit
    from errata.api import trace as trace
    from errata.api import train as train
    from errata.api import tune as tune
    from errata.case import Case as Case
    from errata.case import Edit as Edit
    from errata.case import Probe as Probe
    from errata.data import load_cases as load_cases
    from errata.data import load_edits as load_edits
    from errata.data import save_cases as save_cases
    from errata.editors import Editor as Editor
    from errata.editors import EditorConfig as EditorConfig
    from errata.editors import get_editor as get_editor
    from errata.errors import ErrataError as ErrataError
    from errata.evaluation import Protocol as Protocol
    from errata.evaluation import evaluate as evaluate
    from errata.model.lm import LM as LM
    from errata.model.loading import load as load
    from errata.patch import Context as Context
    from errata.patch import Dense as Dense
    from errata.patch import LowRank as LowRank
    from errata.patch import Module as Module
    from errata.patch import Patch as Patch
    from errata.patch import Route as Route
    from errata.patch.stack import Stack as Stack
    from errata.reporting import report as report
    from errata.training import TrainConfig as TrainConfig


def __getattr__(name: str) -> Any:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module 'errata' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
