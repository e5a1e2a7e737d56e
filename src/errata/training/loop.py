"""The training loop of every trained editor, on accelerate: one process or many."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from errata.errors import ConfigError, DataError, RunError
from errata.model.multiplying import fast_layers, fast_products
from errata.model.packing import packs
from errata.model.passes import wide_type
from errata.nets import weights
from errata.nets.update import EditNetwork
from errata.store.runs import RunFolder
from errata.training import checkpoint
from errata.training.card import write_card
from errata.training.checkpoint import Progress
from errata.training.config import TrainConfig
from errata.training.groups import Group, merged
from errata.training.log import LOG, Log
from errata.training.prepared import Prepared
from errata.training.processes import Interrupt, add_up, finish, make_accelerator, start_tracker
from errata.training.sampler import Sampler, noise_for

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.training.trainable import Trainable

BEST, FILES = "best", "prepared"
NOT_COMPARED = {"tracker", "log_every", "save_every", "memory_gb", "disk_gb"}
"""Settings that may change when a run is resumed: they do not change what is learnt."""

Report = Callable[[str, int, int], None]
Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Trained:
    """What a training run left behind.

    Attributes:
        folder: Folder of the run.
        best: Folder of the networks with the lowest validation loss.
        summary: What `summary.json` holds.
    """

    folder: Path
    best: Path
    summary: dict[str, Any]


class Trainer:
    """One training run.

    Args:
        lm: The frozen base model.
        editor: Settings of the networks; it adopts the best networks at the end.
        pools: Training groups, one list per data set; the first is the main one.
        validation: Groups that choose the checkpoint; may be empty.
        config: Settings of the loop.
        out: Folder of the run.
        about: What was trained on, by whom (JSON values): compared when a run is resumed.
        report: Called with (what, done, total).
        prepared: What was computed for these groups before, to share it between runs.
        watch: Called with every entry of the log.
    """

    def __init__(
        self,
        lm: LM,
        editor: Trainable,
        pools: Sequence[Sequence[Group]],
        validation: Sequence[Group],
        config: TrainConfig,
        out: Path,
        about: Mapping[str, Any],
        report: Report | None = None,
        prepared: Prepared | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.lm, self.editor, self.config, self.out = lm, editor, config, out
        self.groups = [group for pool in pools for group in pool]
        self.validation = list(validation)
        self.report = report or (lambda what, done, total: None)
        self.watch = watch or (lambda entry: None)
        self.accelerator = make_accelerator(lm, config, out)
        if config.batch < self.accelerator.num_processes:
            raise ConfigError(
                f"batch={config.batch} for {self.accelerator.num_processes} processes; "
                "expected a group per process at least"
            )
        if not self.groups:
            raise DataError("there is no training group", "Give another --data, or a higher limit.")
        if not any(g.gens for g in self.groups) and not config.include_edit:
            raise DataError(
                "no training group has a generality question, and include_edit is off",
                "There is nothing to learn from. Give another --data, or --train include_edit=true",
            )
        sizes = [len(pool) for pool in pools]
        self.sampler = Sampler(
            sizes, config.batch * config.merge, config.seed, config.augment_share
        )
        self.sites = editor.sites(lm)
        settings = editor.settings.model_dump(mode="json", exclude=set(editor.untrained))
        self.facts: dict[str, Any] = {
            "editor": editor.name,
            "model": lm.name,
            "fingerprint": lm.fingerprint,
            "matrices": [site.path for _, site in self.sites],
            "settings": settings,
            "training": config.model_dump(mode="json", exclude=NOT_COMPARED),
            **({"compute": "bfloat16"} if lm.roughly else {}),
            **about,
        }
        self._prepared = prepared

    # ------------------------------------------------------------------ the run

    def run(self, *, resume: bool = False, force: bool = False) -> Trained:
        """Train, or go on training; see [`errata.api.train`][]."""
        main = self.accelerator.is_main_process
        here = [self.lm.device] if self.lm.device.type == "cuda" else []
        with ExitStack() as context:
            context.enter_context(torch.random.fork_rng(devices=here))
            folder = None
            if main:
                made = RunFolder.create(self.out, self.facts, resume=resume, force=force)
                folder = context.enter_context(made)
                if not resume:
                    _clear(self.out)
            self.accelerator.wait_for_everyone()
            shutil.rmtree(self.out / FILES, ignore_errors=True)  # of a run that was killed
            context.callback(shutil.rmtree, self.out / FILES, ignore_errors=True)
            kind = context.enter_context(fast_products(self.lm))
            self._set_up()
            self.objective.packed = packs(self.lm)
            if self.config.mixed_precision == "no":
                context.enter_context(fast_layers(self.network, kind))
            progress = self._start(resume)
            log = Log(self.out, progress.step) if main else None
            context.callback(finish, self.accelerator)
            start_tracker(self.accelerator, self.config, progress.step)
            progress = self._loop(progress, log)
            summary = self._summary(progress)
            if folder is not None:
                folder.finish(summary)
            self.accelerator.wait_for_everyone()
            weights.load_into(self.network, self.out / BEST)
        self.editor.adopt(
            self.lm, self.network.requires_grad_(False).eval(), str((self.out / BEST).resolve())
        )
        return Trained(self.out, self.out / BEST, summary)

    def _set_up(self) -> None:
        config = self.config
        self.prepared = self._prepared or Prepared(
            self.lm, self.sites, [*self.groups, *self.validation], config.memory_gb,
            lambda done, total: self.report("preparing", done, total),
            config.disk_gb, self.out / FILES,
        )  # fmt: skip
        self.objective = self.editor.objective(self.lm, self.prepared, config)
        torch.manual_seed(config.seed)
        network = self.editor.build(self.sites, self.lm)
        self.network: EditNetwork = network.to(self.lm.device, wide_type(self.lm.dtype))
        rates = self.network.edit_rates()
        known = {id(p) for p in rates}
        rest = [p for p in self.network.parameters() if id(p) not in known]
        groups = [{"params": rest, "lr": config.lr}]
        if rates:
            groups.append({"params": rates, "lr": config.rate_lr or 10 * config.lr})
        self._base_lr = [group["lr"] for group in groups]
        optimizer = torch.optim.Adam(groups, fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.network, optimizer)

    def _start(self, resume: bool) -> Progress:
        """Return where to go on: at a checkpoint, or at calibrated edit learning rates."""
        if resume and (self.out / checkpoint.FILE).is_file():
            return checkpoint.load(self.out, self.network, self.optimizer.optimizer, self.facts)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        every = max(1, len(self.groups) // self.config.calibration_edits)
        sample = self.groups[::every][: self.config.calibration_edits]
        self.objective.start(self.network, sample, sample[rank::world] or sample[:1])
        if world > 1:  # measured by each for itself, so the last bit may differ
            for rates in self.network.edit_rates():
                torch.distributed.broadcast(rates.data, 0)
        return Progress()

    def _loop(self, progress: Progress, log: Log | None) -> Progress:
        config = self.config
        sums: dict[str, float] = {}
        since = 0
        whole = True  # whether networks, optimiser and normalisers are those of `progress`
        with Interrupt() as interrupt:
            try:
                while progress.step < config.steps and not self._is_stuck(progress):
                    began = time.perf_counter()
                    whole = False
                    found = self._step(progress.step, interrupt)
                    took = time.perf_counter() - began
                    stop = bool(found.pop("stop"))
                    step = progress.step + 1
                    progress = replace(progress, step=step, seconds=progress.seconds + took)
                    since += 1
                    for key, value in found.items():
                        sums[key] = sums.get(key, 0.0) + value
                    last = step == config.steps
                    if step % config.log_every == 0 or last:
                        means = {key: value / since for key, value in sums.items()}
                        self._log(log, progress, {"kind": "train", **means})
                        sums, since = {}, 0
                    if step % config.validate_every == 0 or last:
                        progress = self._validate(progress, log)
                    whole = True
                    if step % config.save_every == 0 or last or self._is_stuck(progress):
                        self._save(progress)
                    self.report("training", step, config.steps)
                    alone = self.accelerator.num_processes == 1
                    if stop or (alone and interrupt.asked and not last):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if whole:
                    self._save(progress)
                raise
        return progress

    def _is_stuck(self, progress: Progress) -> bool:
        """Whether validation has not become better for as long as `patience` allows."""
        patience = self.config.patience
        return patience is not None and progress.step - progress.best_step >= patience

    def _step(self, step: int, interrupt: Interrupt) -> dict[str, float]:
        config, accelerator = self.config, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        everyone = self._batch(step)
        numbers = list(range(rank, len(everyone), world))
        mine = [everyone[i] for i in numbers]
        factor = _rate_factor(config, step)
        for group, rate in zip(self.optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = rate * factor
        self.network.train()
        self.optimizer.zero_grad()
        found = self.objective.run(
            self.wrapped,
            mine,
            counts=self.objective.counts(everyone),
            noise=noise_for(config.seed, step, everyone, numbers),
            backward=accelerator.backward,
            share=float(world),
            observe=self.network.observe,
        )
        # processes stop together: one that went on would wait for the others for ever
        found = add_up(accelerator, found | {"stop": float(world > 1 and interrupt.asked)})
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip)
        size = 0.0 if norm is None else float(norm)
        # scaled float16 gradients overflow now and then: the scaler leaves such a step out
        scaled = config.mixed_precision == "fp16"
        if not math.isfinite(found["total"]) or not (scaled or math.isfinite(size)):
            what = "gradient" if math.isfinite(found["total"]) else "loss"
            raise self._not_finite(f"{what} of step {step + 1}", everyone)
        self.optimizer.step()
        return found | {"grad_norm": size, "lr": factor}

    def _batch(self, step: int) -> list[Group]:
        """Return the groups of a step; `merge` records make one."""
        drawn = [self.groups[i] for i in self.sampler.indices(step)]
        if self.config.merge == 1:
            return drawn
        k = self.config.merge
        return [merged(drawn[i : i + k]) for i in range(0, len(drawn), k)]

    @torch.no_grad()
    def _not_finite(self, what: str, groups: Sequence[Group]) -> RunError:
        """Return the error for a NaN, naming the groups that bring it by themselves, if any do."""
        self.network.eval()
        bad = [g.id for g in groups if not self.objective.is_finite(self.network, g)]
        named = bad if 0 < len(bad) < len(groups) else [g.id for g in groups]
        names = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        alone = "; these bring it by themselves" if named is bad else ""
        return RunError(
            f"the {what} is NaN or infinite (groups: {names}{alone}); "
            "the last checkpoint and the best networks are kept",
            "Remove a broken record; else a smaller --train lr=…, or --dtype float32, and --resume "
            "or --force.",
        )

    # ------------------------------------------------------------------ validation, files

    @torch.no_grad()
    def _validate(self, progress: Progress, log: Log | None) -> Progress:
        """Measure the losses without noise on the validation groups; keep the best networks."""
        if not self.validation:
            self._keep(progress, None)
            return replace(progress, best_step=progress.step)
        self.network.eval()
        found = self.losses(self.validation)
        self._log(log, progress, {"kind": "validation", **found})
        if not math.isfinite(found["total"]):
            raise self._not_finite(f"validation loss at step {progress.step}", self.validation)
        if progress.best is None or found["total"] < progress.best:
            progress = replace(progress, best=found["total"], best_step=progress.step)
            self._keep(progress, found)
        return progress

    def losses(self, groups: Sequence[Group]) -> dict[str, float]:
        """Return the losses of groups without noise, in fixed batches."""
        counts = self.objective.counts(groups)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size = max(1, self.config.batch // world)
        total: dict[str, float] = {}
        mine = list(groups)[rank::world]
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            for key, value in self.objective.run(self.network, part, counts=counts).items():
                total[key] = total.get(key, 0.0) + value
        keys = ("total", "sg", "il", "penalty")
        return add_up(self.accelerator, {key: total.get(key, 0.0) for key in keys})

    def _keep(self, progress: Progress, found: Mapping[str, float] | None) -> None:
        if not self.accelerator.is_main_process:
            return
        facts = {"step": progress.step, "validation": dict(found) if found else None}
        weights.save(
            self.out / BEST,
            self.network,
            editor=self.editor.name,
            settings=self.facts["settings"],
            lm=self.lm,
            card=write_card(self.facts, facts),
            facts={**facts, "training": self.facts["training"], "data": self.facts.get("data")},
        )

    def _save(self, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save(self.out, self.network, self.optimizer.optimizer, progress, self.facts)

    def _log(self, log: Log | None, progress: Progress, entry: Mapping[str, Any]) -> None:
        if log is None:
            return
        rate = progress.step / progress.seconds if progress.seconds else 0.0
        left = (self.config.steps - progress.step) / rate if rate else 0.0
        times = {"seconds": round(progress.seconds, 2), "steps_per_second": round(rate, 3)}
        line = {"step": progress.step, **entry, **times, "eta_seconds": round(left)}
        log.write(line)
        self.watch(line)
        if self.config.tracker != "none":
            kind = entry["kind"]
            numbers = {f"{kind}/{k}": v for k, v in entry.items() if isinstance(v, float)}
            self.accelerator.log(numbers, step=progress.step)

    def _summary(self, progress: Progress) -> dict[str, Any]:
        return {
            **{k: self.facts[k] for k in ("editor", "model", "fingerprint", "matrices")},
            **asdict(progress),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "processes": self.accelerator.num_processes,
            "steps_per_second": progress.step / progress.seconds if progress.seconds else None,
            "train_groups": len(self.groups),
            "validation_groups": len(self.validation),
            "stopped_early": progress.step < self.config.steps,
            "cpu_seconds": time.process_time(),
        }


def _rate_factor(config: TrainConfig, step: int) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero."""
    factor = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    start = config.decay_from * config.steps
    if step >= start and config.steps > start:
        factor *= (config.steps - step) / (config.steps - start)
    return factor


def _clear(out: Path) -> None:
    """Remove what an earlier run left that is not written anew at once."""
    names = (checkpoint.FILE, LOG, *(f"{BEST}/{n}" for n in weights.FILES))
    for name in names:
        (out / name).unlink(missing_ok=True)
