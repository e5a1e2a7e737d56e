"""Sweeps: editors × models × data sets × seeds from one recipe, here or on a Ray cluster.

```
recipe     a TOML file, checked
units      recipe -> trainings and cells, each one `errata` command with a folder of its own
check      every mistake that can be found before the first unit runs
backbones  widths and depths of the paper's models
counts     parameters of trained editors' networks
estimate   memory and time of a unit
state      sweep.json: what ran, how often, how it ended
schedule   order, retries, what to do when something fails
child      one unit as a process that ends with its parent
local      units as processes of this machine
cluster    units as tasks of a Ray cluster
scores     summaries of finished cells -> one table
```
"""

from __future__ import annotations
