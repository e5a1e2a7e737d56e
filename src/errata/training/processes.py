"""Processes and trackers of a run, through accelerate; and ctrl-C, which waits for a step's end."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from errata.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from accelerate import Accelerator

    from errata.model.lm import LM
    from errata.training.config import TrainConfig


def make_accelerator(lm: LM, config: TrainConfig, out: Path) -> Accelerator:
    """Return what knows about the other processes.

    Raises:
        ConfigError: If the precision needs another device.
        MissingExtra: If the tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    tracker = None if config.tracker == "none" else config.tracker
    if tracker is not None:
        _need(tracker)
    if config.mixed_precision == "fp16" and lm.device.type == "cpu":
        raise ConfigError(
            "mixed_precision=fp16 needs a GPU", "On a CPU: --train mixed_precision=no"
        )

    def make() -> Accelerator:
        return Accelerator(
            cpu=lm.device.type == "cpu",
            device_placement=False,
            mixed_precision=config.mixed_precision,
            log_with=tracker,
            project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out)),
        )

    # accelerate remembers device and precision of the first run in a process, and refuses others
    try:
        made = make()
        if made.device.type == lm.device.type:
            return made
    except ValueError:
        pass
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return make()


def start_tracker(accelerator: Accelerator, config: TrainConfig, step: int) -> None:
    """Start the tracker that was asked for; what it knows of steps after `step` is replaced."""
    if config.tracker == "none":
        return
    given = {"tensorboard": {"purge_step": step + 1}} if config.tracker == "tensorboard" else {}
    settings = {k: v for k, v in config.model_dump(mode="json").items() if v is not None}
    accelerator.init_trackers("errata", settings, init_kwargs=given)


def _need(tracker: str) -> None:
    from importlib.util import find_spec

    if find_spec(tracker) is None:
        raise MissingExtra(f"the {tracker} logs of a run", tracker, "track")


def finish(accelerator: Accelerator) -> None:
    """Close trackers; the processes stay joined until they end.

    Leaving the group here would make a next run in these processes meet anew at the same
    address, where a fast process can reach the store that a slow one is about to close, and
    then waits for it for ever.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.num_processes > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def add_up(accelerator: Accelerator, found: Mapping[str, float]) -> dict[str, float]:
    """Return the sums over all processes."""
    if accelerator.num_processes == 1:
        return dict(found)
    keys = sorted(found)
    values = torch.tensor([found[key] for key in keys], dtype=torch.float64)
    total: Any = accelerator.reduce(values.to(accelerator.device), "sum")
    sums = dict(zip(keys, total.tolist(), strict=True))
    return {key: sums[key] for key in found}


class Interrupt:
    """Lets ctrl-C wait until a step is whole; a second one does not wait.

    Attributes:
        asked: Whether ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._old: Any = None

    def __enter__(self) -> Interrupt:
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._old = signal.signal(signal.SIGINT, self._on)
        return self

    def __exit__(self, *error: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
            self._old = None

    def _on(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
