"""The built-in world as a data set: UniEdit's schema, made on the spot, no download."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from errata.data._base import Opened
from errata.data._records import Record
from errata.data.uniedit import UniEdit, UniEditOptions, records_of
from errata.errors import ConfigError
from errata.store.digest import digest_of


class WorldOptions(UniEditOptions):
    """Which world."""

    scale: str = Field("pocket", description="size of the world: pocket or test")
    seed: int = Field(0, description="seed of the world")
    variants: int | None = Field(
        None,
        ge=1,
        description="records per fact, each with another new object and other questions; none: "
        "one, and four in the small splits of the test world",
    )


class World(UniEdit):
    """The built-in world: invented facts that the pocket model knows, with UniEdit's questions."""

    name = "world"
    title = "Built-in world"
    paper = "made by errata in the schema of UniEdit, https://arxiv.org/abs/2505.12345"
    splits = ("test", "train", "val", "test_domains")
    default = "test"
    sizes: ClassVar[dict[str, int]] = {
        "test": 419, "train": 4_596, "val": 209, "test_domains": 528,
    }  # fmt: skip
    marks = ()  # files of a world are files of UniEdit's form
    Options = WorldOptions
    options: WorldOptions

    def open(self, path: Path | None, split: str | None) -> Opened:
        """Build the world and its questions; a path reads files that a world wrote before."""
        if path is not None:
            return super().open(path, split)
        self._check_split(split := split or "test")
        text = _written(self.options.scale, self.options.seed, split, self.options.variants)
        digest = digest_of(text)
        source = f"errata.world (scale {self.options.scale}, seed {self.options.seed})"
        # through JSON, so that what is mapped is what a file of this world holds
        return Opened(_all(json.loads(text)), digest, source, split)

    def download(self, split: str | None) -> list[Path]:
        """There is nothing to download."""
        raise ConfigError("the built-in world is made, not downloaded", "Use --data world")


@lru_cache(maxsize=len(World.splits))
def _written(scale: str, seed: int, split: str, variants: int | None) -> str:
    """Return the file of a split, a few megabytes: worked out once, however often it is opened."""
    from errata.world import benchmark, build_world

    return json.dumps(benchmark(build_world(scale, seed), split, variants), ensure_ascii=False)


def _all(domains: Mapping[str, Any]) -> Iterable[Record]:
    for domain, records in domains.items():
        yield from records_of(records, f"world/{domain}", domain)
