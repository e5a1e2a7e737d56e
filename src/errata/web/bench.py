"""One tab of the browser: what is edited there, its history with undo, and what is taken along.

```
            history of a model      at = 2
   0 the unedited model   1 France → Tokyo   2 Italy → Oslo   3 Spain → Lima
                                             └ now            └ undone: redo brings it back

   edit: makes step at + 1 on top of step at; what was undone is dropped
   a step holds what one or two editors made of a wish, and which of them counts
```

A bench does one thing at a time; what takes time is a job. A job that is cancelled or fails leaves
everything as it was. Every model has a history of its own, so that nothing is lost by looking at
another one.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.errors import EditError, ErrataError, PatchError, RunError
from errata.web import files, work
from errata.web.jobs import Job
from errata.web.work import Made, Wish

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.web.models import Models

GRACE = 20.0
"""Seconds that work goes on for a tab that is gone: it may be loading the page again."""

STEPS = 200
"""Steps of a history; the oldest are kept, and no more are made."""


@dataclass(frozen=True)
class Step:
    """One step of a history.

    Attributes:
        label: What was done, in a few words.
        made: What one or two editors made of it.
        chosen: Whose patch counts.
    """

    label: str
    made: tuple[Made, ...]
    chosen: int = 0

    @property
    def patch(self) -> Patch:
        """The patch that holds after this step, with all before it."""
        return self.made[self.chosen].patch


@dataclass
class History:
    """The steps on one model, and which of them is now."""

    steps: list[Step] = field(default_factory=list)
    at: int = 0

    @property
    def now(self) -> Step | None:
        """The step that holds now; None: the unedited model."""
        return self.steps[self.at - 1] if self.at else None

    def add(self, step: Step) -> None:
        """Make a step; what was undone is dropped."""
        self.steps[self.at :] = [step]
        self.at += 1


@dataclass(frozen=True)
class Download:
    """A file to take along.

    Attributes:
        path: The archive.
        use: Command lines that use it.
    """

    path: Path
    use: str


@dataclass(frozen=True)
class Answer:
    """What was asked of the model as it is now: text, before, after."""

    rows: tuple[tuple[str, str, str | None], ...]


class Bench:
    """What one tab works on.

    Attributes:
        models: The models of the server.
        folder: A folder of its own for uploads and downloads; removed by `close`.
        model: Name of the model; None: none was chosen yet.
        job: What runs, or ran last.
        notice: What is to be said beside the result.
        answer: Answers to the questions asked last.
        download: What was made for taking along last.
    """

    def __init__(
        self, models: Models, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.models, self.folder, self._clock = models, folder, clock
        self.model: str | None = None
        self.about = ""
        self.job: Job[Any] | None = None
        self.notice = ""
        self.answer: Answer | None = None
        self.download: Download | None = None
        self._histories: dict[str, History] = {}
        self._guard = threading.RLock()
        self._gone_since: float | None = None
        self._uploads = 0

    # ------------------------------------------------------------------ what is there

    @property
    def history(self) -> History:
        """The history on the model that is chosen."""
        return self._histories.setdefault(self.model or "", History())

    @property
    def patch(self) -> Patch | None:
        """The patch that holds now."""
        now = self.history.now
        return None if now is None else now.patch

    @property
    def busy(self) -> bool:
        """Whether something runs."""
        return self.job is not None and self.job.running

    @property
    def error(self) -> ErrataError | None:
        """What went wrong in what ran last; None: nothing."""
        return None if self.job is None else self.job.error

    @property
    def stopped(self) -> bool:
        """Whether what ran last was cancelled."""
        return self.job is not None and self.job.stopped

    # ------------------------------------------------------------------ at once

    def undo(self) -> None:
        """Go one step back.

        Raises:
            RunError: If something runs, or there is nothing to undo.
        """
        self._move(-1, "undo")

    def redo(self) -> None:
        """Take back the last undo.

        Raises:
            RunError: If something runs, or nothing was undone.
        """
        self._move(1, "redo")

    def _move(self, by: int, what: str) -> None:
        with self._guard:
            self._check_idle()
            history = self.history
            if not 0 <= history.at + by <= len(history.steps):
                raise RunError(f"there is nothing to {what}")
            history.at += by
            self.job = None
            self._forget()

    def choose(self, number: int) -> None:
        """Let the patch of the other editor count for the step that is now.

        Raises:
            RunError: If something runs, or there is no such patch.
        """
        with self._guard:
            self._check_idle()
            now = self.history.now
            if now is None or not 0 <= number < len(now.made):
                raise RunError("there is no such result to keep")
            self.history.steps[self.history.at - 1] = replace(now, chosen=number)
            self.job = None
            self._forget()

    def cancel(self) -> None:
        """Ask what runs to end."""
        job = self.job
        if job is not None:
            job.cancel()

    def _forget(self) -> None:
        """Leave out what was said of another state."""
        self.notice, self.answer, self.download = "", None, None

    # ------------------------------------------------------------------ tabs that come and go

    def leave(self) -> None:
        """Note that no tab shows this bench any more: what runs ends, unless one comes back."""
        self._gone_since = self._clock()

    def come(self) -> None:
        """Note that a tab shows this bench."""
        self._gone_since = None

    def _given_up(self) -> bool:
        gone = self._gone_since
        return gone is not None and self._clock() - gone > GRACE

    def close(self, seconds: float = 10.0) -> None:
        """End what runs, and remove the folder."""
        self.cancel()
        if self.job is not None:
            self.job.wait(seconds)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------ what takes time

    def load(self, name: str) -> Job:
        """Choose a model, and load it."""
        name = self.models.check(name)

        def do(job: Job, lm: LM) -> str:
            return repr(lm).strip("<>").partition(" · ")[2]

        def done(found: str) -> None:
            self.model, self.about = name, found
            self._forget()

        return self._start(f"loading {name}", do, done, name)

    def edit(self, wish: Wish) -> Job:
        """Make an edit on top of what is there.

        Raises:
            EditError: If a field is empty.
        """
        wish.edit()
        if len(set(wish.editors)) != len(wish.editors):
            raise EditError("both editors are the same", "Choose another one to compare with.")
        if len(self.history.steps[: self.history.at]) >= STEPS:
            raise EditError(f"the history has {STEPS} steps", "Download the patch, and reload.")
        earlier = self.patch

        def do(job: Job, lm: LM) -> tuple[Made, ...]:
            return work.edit(job, lm, wish, earlier)

        def done(made: tuple[Made, ...]) -> None:
            self._forget()
            subject = wish.subject.strip() or wish.prompt.strip()
            self.history.add(Step(f"{subject} → {wish.target.strip()}", made))

        return self._start("making the edit", do, done)

    def ask(self, questions: Sequence[str]) -> Job:
        """Ask questions of the model as it is now."""
        patch = self.patch

        def do(job: Job, lm: LM) -> Answer:
            return Answer(work.ask(job, lm, questions, patch))

        def done(found: Answer) -> None:
            self.answer = found

        return self._start("asking", do, done)

    def export(self, form: files.Form) -> Job:
        """Pack what is there to be taken along.

        Raises:
            PatchError: If there is nothing.
        """
        patch, now = self.patch, self.history.now
        if patch is None or now is None:
            raise PatchError("there is no edit to take along", "Make one, or import one.")

        def do(job: Job, lm: LM) -> Download:
            job.stage(f"packing the {form}")
            target = self.folder / files.slug(now.label, "" if form == "patch" else form)
            shutil.rmtree(target, ignore_errors=True)
            use = files.written(lm, patch, form, target)
            job.check()
            return Download(files.packed(target), use)

        def done(found: Download) -> None:
            self.download = found

        return self._start(f"packing the {form}", do, done)

    def bring(self, uploads: Sequence[Path]) -> Job:
        """Import a patch or an adapter; it takes the place of what is there, until it is undone."""
        self._uploads += 1
        into = self.folder / f"upload-{self._uploads}"
        name = uploads[0].name if uploads else ""

        def do(job: Job, lm: LM) -> Made:
            job.stage("unpacking")
            into.mkdir(parents=True)
            try:
                patch = files.read(lm, files.unpacked(uploads, into), name)
            finally:
                shutil.rmtree(into, ignore_errors=True)
            return work.look_at(job, lm, patch, name)

        def done(made: Made) -> None:
            replaced = self.patch is not None
            self._forget()
            self.history.add(Step(f"imported {name}", (made,)))
            if replaced:
                self.notice = "It took the place of the edits before it; Undo brings them back."

        return self._start("importing", do, done)

    # ------------------------------------------------------------------ one thing at a time

    def _check_idle(self) -> None:
        if self.busy:
            raise RunError("something is still running in this tab", "Wait for it, or cancel it.")

    def _start(
        self,
        what: str,
        do: Callable[[Job, LM], Any],
        done: Callable[[Any], None],
        name: str | None = None,
    ) -> Job:
        """Begin a job on the model; what it returns counts if nobody has cancelled it.

        Raises:
            RunError: If something runs, or no model is chosen.
        """
        with self._guard:
            self._check_idle()
            chosen = name or self.model
            if chosen is None:
                raise RunError("no model is loaded yet", "Choose one, and load it.")

            def run(job: Job) -> None:
                try:
                    if not self.models.loaded(chosen):
                        job.stage(f"loading {chosen}")
                    lm = self.models.get(chosen)
                    _ = lm.fingerprint  # of the weights as they are, before anything is done
                    job.check()
                    found = do(job, lm)
                    job.check()
                except BaseException:
                    self.models.restored(chosen)
                    raise
                with self._guard:
                    done(found)

            self.job = Job(run, self.models.lock, what, self._given_up, self._clock).start()
            return self.job
