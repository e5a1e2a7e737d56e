"""The three formats, the figure, and `errata report` as it is typed."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from errata.reporting import report
from errata.reporting.formats import escape
from tests.cli.conftest import Errata, errata, here, loaded, model
from tests.reporting.samples import rates, write_run

__all__ = ["errata", "here", "loaded", "model"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    for editor, own in {
        "none": (10, 20, 100),
        "rome": (97, 60, 90),
        "a_b|c": (100, 59, 99),
    }.items():
        for seed in (0, 1):
            cell = folder / editor.replace("|", "-") / f"seed{seed}"
            write_run(cell / "w", rates(*own, n=8), editor=editor, seed=seed)
            write_run(cell / "m", rates(own[0], own[1], None, n=8), editor=editor, data="mquake",
                      seed=seed)  # fmt: skip
    return folder


def grid(markdown: str, number: int = 0) -> list[list[str]]:
    """Return the cells of a table of a Markdown document."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE)
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in blocks[number].splitlines()
    ]


def test_markdown(runs: Path) -> None:
    text = report(runs, intervals="none", metrics=["core"]).text("markdown")
    head, rule, *body = grid(text)
    assert head == [
        "editor", "mquake n", "Rel", "Gen", "Avg", "world n", "Rel", "Gen", "Loc", "Avg",
        "s / edit", "bytes / edit",
    ]  # fmt: skip
    assert len(rule) == len(head)
    assert body == [
        ["a\\_b\\|c", "16", "**100.00**", "<u>59.00</u>", "**79.50**", "16", "**100.00**",
         "<u>59.00</u>", "**99.00**", "**86.00**", "0.25", "2.0 KB"],
        ["No edit", "16", "10.00", "20.00", "15.00", "16", "10.00", "20.00", "100.00", "43.33",
         "0.25", "2.0 KB"],
        ["ROME", "16", "<u>97.00</u>", "**60.00**", "<u>78.50</u>", "16", "<u>97.00</u>",
         "**60.00**", "90.00", "82.33", "0.25", "2.0 KB"],
    ]  # fmt: skip
    assert "Rates in percent, means over seeds 0, 1." in text
    balanced = grid(text, 1)
    assert balanced[0] == ["editor", "G", "L", "F1"]
    assert balanced[-1] == ["ROME", "**60.00**", "90.00", "<u>72.00</u>"]
    assert "L: mean locality over world." in text


def test_where_intervals_are_printed(runs: Path) -> None:
    def count(intervals: str) -> int:
        rows = grid(report(runs, intervals=intervals, metrics=["core"]).text("markdown"))
        return sum(cell.count("±") for row in rows for cell in row)

    assert count("none") == 0
    assert count("average") == 3 * 2
    assert count("all") == 3 * 7


