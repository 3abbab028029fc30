from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from refinery.errors import ConfigError
from refinery.init import Answers, ask, mix_shares, parse_count, recipe_text, write_recipe
from refinery.init_sources import Source, describe_source, guess_fields, guess_format, with_unique_names
from refinery.io.input_options import FORMATS
from refinery.recipe import load_recipe
from refinery.tokenization.recipe import load_recipe as load_tokenizer_recipe


def jsonl(path: Path, rows: list[dict]) -> Path:
    data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    jsonl(tmp_path / "法律 laws.jsonl.gz", [{"id": "1", "content": "中华人民共和国民法典" * 50}])
    jsonl(tmp_path / "web.jsonl", [{"url": "http://a", "text": "plain words " * 400}] * 3)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("a novel\n" * 100, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("x/*.ndjson.zst", "jsonl"),
        ("s3://b/*.parquet", "parquet"),
        ("a.tsv.xz", "csv"),
        ("notes.md", "text"),
        ("p.XHTML", "html"),
        ("CC-MAIN-1.warc.gz", "warc"),
        ("CC-MAIN-1.warc.wet.gz", "wet"),
        ("https://host/a.wet.gz", "wet"),
        ("1.arc.gz", "arc"),
        ("python:docs", "python_environment"),
    ],
)
def test_formats_are_told_by_names(name: str, kind: str) -> None:
    assert guess_format(name) == kind
    assert kind in FORMATS


def test_names_that_say_nothing_are_refused(tmp_path: Path) -> None:
    for name in ("data.bin", "s3://bucket/prefix/", str(tmp_path)):
        with pytest.raises(ConfigError, match="cannot tell the format"):
            guess_format(name)


def test_folders_and_json_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>x", encoding="utf-8")
    (tmp_path / "b.html").write_text("<p>y", encoding="utf-8")
    (tmp_path / "c.txt").write_text("z", encoding="utf-8")
    assert guess_format(str(tmp_path)) == "html"
    one = tmp_path / "one.json"
    one.write_text('[{"text": "a"},\n {"text": "b"}]', encoding="utf-8")
    assert guess_format(str(one)) == "json"
    lines = jsonl(tmp_path / "lines.json", [{"text": "a"}, {"text": "b"}])
    assert guess_format(str(lines)) == "jsonl"


