"""The page of a report: self-contained, safe against what data hold, and it works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from errata.errors import ErrataError, RunError
from errata.evaluation.summary import summarise
from errata.reporting import report
from errata.store.runs import RunFolder
from tests.reporting.samples import rates, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = (
    '</script><script>document.title="owned"</script>',
    '<img src=x onerror="document.title=`owned`">',
    '"><svg onload=alert(1)>',
    "\u2028</title><h1>&amp;",
)


class Read(HTMLParser):
    """Tags with their attributes, and what stands in scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts.append(data)


def question(kind: str, prompt: str, target: str, predicted: str, score: float) -> dict[str, Any]:
    return {
        "kind": kind, "name": kind, "prompt": prompt, "target": target, "predicted": predicted,
        "score": score, "top1": score, "k": 5, "criteria": ["Rep"],
    }  # fmt: skip


def run_of(folder: Path, editor: str, cases: list[list[dict[str, Any]]], label: str = "w") -> None:
    records = [
        {"id": f"case {label} {n}", "unit": n, "error": None, "edits": 1, "patch_bytes": 9,
         "seconds": {"edit": 0.1, "evaluate": 0.1}, "questions": asked}
        for n, asked in enumerate(cases)
    ]  # fmt: skip
    config = {
        "model": {"name": label, "fingerprint": "f" * 64},
        "editor": {"name": editor, "config": {}},
        "data": {"name": label, "version": "1", "cases": len(cases), "ids": "aa"},
        "protocol": {"regime": "single", "top_k": 5, "batch": 1, "seed": 0},
    }
    header = {"editor": editor, "model": label, "data": label, "regime": "single", "top_k": 5}
    with RunFolder.create(folder, config) as run:
        run.append(records)
        run.finish(summarise(records, header, bootstrap=0))


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="records">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def in_a_browser(path: Path) -> str:
    """Return the page as it stands once its script has run."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
         f"--user-data-dir={path.parent / 'chromium'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "rome", rates(97, 60, 90, n=8))
    write_run(tmp_path / "runs" / "none", rates(10, 20, 100, n=8), editor="none")
    page = report(tmp_path / "runs").page()
    read = Read(page)
    policy = next(a for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert not any(set(attrs) & {"src", "href", "action"} for _, attrs in read.tags)
    assert "http" not in re.sub(r"http-equiv", "", page)


@pytest.mark.parametrize("field", ["kind", "prompt", "target", "score", "criteria", "name", "k"])
@pytest.mark.parametrize("other", [{}, [], {"a": [1]}, "text", None])
def test_an_altered_field_is_shown_or_named(tmp_path: Path, field: str, other: Any) -> None:
    run_of(tmp_path / "rome", "rome", [[question("locality", "Who rules Gabon?", "A", "A", 1.0)]])
    written = tmp_path / "rome" / "records.jsonl"
    record = json.loads(written.read_text("utf-8"))
    record["questions"][0][field] = other
    written.write_text(json.dumps(record) + "\n", "utf-8")
    try:
        page = report(tmp_path).page()
    except ErrataError as error:
        assert str(tmp_path / "rome") in error.message  # noqa: PT017 - a page is right as well
    else:
        assert embedded(page)


def test_numbers_and_marks_are_those_of_the_tables(tmp_path: Path) -> None:
    write_run(tmp_path / "rome", rates(97, 60, 90, n=8))
    write_run(tmp_path / "memit", rates(90, 70, 80, n=8), editor="memit")
    made = report(tmp_path)
    page = made.page()
    for entry in made.document()["tables"][0]["numbers"]:
        if entry["unit"] == "percent" and entry["metric"] in ("reliability", "generality"):
            assert f'data-sort="{entry["value"]:.10g}">{entry["value"]:.2f}' in page
    assert '<td class=best data-sort="97">97.00' in page
    assert '<td class=best data-sort="70">70.00' in page
    assert page.count("<polygon") + page.count("<circle") + page.count('width="9"') == 4


def test_long_answers_are_read_beside_their_score(tmp_path: Path) -> None:
    asked = question("reliability", "What is a fjord?", "a long inlet", "a", 0.5)
    asked["long"] = {"text": "a narrow inlet of the sea", "rougeL": 2 / 3}
    run_of(tmp_path / "runs" / "ft", "ft", [[asked]])
    page = report(tmp_path / "runs").page()
    (answer,) = embedded(page)[0]["sets"][0]["cases"][0]["q"][0]["a"]
    assert answer[2] == ["a narrow inlet of the sea", 0.667, None, "ROUGE-L"]
    path = tmp_path / "page.html"
    browse = "browse(place, all[Number(place.dataset.table)]);\n"
    opened = f'{browse} document.querySelector("details").open = true;\n'
    path.write_text(page.replace(browse, opened), encoding="utf-8")
    shown = in_a_browser(path)
    assert "freely: a narrow inlet of the sea" in shown
    assert "ROUGE-L 67 %" in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_what_data_hold_stays_text(tmp_path: Path, text: str) -> None:
    run_of(tmp_path / "runs" / "a", "rome", [[
        question("reliability", text, text, text, 1.0), question("locality", text, text, text, 0.0),
    ]], label=text)  # fmt: skip
    made = report(tmp_path / "runs")
    page = made.page()
    read = Read(page)
    assert [tag for tag, _ in read.tags].count("script") == 2
    assert not {"img", "h1 "} & {tag for tag, _ in read.tags}
    assert [tag for tag, _ in read.tags].count("h1") == 1
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    (table,) = embedded(page)
    asked = table["sets"][0]["cases"][0]["q"][0]
    assert asked["prompt"] == asked["target"] == asked["a"][0][0] == " ".join(text.split("\u2028"))
    path = made.save_page(tmp_path / "page.html")
    if CHROMIUM is not None:
        seen = in_a_browser(path)
        assert "<title>owned" not in seen
        assert seen.count("<script") == 2


def test_rows_stand_beside_each_other(tmp_path: Path) -> None:
    asked = [("reliability", "Who?", "Rome"), ("generality", "Who then?", "Rome")]
    for editor, said, score in (("none", "Paris", 0.0), ("rome", "Rome", 1.0)):
        cases = [[question(kind, p, t, said, score) for kind, p, t in asked]]
        run_of(tmp_path / editor, editor, cases)
    (table,) = embedded(report(tmp_path).page())
    (case,) = table["sets"][0]["cases"]
    by_row = dict(zip(table["rows"], zip(*(q["a"] for q in case["q"]), strict=True), strict=True))
    assert {row: [answer[:2] for answer in own] for row, own in by_row.items()} == {
        "No edit": [["Paris", 0.0], ["Paris", 0.0]], "ROME": [["Rome", 1.0], ["Rome", 1.0]],
    }  # fmt: skip


def test_a_thousand_records_are_two_megabytes_at_most(tmp_path: Path) -> None:
    sentence = "The field of study of Braxie Wovini, as most experts believe, is the field called"
    for editor in ("rome", "memit", "ft"):
        cases = [
            [question(kind, f"{sentence} {n} {kind}", "anthropology", "anthropology", 1.0)
             for kind in ("reliability", "generality", "generality", "locality", "locality")]
            for n in range(1000)
        ]  # fmt: skip
        run_of(tmp_path / editor, editor, cases)
    assert len(report(tmp_path).page().encode()) < 2_000_000


def test_the_browser_lists_filters_and_sorts(tmp_path: Path) -> None:
    good = question("reliability", "Who?", "Rome", "Rome", 1.0)
    bad = question("reliability", "What?", "Rome", "Paris", 0.0)
    run_of(tmp_path / "runs" / "a", "rome", [[good] if n else [bad] for n in range(30)])
    path = report(tmp_path / "runs").save_page(tmp_path / "page.html")
    script = path.read_text("utf-8").replace(
        "browse(place, all[Number(place.dataset.table)]);\n",
        """browse(place, all[Number(place.dataset.table)]);
        const [, , what] = document.querySelectorAll("select");
        what.value = "1"; what.dispatchEvent(new Event("change"));
        document.querySelector("details").open = true;
        document.querySelector("th.label").click();
        """,
    )
    path.write_text(script, "utf-8")
    seen = in_a_browser(path)
    assert "1 of 30 cases" in seen
    assert seen.count("<details") == 1
    assert 'aria-sort="descending"' in seen


def test_files(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "rome", rates(97, 60, 90, n=8))
    made = report(tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text("utf-8") == made.page()
    path = made.save_page(tmp_path / "page.html")
    with pytest.raises(RunError, match="already there"):
        made.save_page(path)
    with pytest.raises(RunError, match="is a folder"):
        made.save_page(tmp_path / "out", force=True)
    made.save_page(path, force=True)
