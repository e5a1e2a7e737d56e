"""Task files of a stranger run no code: what a file or a template does beyond texts is refused."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from errata.errors import DataError
from errata.evaluation import task_files

TASK = """task: mine
dataset_path: json
dataset_kwargs:
  data_files:
    test: questions.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_text("{}\n")
    (tmp_path / "task.yaml").write_text(TASK)
    return tmp_path / "task.yaml"


def test_a_plain_task_is_read_as_yaml_reads_it(path: Path) -> None:
    config = task_files.read(path)
    assert config["doc_to_choice"] == "{{choices}}"
    assert config["dataset_kwargs"] == {"data_files": {"test": "questions.jsonl"}}


BOMB = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\ntask: x\n"
REFUSED: dict[str, tuple[str, str]] = {
    "a function": (TASK + "process_docs: !function evil.run\n", "!function"),
    "a function as text": (TASK.replace('"{{question}}"', "!function evil.run"), "!function"),
    "an object of python": (TASK + "tag: !!python/object/apply:os.system [ls]\n", "cannot be read"),
    "another file": (TASK + "include: ../other.yaml\n", "'include'"),
    "a field nobody knows": (TASK + "custom_dataset: x\n", "'custom_dataset'"),
    "aliases": (BOMB, "aliases"),
    "a data set with a script": (TASK.replace("path: json", "path: ./evil.py"), "dataset_path"),
    "arguments for its reader": (
        TASK.replace("  data_files:", "  trust_remote_code: true\n  data_files:"),
        "data_files only",
    ),
    "a metric of the Hub": (TASK + "  - metric: stranger/metric\n", "unknown metric"),
    "a metric with code": (TASK + "  - {metric: acc, hf_evaluate: true}\n", "unknown metric"),
    "too many tokens": (TASK + "generation_kwargs: {max_gen_toks: 1000000000}\n", "max_gen_toks"),
    "not UTF-8": (TASK + "tag: \udcff\n", "UTF-8"),
    "a list": ("- 1\n", "no table"),
    "brackets": ("[" * 100_000, "cannot be read"),
    "not finite": (TASK + "metadata: {version: .inf}\n", "finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_task_may_not_say(name: str, path: Path) -> None:
    text, said = REFUSED[name]
    (path.parent / "evil.py").write_text("raise SystemExit('ran')\n")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=said):
        task_files.read(path)


ATTACKS = (
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ question['__class__'].mro }}",
    "{{ question|attr('__class__') }}",
    "{{ self.__init__ }}",
    "{{ lipsum() }}",
    "{{ range(10**9)|list }}",
    "{% for i in range(10) %}{% endfor %}",
    "{{ 'a' * 1000000000 }}",
    "{{ '%1000000000s' % 'a' }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ '{0.__class__}'.format(question) }}",
    "{{ 'a'|center(1000000000) }}",
    "{% set x = 'a' %}{{ x }}",
    "{% include 'x' %}",
    "{% macro m() %}{% endmacro %}",
    "{{ question() }}",
    "{{ question.sort() }}",
    "{{ 2 ** 10000000 }}",
)


def made(template: str) -> str:
    task_files.check_template(template, "x")
    return task_files._environment().from_string(template).render(question="q", answer=0)


@pytest.mark.parametrize("template", ATTACKS)
def test_a_template_names_fields_and_shapes_texts_only(template: str, path: Path) -> None:
    """Refused where the file is read, or at the latest where the template is filled in."""
    from jinja2 import UndefinedError
    from jinja2.exceptions import SecurityError

    with pytest.raises((DataError, SecurityError, UndefinedError)):
        made(template)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ a.replace('', b).replace('', b).replace('', b) }}",
        "{{ (a + b + b + b) | replace('', b) | replace('', b) }}",
        "{{ b.join(c) }}",
        "{{ c | join(b) }}",
    ],
)
def test_a_template_makes_no_endless_text(template: str) -> None:
    task_files.check_template(template, "x")
    made = task_files._environment().from_string(template)
    with pytest.raises(DataError, match="a text of more than"):
        made.render(a="a" * 100, b="b" * 9_000, c=["c"] * 1_000)


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("{{question}}", "Who?"),
        ("Q: {{question.strip()}}\nA:", "Q: Who?\nA:"),
        ("{{choices[answer]}}", "y"),
        ("{{['no', 'yes'][answer]}}", "yes"),
        ("{% if answer == 1 %}one{% else %}other{% endif %}", "one"),
        ("{{question.lower().replace('?', '!')|trim}}", "who!"),
        ("{{choices}}", "['x', 'y']"),
        ("{{sub.text}}", "t"),
        ("{{ 'a' ~ question + '.' }}", "aWho?."),
        ("{{choices|join(', ')}}", "x, y"),
    ],
)
def test_what_tasks_need_is_what_the_harness_makes(template: str, made: str) -> None:
    import jinja2

    document: dict[str, Any] = {
        "question": "Who?", "choices": ["x", "y"], "answer": 1, "sub": {"text": "t"},
    }  # fmt: skip
    task_files.check_template(template, "x")
    assert task_files._environment().from_string(template).render(**document) == made
    theirs = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    assert theirs.from_string(template).render(**document) == made


def test_data_stay_in_the_folder(path: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.jsonl"
    outside.write_text("{}\n")
    path.write_text(TASK.replace("questions.jsonl", f"../{outside.name}"))
    with pytest.raises(DataError, match="outside of its folder"):
        task_files.read(path)
    (tmp_path / "link.jsonl").symlink_to(outside)
    path.write_text(TASK.replace("questions.jsonl", "link.jsonl"))
    with pytest.raises(DataError, match="outside of its folder"):
        task_files.read(path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    path.write_text(TASK.replace("questions.jsonl", "pipe.jsonl"))
    with pytest.raises(DataError, match="a pipe"):
        task_files.read(path)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness")
def test_functions_run_where_they_are_trusted(path: Path) -> None:
    (path.parent / "own.py").write_text("def text(doc):\n    return doc['question']\n")
    path.write_text(TASK.replace('"{{question}}"', "!function own.text"))
    with pytest.raises(DataError, match="!function"):
        task_files.read(path)
    with task_files.trusting(True):
        assert task_files.read(path)["doc_to_text"]({"question": "Who?"}) == "Who?"
    with pytest.raises(DataError, match="!function"), task_files.trusting(False):
        task_files.read(path)
