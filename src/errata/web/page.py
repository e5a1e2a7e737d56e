"""The page in Gradio: fields and buttons; what they do is the bench's business.

Every event takes the key of its tab, acts on that tab's bench, follows the job that comes of it and
shows what is there then. Nothing is kept in Gradio's own state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.errors import ErrataError, MissingExtra
from errata.store.words import size
from errata.web import views
from errata.web.files import FORMS
from errata.web.work import Wish, editors_for, example

try:
    import gradio as gr  # pyright: ignore[reportMissingImports]
except ImportError:
    raise MissingExtra("pages in the browser", "gradio", "web") from None

if TYPE_CHECKING:
    from errata.web.bench import Bench
    from errata.web.jobs import Job
    from errata.web.room import Room

STYLE = Path(__file__).with_name("style.css")

LOOKS = 0.25
"""Seconds between two looks at what runs."""

NO_SECOND = "none"

KEY = """(key, prompt) => {
  const address = new URL(window.location);
  let own = address.searchParams.get("tab") || "";
  if (!/^[0-9a-f]{32}$/.test(own)) {
    own = Array.from(crypto.getRandomValues(new Uint8Array(16)),
                     b => b.toString(16).padStart(2, "0")).join("");
    address.searchParams.set("tab", own);
    window.history.replaceState(null, "", address);
  }
  return [own, prompt];
}"""
"""Gives a tab a key that nobody can guess, and keeps it in its address."""

LABELS = {
    "patch": "Patch (errata)",
    "lora": "LoRA (PEFT, vLLM)",
    "gguf": "GGUF adapter (llama.cpp, Ollama)",
}


def lines(text: str | None) -> tuple[str, ...]:
    """Return the lines of a field that hold something."""
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


class Page:
    """Builds the page, and connects it to the benches.

    Args:
        room: The benches.
        first: The model that a new tab begins with.
    """

    def __init__(self, room: Room, first: str) -> None:
        self.room, self.first = room, first
        with gr.Blocks(title="errata", analytics_enabled=False) as self.blocks:
            self.key = gr.Textbox(visible="hidden", elem_id="key")
            gr.HTML(
                "<h1>errata</h1><p>Correct what a language model believes, and look what else "
                "moved. Everything stays on this machine.</p>",
                elem_classes="title",
            )
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self._model()
                    self._fact()
                with gr.Column(scale=3, min_width=300):
                    self._results()
            self._connect()

    # ------------------------------------------------------------------ what is seen

    def _model(self) -> None:
        self.model = gr.Dropdown(
            list(self.room.models.offered), value=self.first, allow_custom_value=True,
            label="Model", info="A name, or a folder or GGUF file on this machine", elem_id="model",
        )  # fmt: skip
        self.load = gr.Button("Load the model", size="sm", elem_id="load")
        self.about = gr.HTML(elem_id="about")

    def _fact(self) -> None:
        self.prompt = gr.Textbox(
            label="Question", info="Ends just before the answer", elem_id="prompt"
        )
        with gr.Row():
            self.subject = gr.Textbox(label="About", min_width=130, elem_id="subject")
            self.target = gr.Textbox(label="New answer", min_width=130, elem_id="target")
        with gr.Row():
            choices = editors_for(self.first)
            self.editor = gr.Dropdown(
                choices, value="rome", label="Editor", min_width=130, elem_id="editor"
            )
            self.second = gr.Dropdown(
                [(NO_SECOND, ""), *choices], value="", label="Compare with", min_width=130,
                elem_id="second",
            )  # fmt: skip
        with gr.Accordion("Other words, own questions, settings", open=False):
            self.others = gr.Textbox(
                label="In other words", lines=3, elem_id="others",
                info="Should give the new answer too; a line each. Empty: those that errata knows",
            )  # fmt: skip
            self.questions = gr.Textbox(
                label="Your questions", lines=3, elem_id="questions", info="Anything; a line each"
            )
            self.settings = gr.Textbox(
                label="Settings of the editors", lines=2, elem_id="settings",
                info="key=value, a line each; see errata ls editors",
            )  # fmt: skip
            self.fill = gr.Button("Fill in an example", size="sm", elem_id="fill")
        with gr.Row():
            self.edit = gr.Button("Edit", variant="primary", min_width=120, elem_id="edit")
            self.ask = gr.Button("Only ask", min_width=120, elem_id="ask")

    def _results(self) -> None:
        self.status = gr.HTML(elem_id="status")
        self.cancel = gr.Button("Cancel", size="sm", visible=False, elem_id="cancel")
        self.result = gr.HTML(elem_id="result")
        self.keep = gr.Radio([], label="Keep the result of", visible=False, elem_id="keep")
        with gr.Accordion("History", open=True):
            self.history = gr.HTML(elem_id="history")
            with gr.Row():
                self.undo = gr.Button("Undo", size="sm", min_width=100, elem_id="undo")
                self.redo = gr.Button("Redo", size="sm", min_width=100, elem_id="redo")
        with gr.Accordion("Take it along", open=False):
            self.form = gr.Radio(
                [(LABELS[form], form) for form in FORMS], value=FORMS[0],
                label="All edits in one file", elem_id="form",
            )  # fmt: skip
            self.pack = gr.Button("Make the file", size="sm", elem_id="pack")
            self.file = gr.DownloadButton("Download", visible=False, elem_id="file")
            self.use = gr.HTML(elem_id="use")
        with gr.Accordion("Import", open=False):
            self.uploads = gr.File(
                label="A zip archive of a patch or a LoRA, or a GGUF adapter",
                file_count="multiple", type="filepath", height=140, elem_id="uploads",
            )  # fmt: skip
            self.bring = gr.Button("Import", size="sm", elem_id="bring")

    # ------------------------------------------------------------------ what happens

    def _connect(self) -> None:
        self.outputs = [
            self.status, self.result, self.about, self.history, self.undo, self.redo, self.keep,
            self.edit, self.ask, self.load, self.pack, self.bring, self.cancel, self.file, self.use,
        ]  # fmt: skip
        fact = [
            self.prompt, self.subject, self.target, self.editor, self.second, self.others,
            self.questions, self.settings,
        ]  # fmt: skip
        fields = [self.prompt, self.subject, self.target, self.questions]
        chosen = [self.model, self.editor, self.second, *fields]
        on = self.blocks.load(
            self._open, [self.key, self.prompt], [self.key, *self.outputs], js=KEY, **_QUIET
        )
        on.then(self._fit, [self.key, self.prompt], chosen, **_QUIET)
        loaded = self._when(self.load, lambda bench, name: bench.load(name or ""), self.model)
        loaded.then(self._fit, [self.key, self.prompt], chosen, **_QUIET)
        self._when(self.edit, lambda bench, *typed: bench.edit(_wish(*typed)), *fact)
        self._when(self.ask, lambda bench, *typed: bench.ask(_asked(*typed)), *fact)
        self._when(self.undo, lambda bench: bench.undo())
        self._when(self.redo, lambda bench: bench.redo())
        self._when(self.pack, lambda bench, form: bench.export(form), self.form)
        self._when(
            self.bring, lambda bench, given: bench.bring([Path(p) for p in given or ()]),
            self.uploads,
        )  # fmt: skip
        self._when(self.keep, lambda bench, which: bench.choose(which), self.keep, on="input")
        self.cancel.click(self._cancel, [self.key], None, **_QUIET)
        self.fill.click(self._example, [self.key], fields, **_QUIET)
        self.blocks.unload(self._leave)

    def _when(self, button: Any, act: Callable[..., Job | None], *fields: Any, on="click") -> Any:
        """Let a button act on the bench of its tab."""

        def run(key: str, *given: Any) -> Iterator[list[Any]]:
            yield from self._acted(key, lambda bench: act(bench, *given))

        return getattr(button, on)(run, [self.key, *fields], self.outputs, **_QUIET)

    def _acted(self, key: str, act: Callable[[Bench], Job | None]) -> Iterator[list[Any]]:
        """Act, follow the job that comes of it, and show what is there then."""
        try:
            bench = self.room.bench(key)
        except ErrataError as error:
            yield [_boxed(views.error(error)), *_same(len(self.outputs) - 1)]
            return
        try:
            job = act(bench)
        except ErrataError as error:
            # what runs meanwhile is followed by the event that began it
            yield [_boxed(views.error(error)), *_same(len(self.outputs) - 1)]
            return
        yield from self._followed(bench, job)

    def _followed(self, bench: Bench, job: Job | None) -> Iterator[list[Any]]:
        while job is not None and not job.wait(LOOKS):
            yield self._working(bench, job)
        yield self._shown(bench)

    def _open(self, key: str, prompt: str, request: gr.Request) -> Iterator[list[Any]]:
        """A tab opens: a new one loads the first model, a known one shows what is there."""
        try:
            bench = self.room.come(str(request.session_hash), key)
        except ErrataError as error:
            yield [key, _boxed(views.error(error)), *_same(len(self.outputs) - 1)]
            return
        new = bench.model is None and not bench.busy
        for shown in self._followed(bench, bench.load(self.first) if new else bench.job):
            yield [key, *shown]

    def _leave(self, request: gr.Request) -> None:
        self.room.leave(str(request.session_hash))

    def _cancel(self, key: str) -> None:
        self.room.bench(key).cancel()

    def _fit(self, key: str, prompt: str) -> list[Any]:
        """Offer the editors that work on the model, and an example where nothing is typed."""
        bench = self.room.bench(key)
        if bench.model is None:
            return _same(7)
        choices = editors_for(bench.model)
        filled = _same(4) if prompt.strip() else self._example(key)
        return [
            bench.model, gr.update(choices=choices),
            gr.update(choices=[(NO_SECOND, ""), *choices]), *filled,
        ]  # fmt: skip

    def _example(self, key: str) -> list[Any]:
        wish = example(self.room.bench(key).model or self.first)
        return [wish.prompt, wish.subject, wish.target, "\n".join(wish.questions)]

    # ------------------------------------------------------------------ what is shown

    def _working(self, bench: Bench, job: Job) -> list[Any]:
        waits = [gr.update(interactive=False)] * 5
        return [
            _boxed(views.progress(job.progress)), *_same(3),
            *[gr.update(interactive=False)] * 2, gr.skip(), *waits, gr.update(visible=True),
            *_same(2),
        ]  # fmt: skip

    def _shown(self, bench: Bench) -> list[Any]:
        history, now, there = bench.history, bench.history.now, bench.download
        goes = bench.model is not None
        keep = gr.update(visible=False)
        if now is not None and len(now.made) > 1:
            titles = [(one.title, number) for number, one in enumerate(now.made)]
            keep = gr.update(choices=titles, value=now.chosen, visible=True)
        file, use = gr.update(visible=False, value=None), ""
        if there is not None:
            label = f"Download {there.path.name} ({size(there.path.stat().st_size)})"
            file = gr.update(visible=True, value=str(there.path), label=label)
            use = _boxed(f"<p>Unpack it, then:</p><pre>{views.lines(there.use)}</pre>")
        return [
            "", views.screen(bench), views.model_line(bench), _boxed(views.history(bench)),
            gr.update(interactive=history.at > 0),
            gr.update(interactive=history.at < len(history.steps)),
            keep,
            gr.update(interactive=goes), gr.update(interactive=goes), gr.update(interactive=True),
            gr.update(interactive=now is not None), gr.update(interactive=goes),
            gr.update(visible=False), file, use,
        ]  # fmt: skip


_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""The page shows progress by itself; its events are no API for others."""


def _boxed(html: str) -> str:
    return f"<div class='errata'>{html}</div>" if html else ""


def _same(count: int) -> list[Any]:
    return [gr.skip()] * count


def _wish(
    prompt: str,
    subject: str,
    target: str,
    editor: str,
    second: str,
    others: str,
    questions: str,
    settings: str,
) -> Wish:
    editors = (editor, second) if second else (editor,)
    return Wish(
        prompt or "", subject or "", target or "", editors, lines(others), lines(questions),
        lines(settings),
    )  # fmt: skip


def _asked(prompt: str, *typed: str) -> list[str]:
    """Return what is asked without an edit: the question, then one's own."""
    questions = typed[5]
    return [line for line in (prompt or "", *lines(questions)) if line.strip()]
