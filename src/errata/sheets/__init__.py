"""Fact sheets: corrections of a model as files under version control, and the patch made of them.

```
fact          one correction: what to write, what has to follow, what must not move, until when
sheet         a folder: errata.toml and facts/*.jsonl or *.yaml
faults        what contradicts itself in a sheet, all of it
schema        what a sheet may say, as JSON Schema
building      one patch out of all facts that are valid; only what changed is edited again
checking      which facts hold, on the base model and under the patch
serving       the same of a running server
changelog     what each build changed about the one before
difference    two sheets, or two builds, in words
writing       a new sheet, and a fact taken out of one
```
"""

from errata.sheets.difference import difference
from errata.sheets.fact import Fact
from errata.sheets.sheet import Sheet, load_sheet
from errata.sheets.writing import new_sheet, without_fact

__all__ = ["Fact", "Sheet", "difference", "load_sheet", "new_sheet", "without_fact"]
