"""What differs between releases of transformers and torch, said in one place.

Nothing else in errata asks for a version or tries two names. Tested from the lower bounds of
pyproject.toml (`make test-oldest`) to the newest releases (`make test-newest`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")
"""What models call their keys and values: since transformers 5.24, and before."""


def cache_name(arguments: Collection[str]) -> str:
    """Return under which name a model that takes these arguments takes cached keys and values.

    A release that knows the new name warns of the old one; a release before, and a model's own
    code, know the old one only.
    """
    return next((name for name in CACHE_NAMES if name in arguments), CACHE_NAMES[-1])


def take_cache(given: MutableMapping[str, Any]) -> Any:
    """Take the cache out of a call's arguments, whatever its caller called it; None without one."""
    found = [given.pop(name, None) for name in CACHE_NAMES]
    return next((cache for cache in found if cache is not None), None)


def without_cache(output: Any) -> Any:
    """Return a model's output, a tuple or an object, without its keys and values."""
    if isinstance(output, tuple):
        return tuple(part for part in output if not hasattr(part, "get_seq_length"))
    # these objects keep what they once held in their dictionary: setting None is not enough
    return type(output)(**{name: part for name, part in output.items() if name not in CACHE_NAMES})


def dequantised() -> dict[str, Any]:
    """Return the arguments that make transformers unpack a GGUF file's weights when it loads them.

    Releases from 5.24 on would leave them packed where they find kernels; earlier ones know no
    other way.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own warnings and progress bars off the terminal inside a `with` block."""
    import tqdm.auto
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    offloading = logging.getLogger("accelerate.big_modeling")  # tells what was asked for
    level = offloading.level
    offloading.setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    start = tqdm.auto.tqdm.__init__
    # the reader of GGUF files draws a bar of its own, which no setting of transformers turns off
    silent = functools.partialmethod(start, disable=True)
    tqdm.auto.tqdm.__init__ = silent  # type: ignore[method-assign]
    try:
        yield
    finally:
        tqdm.auto.tqdm.__init__ = start  # type: ignore[method-assign]
        hf_logging.set_verbosity(verbosity)
        offloading.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()