def test_fields_are_told_by_the_first_record(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl.gz", [{"title": "short", "问题": "the longest string of all", "uuid": "7"}])
    assert guess_fields(str(path), "jsonl") == ("问题", "uuid")
    pq.write_table(pa.table({"content": ["x"], "n": [1]}), tmp_path / "a.parquet")
    assert guess_fields(str(tmp_path / "a.parquet"), "parquet") == ("content", None)
    (tmp_path / "a.tsv").write_text("id\tbody\n1\tx\n", encoding="utf-8")
    assert guess_fields(str(tmp_path / "a.tsv"), "csv") == ("body", "id")
    (tmp_path / "broken.jsonl").write_text("{nothing\n", encoding="utf-8")
    assert guess_fields(str(tmp_path / "broken.jsonl"), "jsonl") == ("text", "id")


def test_a_source_is_described(texts: Path) -> None:
    found = describe_source(f"law={texts / '法律 laws.jsonl.gz'}", "target")
    assert (found.source, found.domain, found.format, found.text_field) == ("laws", "law", "jsonl", "content")
    assert found.num_bytes > 0
    assert describe_source(str(texts / "books"), "replay").source == "books"
    assert describe_source("s3://b/CC-*/warc/*.warc.gz", "pool", domain="web").num_bytes == 0
    with pytest.raises(ConfigError, match="matches no file"):
        describe_source(str(texts / "gone.jsonl"), "pool")
    with pytest.raises(ConfigError, match="role"):
        describe_source(str(texts / "books"), "teacher")


def test_names_are_made_unique() -> None:
    one = Source(source="a", domain="a", role="pool", format="text", path="a.txt")
    assert [s.source for s in with_unique_names([one, one, one])] == ["a", "a-2", "a-3"]


@pytest.mark.parametrize("replay", [0.0, 0.2])
@pytest.mark.parametrize("sizes", [[1], [1, 10**12], [5, 5, 5], list(range(1, 60)), [0, 0]])
def test_shares_sum_to_one(sizes: list[int], replay: float) -> None:
    sources = [
        Source(source=f"s{i}", domain=f"d{i}", role="target" if i % 2 else "pool", format="text", path="x", num_bytes=n)
        for i, n in enumerate(sizes)
    ]
    shares = mix_shares(sources, replay)
    assert sum(round(100 * v) for v in shares.values()) == 100 - round(100 * replay)
    assert min(shares.values()) >= 0.01


def test_counts_as_people_write_them() -> None:
    given = ["2000000", "2_000_000", "2,000,000", "2e6", "2M", "1.5B", "3k"]
    assert [parse_count(t) for t in given] == [2_000_000] * 5 + [1_500_000_000, 3_000]
    for bad in ("", "many", "0", "-5", "1e999", "nan"):
        with pytest.raises(ConfigError, match="number of tokens"):
            parse_count(bad)


def test_the_recipe_loads_with_everything_asked(texts: Path) -> None:
    sources = (
        describe_source(str(texts / "法律 laws.jsonl.gz"), "target", domain="法律"),
        describe_source(str(texts / "web.jsonl"), "pool"),
        describe_source(str(texts / "books"), "replay"),
    )
    answers = Answers(name="law", sources=sources, languages=("zh", "en"), budget_tokens=10**9)
    out = texts / "made" / "law.yaml"
    files = write_recipe(out, answers)
    recipe = load_recipe(out)
    assert files == [texts / "made" / "law-tokenizer.yaml", out]
    assert [(i.domain, i.role) for i in recipe.inputs] == [("法律", "target"), ("web", "pool"), ("books", "replay")]
    assert recipe.inputs[0].text_field == "content"
    assert recipe.inputs[1].id_field is None
    assert recipe.stages() == (
        *("ingest", "screen", "rules", "select", "dedup_documents", "dedup_sentences"),
        *("tokenize", "mix", "pack", "train", "report"),
    )
    assert recipe.mix
    assert recipe.mix.budget_tokens == 10**9
    assert recipe.mix.stages[0].domains == {"法律": 0.4, "web": 0.4}
    assert recipe.train
    assert recipe.train.steps is None
    assert recipe.tokenizer
    assert recipe.tokenizer.train == str(files[0])
    assert load_tokenizer_recipe(files[0]).vocab_size == 512


def test_nothing_is_overwritten_without_force(texts: Path) -> None:
    answers = Answers(name="web", sources=(describe_source(str(texts / "web.jsonl"), "pool"),))
    out = texts / "web.yaml"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="--force"):
        write_recipe(out, answers)
    assert out.read_text(encoding="utf-8") == "mine"
    assert not (texts / "web-tokenizer.yaml").exists()
    write_recipe(out, answers, force=True)
    assert load_recipe(out).select is None


def test_answers_that_make_no_recipe_write_nothing(texts: Path) -> None:
    replay = describe_source(str(texts / "books"), "replay")
    for answers in (Answers(name="x", sources=()), Answers(name="x", sources=(replay,))):
        with pytest.raises(ConfigError, match="text to learn from"):
            write_recipe(texts / "x.yaml", answers)
    with pytest.raises(ConfigError, match="name"):
        write_recipe(
            texts / "x.yaml", Answers(name="not a name", sources=(describe_source(str(texts / "web.jsonl"), "pool"),))
        )
    assert not (texts / "x.yaml").exists()


def test_an_existing_tokenizer_is_taken(texts: Path) -> None:
    source = describe_source(str(texts / "web.jsonl"), "pool")
    given = {"models/qwen": "path", "models/tokenizer.json": "path", "my/bpe.yaml": "train"}
    for tokenizer, key in given.items():
        text = recipe_text(Answers(name="x", sources=(source,), tokenizer=tokenizer, train=False), Path("unused"))
        values = yaml.safe_load(text)
        assert values["tokenizer"] == {key: tokenizer}
        assert "train" not in values


def test_questions_lead_to_the_same_values(texts: Path) -> None:
    script = iter(
        [f"law={texts / '法律 laws.jsonl.gz'}", "", str(texts / "web.jsonl"), "", "", "zh, en", "2M", "no", "mine"]
    )
    answers = ask(lambda question, default: next(script), "default")
    assert answers.name == "mine"
    assert [(s.domain, s.role) for s in answers.sources] == [("law", "target"), ("web", "pool")]
    assert (answers.languages, answers.budget_tokens, answers.train) == (("zh", "en"), 2_000_000, False)
