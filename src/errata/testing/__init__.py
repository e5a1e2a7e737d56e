"""For authors of editors: the tests that every editor has to pass. Needs pytest.

```python
from errata.testing import EditorContract


class TestNudge(EditorContract):
    name = "nudge"  # as registered in the entry-point group errata.editors
```
"""

import pytest

pytest.register_assert_rewrite("errata.testing.contract")

from errata.testing.contract import EditorContract  # noqa: E402 -- rewritten, as of the line above
from errata.testing.models import EDITS, GROUPS, MODELS, tiny_lm  # noqa: E402

__all__ = ["EDITS", "GROUPS", "MODELS", "EditorContract", "tiny_lm"]