def test_latex_is_well_formed(runs: Path) -> None:
    text = report(runs, metrics=["core"]).text("latex")
    opened = re.findall(r"\\begin\{([^}]*)\}", text)
    assert opened == ["table*", "tabular", "table", "tabular"]
    for name in opened:
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    plain = re.sub(r"%.*", "", re.sub(r"\\.", "", text))
    depth = 0
    for sign in plain:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    columns = re.search(r"\\begin\{tabular\}\{(l.*?)\}", text)
    assert columns is not None
    rows = [line for line in text.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 + 3
    for row in rows:
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
        cells = len(re.findall(r"(?<!\\)&", row)) + 1
        assert cells + sum(spans) - len(spans) == len(columns[1])
    assert r"\cmidrule(lr){2-5} \cmidrule(lr){6-10}" in text
    assert r"\textbf{100.00}" in text
    assert r"\underline{97.00}" in text
    assert r"a\_b|c" in text
    assert text.isascii()


def test_special_signs_in_latex() -> None:
    assert escape("50 % & {a_b} ~#$^\\ [x]") == (
        r"50 \% \& \{a\_b\} \textasciitilde{}\#\$\textasciicircum{}\textbackslash{} {[}x]"
    )


def test_csv_has_every_number(runs: Path) -> None:
    made = report(runs)
    rows = list(csv.DictReader(io.StringIO(made.text("csv"))))
    assert len(rows) == 3 * (4 + 3 + 3 + 2 * 2 + 3)  # rates, top 1 of three, costs, balance
    one = next(
        r for r in rows if (r["row"], r["data"], r["metric"]) == ("ROME", "world", "locality")
    )
    assert float(one["value"]) == pytest.approx(90.0)
    assert float(one["low"]) <= 90.0 <= float(one["high"]) + 1e-9
    assert (one["unit"], one["cases"], one["seeds"], one["top_k"]) == ("percent", "16", "2", "5")
    cost = next(r for r in rows if r["metric"] == "bytes_per_edit")
    assert (cost["value"], cost["unit"], cost["low"]) == ("2048.0", "bytes", "")
    (table,) = made.document()["tables"]
    assert len(table["numbers"]) == len(rows)


def test_the_command(errata: Errata, here: Path, runs: Path) -> None:
    done = errata("report", runs)
    assert done.code == 0
    assert grid(done.stdout) == grid(report(runs).text("markdown"))
    assert errata("report", runs, "--format", "latex").stdout == report(runs).text("latex")
    assert errata("report", runs, "--format", "csv").stdout == report(runs).text("csv")
    found = errata("report", runs, "--json").json
    assert [row["editor"] for row in found["tables"][0]["rows"]] == ["a_b|c", "none", "rome"]
    assert found["files"] == []
    wide = errata("report", runs, "--within", "10", "--intervals", "none").stdout
    assert "<u>90.00</u>" in wide


def test_all_formats_are_written_together(errata: Errata, here: Path, runs: Path) -> None:
    pytest.importorskip("matplotlib")
    done = errata("report", runs, "--out", "tables")
    assert done.code == 0
    names = {"table.md", "table.tex", "table.csv", "report.html", "generality-locality.png",
             "generality-locality.pdf"}  # fmt: skip
    first = {path.name: path.read_bytes() for path in (here / "tables").iterdir()}
    assert first.keys() == names
    assert all(name in done.stdout for name in names)
    assert first["generality-locality.png"][:4] == b"\x89PNG"
    assert first["generality-locality.pdf"][:4] == b"%PDF"
    again = errata("report", runs, "--out", "tables")
    assert again.code == 1
    assert "already holds table.md" in again.stderr
    assert errata("report", runs, "--out", "tables", "--force").code == 0
    assert {path.name: path.read_bytes() for path in (here / "tables").iterdir()} == first


def test_without_matplotlib_there_is_no_figure(
    errata: Errata, here: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.reporting.figure.available", lambda: False)
    done = errata("report", runs, "--out", "tables")
    endings = {path.suffix for path in (here / "tables").iterdir()}
    assert endings == {".md", ".tex", ".csv", ".html"}
    assert "pip install 'errata[report]'" in done.stderr


def test_mistakes_on_the_command_line(errata: Errata, here: Path, runs: Path) -> None:
    for words, said in (
        (("--format", "latxe"), "Did you mean 'latex'"),
        (("--within", "100"), "within is 100"),
        (("--intervals", "al"), "Did you mean 'all'"),
        (("--f1", "wrld"), "no data set 'wrld'"),
    ):
        done = errata("report", runs, *words)
        assert (done.code, said in done.stderr) == (2, True), done.stderr
    assert errata("report", here / "nowhere").code == 1
    (here / "file").write_text("")
    assert "is a file" in errata("report", runs, "--out", "file").stderr


def test_nothing_missing_is_said_on_stdout(errata: Errata, here: Path, runs: Path) -> None:
    write_run(runs / "half", rates(1, 1, 1), editor="ft", finished=False)
    done = errata("report", runs, "--format", "csv")
    assert "unfinished after 1 of 1 cases" in done.stderr
    assert "unfinished" not in done.stdout
    found = json.loads(errata("report", runs, "--json").stdout)
    assert found["missing"][0]["why"] == "unfinished after 1 of 1 cases"
