from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refinery.errors import ConfigError
from refinery.io.read_evals import EvalSpec, find_evals, read_eval, values_at
from refinery.recipe import load_recipe

GSM8K = {"question": "How many eggs?", "answer": "12 = 12\n#### 12"}
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": "def f(x):", "canonical_solution": "return x", "test": "assert f(1)"}
SQUAD = {"version": "1", "data": [{"title": "t", "paragraphs": [
    {"id": "p0", "context": "上下文一", "qas": [{"id": "q0", "question": "问一"}, {"id": "q1", "question": "问二"}]},
    {"id": "p1", "context": "上下文二", "qas": [{"id": "q2", "question": "问三"}]},
]}]}  # fmt: skip
CMRC = [{"context_id": "D1", "context_text": "上下文", "qas": [{"query_id": "Q1", "query_text": "问"}]}]


def read(path: Path, **given):
    [(spec, name, files)] = find_evals([EvalSpec(paths=(str(path),), **given)])
    return read_eval(spec, name, files)


def lines(*rows) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


@pytest.mark.parametrize(
    ("name", "data", "texts", "unit"),
    [
        ("gsm8k.jsonl", lines(GSM8K),
         [("0", "question", GSM8K["question"]), ("0", "answer", GSM8K["answer"])], "words"),
        ("he.jsonl.gz", gzip.compress(lines(HUMANEVAL)),
         [("HumanEval/0", "prompt", "def f(x):"), ("HumanEval/0", "canonical_solution", "return x")], "code"),
        ("cmrc.json", json.dumps(CMRC).encode(),
         [("D1", "context_text", "上下文"), ("D1", "qas.query_text", "问")], "words"),
        ("lines.txt", "\ufeffone\r\n\n中文\n".encode(), [("0", "text", "one"), ("1", "text", "中文")], "words"),
        ("pretty.json", json.dumps([GSM8K], indent=2).encode(),
         [("0", "question", GSM8K["question"]), ("0", "answer", GSM8K["answer"])], "words"),
    ],
)  # fmt: skip
def test_layouts_are_found_by_themselves(tmp_path, name, data, texts, unit):
    path = tmp_path / name
    path.write_bytes(data)
    items, _ = read(path)
    assert [(i.item, i.field, i.text) for i in items] == texts
    assert {i.unit for i in items} == {unit}
    assert {i.eval for i in items} == {name.split(".")[0]}


def test_squad_gives_contexts_and_questions_by_paragraph(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(SQUAD), encoding="utf-8")
    items, [told] = read(path)
    assert [(i.item, i.text) for i in items] == [
        ("p0", "上下文一"), ("p0#0", "问一"), ("p0#1", "问二"), ("p1", "上下文二"), ("p1", "问三"),
    ]  # fmt: skip
    assert (told.records, told.records_without_text) == (2, 0)


def test_fields_by_dotted_path_in_parquet_and_csv(tmp_path):
    rows = [{"uid": 7, "q": "why", "choices": {"text": ["a", "b"]}}, {"uid": 8, "q": "", "choices": {"text": []}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    items, [told] = read(tmp_path / "e.parquet", fields=("q", "choices.text"), id_field="uid", name="exam")
    assert [tuple(i) for i in items] == [
        ("exam", "7", "q", "words", "why"), ("exam", "7#0", "choices.text", "words", "a"),
        ("exam", "7#1", "choices.text", "words", "b"),
    ]  # fmt: skip
    assert (told.records, told.records_without_text) == (2, 1)
    (tmp_path / "e.csv").write_text('q,a\n"x, y\nz",1\n', encoding="utf-8")
    items, _ = read(tmp_path / "e.csv", fields=("q",), unit="code")
    assert [(i.text, i.unit) for i in items] == [("x, y\nz", "code")]


def test_values_at_goes_through_lists():
    record = {"a": [{"b": [{"c": 1}, {"c": 2}]}, {"b": {"c": 3}}], "x.y": 4}
    assert list(values_at(record, "a.b.c")) == [1, 2, 3]
    assert list(values_at(record, "x.y")) == [4]
    assert list(values_at(record, "a.z")) == []


@pytest.mark.parametrize(
    ("name", "data", "given", "message"),
    [
        ("e.jsonl", b"", {}, "holds no record"),
        ("e.jsonl", lines({"a": 1}), {}, "none of the known layouts"),
        ("e.jsonl", lines(GSM8K), {"fields": ("question", "hint")}, "no record of .* has text in .'hint'"),
        ("e.jsonl", lines(GSM8K), {"preset": "nope"}, "preset 'nope' is unknown"),
        ("e.jsonl", lines(GSM8K), {"preset": "squad"}, "no record"),
        ("e.jsonl", '{"text": "\u00e9"}'.encode("latin-1"), {}, "not UTF-8 .byte 10 is 0xe9"),
        ("e.jsonl", b'{"text": ', {}, "cannot be read"),
        ("e.json.gz", gzip.compress(lines(GSM8K))[:20], {}, "cannot be read"),
        ("e.parquet", b"PAR1 no", {}, "cannot be read"),
    ],
)
def test_what_checks_nothing_is_refused(tmp_path, name, data, given, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name, **given)


def test_paths_and_names(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    pattern = str(tmp_path / "*.jsonl*")
    assert [name for _, name, _ in find_evals([EvalSpec(paths=(pattern,))])] == ["a", "b"]
    assert [name for _, name, _ in find_evals([EvalSpec(paths=(str(tmp_path),), name="both")])] == ["both"]
    with pytest.raises(ConfigError, match="several evals are called a"):
        find_evals([EvalSpec(paths=(pattern,)), EvalSpec(paths=(str(tmp_path / "a.jsonl"),))])
    with pytest.raises(ConfigError, match="matches no file"):
        find_evals([EvalSpec(paths=(str(tmp_path / "c.jsonl"),))])


def test_several_files_of_one_eval_keep_their_records_apart(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(lines(GSM8K))
    items, told = read(tmp_path / "*.jsonl", name="both")
    assert [i.item for i in items if i.field == "question"] == ["a:0", "b:0"]
    assert len(told) == 2


def test_the_quiz_of_the_demo_is_an_eval_and_one_passage_of_it_is_contaminated():
    root = Path(__file__).parents[2]
    [given] = load_recipe(root / "recipes" / "demo.yaml").decontaminate.evals
    items, [told] = read(root / given.paths[0], fields=given.fields, id_field=given.id_field, name=given.name)
    assert (told.records, told.records_without_text, len(items)) == (5, 0, 10)
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    standing = [i.item for i in items if i.text in readme]
    assert standing == ["q1"], "the demo shows a hit because this passage stands in README.md; change both together"


def test_the_real_layouts(shared_data):
    counted = {}
    for spec, name, files in find_evals([EvalSpec(paths=(str(shared_data / "evals" / "*"),))]):
        counted[name] = Counter(i.field for i in read_eval(spec, name, files)[0])
    assert counted["HumanEval"] == {"prompt": 164, "canonical_solution": 164}
    assert counted["gsm8k-test"] == {"question": 1319, "answer": 1319}
    assert counted["cmrc2018_dev"] == {"paragraphs.context": 848, "paragraphs.qas.question": 3219}
