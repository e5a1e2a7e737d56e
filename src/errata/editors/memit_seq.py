"""MEMIT-seq: MEMIT that remembers the keys of earlier batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from errata.editors.memit import Memit, MemitConfig


class MemitSeqConfig(MemitConfig):
    """Settings of MEMIT-seq."""

    memory: bool = Field(
        default=True, description="Remember the keys of edits and spare them in later batches"
    )


class MemitSeq(Memit):
    """MEMIT for sequences of batches: keys of earlier edits are spared like ordinary ones."""

    name = "memit_seq"
    title = "MEMIT-seq"
    paper = (
        "Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, arXiv:2210.07229; memory of "
        "keys as in the code of Fang et al., AlphaEdit, ICLR 2025, arXiv:2410.02355"
    )
    needs = ("subject", "moments")
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = MemitSeqConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = Memit.published
