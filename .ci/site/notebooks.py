"""Notebooks of the documentation: run, compared with what they say, shown as pages.

python .ci/site/notebooks.py check [NAME …]    run them; fail where one fails or says something else
python .ci/site/notebooks.py write [NAME …]    run them and keep what they print

A notebook runs in a scratch folder. Reading and comparing need the standard library only; running
needs nbclient and ipykernel, which `make site` has in an environment of its own.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"

SECONDS = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)? ?(?:ms|s|min)\b(?: \d+ s\b)?")
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TIMES = "times"
"""Tag of a cell whose output holds wall times among its numbers."""

TOLERANCE = 0.02
"""Of numbers, absolute and relative: sums come in other orders, and optimisers amplify that."""


def load(path: Path) -> dict[str, Any]:
    """Return a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))


def text_of(value: str | list[str]) -> str:
    """Return a text that may be stored by lines."""
    return value if isinstance(value, str) else "".join(value)


def code(notebook: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Return the code cells: source, the plain text below, whether that holds wall times."""
    return [
        (text_of(cell["source"]), said(cell["outputs"]), TIMES in cell["metadata"].get("tags", ()))
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def said(outputs: list[dict[str, Any]]) -> str:
    """Return what a cell prints and returns as plain text, without names of figures."""
    parts = []
    for output in outputs:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            parts.append(text_of(output["text"]))
        elif output["output_type"] == "execute_result":
            parts.append(text_of(output["data"]["text/plain"]))
    return "\n".join(part.rstrip() for part in parts)


def differs(stated: str, found: str, timed: bool = False) -> str:
    """Return the first line in which two texts differ, but for times and a little in numbers.

    Args:
        stated: What a notebook says.
        found: What its code says now.
        timed: Whether any of the numbers may be a wall time: then they are not compared.
    """
    ours, theirs = (SECONDS.sub("…", text).splitlines() for text in (stated, found))
    for one, two in zip(ours, theirs, strict=False):
        words = [" ".join(NUMBER.sub("#", line).split()) for line in (one, two)]
        numbers = [[float(n.replace("−", "-")) for n in NUMBER.findall(x)] for x in (one, two)]
        near = (
            math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            for a, b in zip(*numbers, strict=False)
        )
        if words[0] != words[1] or not (timed or all(near)):
            return f"{one!r} is stated, {two!r} is said"
    return "" if len(ours) == len(theirs) else f"{len(ours)} lines are stated, {len(theirs)} said"


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as a page in Markdown, and its figures by name."""
    parts, pictures = [], {}
    for number, cell in enumerate(load(path)["cells"]):
        source = text_of(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            if not number:
                name = path.name
                parts.append(f'<a href="{name}" download>This page as a notebook</a>')
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(text_of(data["image/png"]))
                parts.append(f"![The figure that the code above draws]({name})")
            elif "text/html" in data:
                parts.append(f'<div class="output">{text_of(data["text/html"])}</div>')
            elif "text/markdown" in data:
                parts.append(text_of(data["text/markdown"]))
            elif said([output]):
                parts.append(f"```text\n{said([output])}\n```")
    return "\n\n".join(parts) + "\n", pictures


def run(path: Path) -> dict[str, Any]:
    """Run a notebook from top to bottom and return it with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}},
            record_timing=False, startup_timeout=300,
            # the kernel listens on 127.0.0.1 for this run, and says so as a warning
            extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
        client.execute()
    return json.loads(nbformat.writes(notebook))


def clean(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook without what differs from run to run beside its results."""
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags" and v}
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}):
                    output["metadata"] = {}
    return notebook


def main(task: str, names: list[str]) -> None:
    """Run notebooks and compare, or keep, what they say."""
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        print(f"  running {path.name}", flush=True)
        done = run(path)
        if task == "write":
            path.write_text(json.dumps(clean(done), indent=1, ensure_ascii=False) + "\n", "utf-8")
            continue
        for (source, stated, timed), (_, found, _) in zip(
            code(load(path)), code(done), strict=True
        ):
            if different := differs(stated, found, timed):
                sys.exit(f"{path.name}: {different}\n\n{source}\n\nmake notebooks writes it down.")


if __name__ == "__main__":
    if sys.argv[1:2] not in (["check"], ["write"]):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
