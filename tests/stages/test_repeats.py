"""Repeated lines and documents inside others, on text where both were planted."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter

import pytest

from refinery.hashing import hex_key
from refinery.io.survivors import read_survivors
from refinery.stages.workspace import need_stage
from tests.kernels.reference_minhash import words_of
from tests.stages.corpus import ENGLISH, chinese, prose, sentence_text, write_jsonl
from tests.stages.runs import decisions, documents, fork, parts_of, run_stages, whole_table

pytestmark = pytest.mark.spark

MENU = "Home, Harbour News, Garden Letters and {} Comments"
CLAUSE = "本网站所载内容版权归海港花园编辑部所有"
STATUTE = "Article {}: the captain of a river ship answers for the letters on board."


def _page(rng, n):
    """Return a page whose sentences no other page has."""
    return "\n".join(line + f" page{n}x" for line in sentence_text(prose(rng, ENGLISH, 140)).split("\n"))


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    root = tmp_path_factory.mktemp("repeats")
    rng = random.Random(11)
    pool = [{"id": f"p{n}", "text": _page(rng, n)} for n in range(30)]
    for n, row in enumerate(pool[:10]):  # the figures differ, the line does not
        row["text"] = f"{MENU.format(n + 10)}\n{row['text']}\n{CLAUSE}{'。' if n % 2 else ''}\n"
    for n in (12, 13):
        pool[n]["text"] = f"{STATUTE.format(n)}\n{pool[n]['text']}"
    pool[14]["text"] += "\n\n\tTwo lines of a long paragraph\nthat stands in two pages.\n\nend14x"
    pool[15]["text"] += "\n\ntwo lines of a long PARAGRAPH\nthat stands in two pages\n\nend15x"
    pool.append({"id": "menu", "text": f"{MENU.format(77)}\n{MENU.format(78)}\nunlike"})
    target = [{"id": f"t{n}", "text": _page(rng, 100 + n)} for n in range(6)]
    for n, row in enumerate(target):
        row["text"] = f"{STATUTE.format(n + 10)}\n{row['text']}"
    code = [{"id": f"c{n}", "text": f"{MENU.format(n + 20)}\n{_page(rng, 200 + n)}"} for n in range(3)]
    chapters = [{"id": f"chapter{n}", "text": _page(rng, 300 + n)} for n in range(3)]
    chapters.append({"id": "zh", "text": chinese(rng, 400)})
    book = "\n\n".join([_page(rng, 400), chapters[0]["text"], chapters[1]["text"].upper(), _page(rng, 401)])
    chapters += [{"id": "book", "text": book}, {"id": "zh-book", "text": chinese(rng, 300) + chapters[3]["text"]}]
    half = chapters[2]["text"].split("\n")
    chapters.append({"id": "digest", "text": "\n".join([*half[: len(half) // 3], _page(rng, 402), _page(rng, 403)])})
    sources = {"pool": (pool, "pool", "web"), "target": (target, "target", "law"),
               "code": (code, "pool", "code"), "books": (chapters, "replay", "books")}  # fmt: skip
    for name, (rows, _, _) in sources.items():
        write_jsonl(root / f"{name}.jsonl", rows)
    return {
        "name": "repeats",
        "seed": 7,
        "workdir": str(root / "run"),
        "inputs": [
            {"source": s, "domain": d, "role": role, "format": "jsonl", "paths": [str(root / f"{s}.jsonl")]}
            for s, (_, role, d) in sources.items()
        ],
        "ingest": {"part_bytes": 9_000, "validation_frac": 0.1},
        "dedup_sentences": {
            "exact": True, "min_words": 6, "exempt_domains": ["code"], "max_removed_frac": 0.6,
            "lines": {"min_letters": 12}, "containment": {"min_ngrams": 60, "sample_every": 4},
        },
        "spark": {"master": "local[2]", "shuffle_partitions": 3},
    }  # fmt: skip


STAGES = ("ingest", "dedup_sentences")


@pytest.fixture(scope="module")
def ran(spark, values):
    run_stages(spark, values, STAGES)
    return values


def _cuts(run):
    """Return (key of the document, its row, cut, text of the cut) of every cut."""
    rows = {r["doc_id"]: r for r in documents(run["workdir"]).values()}
    out = []
    for cut in whole_table(run["workdir"], "dedup_sentences", "cuts").to_pylist():
        row = rows[cut["doc_id"]]
        out.append((row, cut, row["text"].encode()[cut["start"] : cut["end"]].decode()))
    return out


def _after(run):
    out = {}
    for part in parts_of(run["workdir"]):
        for piece in read_survivors(run["workdir"], part, ["doc_key", "text"], STAGES[1:], 50):
            out |= dict(zip(*(piece.table.column(c).to_pylist() for c in ("doc_key", "text")), strict=True))
    return out


def test_repeated_lines_go_but_for_one_and_only_from_the_pool(ran):
    facts = documents(ran["workdir"])
    after = _after(ran)
    stem = "harbour news, garden letters"
    holders = {k for k, r in facts.items() if stem in r["text"].lower() and r["domain"] == "web"}
    train = {k for k in holders if facts[k]["split"] == "train"}
    kept = {k for k, text in after.items() if stem in text.lower() and k in holders}
    held_out = holders - train
    assert len(train) >= 8
    assert kept == (held_out or {min(train)})  # a held-out document keeps its own, and then nobody else does
    lines = [c for c in _cuts(ran) if c[1]["reason"] == "dedup_sentences.line"]
    assert lines
    assert all(row["role"] == "pool" and row["split"] == "train" and row["domain"] == "web" for row, _, _ in lines)
    for row, cut, text in lines:
        assert text.endswith("\n") or cut["end"] == row["num_bytes"]
        keeper = facts[cut["because_of"]]
        assert keeper["doc_key"] in after
        assert keeper["doc_key"] != row["doc_key"]
    assert {text.strip()[:7] for _, _, text in lines if "版" in text} == {CLAUSE[:7]}


def test_target_documents_count_and_keep_theirs(ran):
    facts = documents(ran["workdir"])
    cut = [(row, c) for row, c, text in _cuts(ran) if "captain of a river ship" in text]
    pool = [r for r in facts.values() if r["source"] == "pool" and "river ship" in r["text"] and r["split"] == "train"]
    assert {row["doc_key"] for row, _ in cut} == {r["doc_key"] for r in pool}
    assert {facts[c["because_of"]]["source"] for _, c in cut} == {"target"}


def test_exempt_domains_neither_lose_lines_nor_take_them(ran):
    facts = documents(ran["workdir"])
    assert all(facts[c["because_of"]]["domain"] != "code" for _, c, _ in _cuts(ran))
    assert all(_after(ran)[k] == r["text"] for k, r in facts.items() if r["domain"] == "code")


def test_cuts_are_disjoint_and_bytes_are_conserved(ran):
    rows = [(cut["doc_id"], cut["start"], cut["end"]) for _, cut, _ in _cuts(ran)]
    for a, b in zip(sorted(rows), sorted(rows)[1:], strict=False):
        assert a[0] != b[0] or a[2] <= b[1]
    manifest = need_stage(ran["workdir"], "dedup_sentences")
    by_reason = Counter()
    for row in manifest.counts:
        by_reason[row.kind, row.reason] += row.bytes
    lines = sum(c["end"] - c["start"] for _, c, _ in _cuts(ran) if c["reason"] == "dedup_sentences.line")
    assert by_reason["cut", "dedup_sentences.line"] == lines > 0
    entered = sum(c.bytes for c in need_stage(ran["workdir"], "ingest").counts if c.kind == "kept")
    assert sum(c.bytes for c in manifest.counts) == entered


def test_a_page_of_lines_alone_is_dropped_with_its_reason(ran):
    [row] = [r for r in documents(ran["workdir"]).values() if r["text"].endswith("unlike")]
    decided = decisions(ran["workdir"], "dedup_sentences")[row["doc_id"]]
    if row["split"] == "train":
        assert decided["drop_reason"] == "dedup_sentences.mostly_repeated"
        assert decided["because_of"] in documents(ran["workdir"])


def test_facts_show_the_most_repeated_lines(ran):
    facts = need_stage(ran["workdir"], "dedup_sentences").facts["lines"]
    first, second = facts["most_repeated"][:2]
    assert (first["documents"], first["text"][:5]) == (11, "Home,")
    assert (second["documents"], second["text"][:9]) == (10, CLAUSE[:9])
    assert facts["num_spans"] >= facts["num_repeated"] >= 3
    assert facts["unit"] == "line"


def test_max_copies_and_paragraphs(ran, spark, tmp_path):
    run = fork(ran, tmp_path / "run")
    run["dedup_sentences"] = {"exact": False, "lines": {"unit": "paragraph", "min_letters": 12}}
    run_stages(spark, run, STAGES)
    [(row, cut, text)] = [c for c in _cuts(run) if "long" in c[2]]
    assert cut["reason"] == "dedup_sentences.paragraph"
    assert text.lower().split("\n")[1].startswith("that stands in two pages")
    assert row["split"] == "train"
    run["dedup_sentences"] = {"exact": False, "lines": {"max_copies": 10, "min_letters": 12}}
    run_stages(spark, run, STAGES)
    assert {text[:5] for _, _, text in _cuts(run)} <= {"Home,"}  # the clause stands in ten documents, and may


@pytest.mark.parametrize("partitions", ["1", "7"])
def test_parts_partitions_and_slices_do_not_change_cuts(ran, spark, tmp_path, partitions):
    run = {**ran, "workdir": str(tmp_path / "run"), "ingest": {**ran["ingest"], "part_bytes": 10**6}}
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", partitions)
    try:
        run_stages(spark, run, STAGES, slice_rows=7)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)

    def told(r):
        return sorted((row["doc_key"], c["start"], c["end"], c["reason"], c["because_of"]) for row, c, _ in _cuts(r))

    assert told(run) == told(ran)
    assert need_stage(run["workdir"], "dedup_sentences").facts == need_stage(ran["workdir"], "dedup_sentences").facts


def _contained(run):
    """Return (id, id) -> row of the containment table, by the ids of the input."""
    keys = {hex_key("books", name): name for name in ("chapter0", "chapter1", "chapter2", "zh", "book", "zh-book",
                                                      "digest")}  # fmt: skip
    rows = whole_table(run["workdir"], "dedup_sentences", "containment").to_pylist()
    return {(keys.get(r["a_key"]), keys.get(r["b_key"])): r for r in rows}


def test_chapters_are_found_inside_their_books(ran):
    found = _contained(ran)
    assert set(found) == {("chapter0", "book"), ("chapter1", "book"), ("zh", "zh-book")}
    for row in found.values():
        assert row["containment"] > 0.99
        assert row["a_ngrams"] < row["b_ngrams"]
        assert row["jaccard"] == pytest.approx(row["containment"] * row["a_ngrams"] / row["b_ngrams"], rel=0.01)
    facts = need_stage(ran["workdir"], "dedup_sentences").facts["containment"]
    assert (facts["num_pairs"], facts["num_contained"]) == (3, 3)
    assert facts["num_compared"] >= 3
    assert [row["a_key"] for row in facts["most_contained"]] == sorted(
        (r["a_key"] for r in found.values()), key=lambda k: next(-r["a_ngrams"] * r["containment"] for r in
                                                                 found.values() if r["a_key"] == k))  # fmt: skip


def test_containment_is_exact_and_its_bound_is_the_recipes(ran, spark, tmp_path):
    run = fork(ran, tmp_path / "run")
    settings = {"min_frac": 0.2, "min_ngrams": 60, "sample_every": 1}
    run["dedup_sentences"] = {"exact": False, "containment": settings}
    run_stages(spark, run, STAGES)
    texts = {r["doc_key"]: r["text"] for r in documents(run["workdir"]).values()}
    row = _contained(run)["chapter2", "digest"]
    grams = {k: {tuple(w[i : i + 13]) for i in range(len(w) - 12)} for k, w in
             ((key, words_of(texts[key], "words")) for key in (row["a_key"], row["b_key"]))}  # fmt: skip
    a, b = grams[row["a_key"]], grams[row["b_key"]]
    assert (row["a_ngrams"], row["b_ngrams"]) == (len(a), len(b))
    assert row["containment"] == pytest.approx(len(a & b) / len(a))
    assert row["jaccard"] == pytest.approx(len(a & b) / len(a | b))


def test_sections_of_a_real_book_are_found_in_its_chapters(spark, shared_data, tmp_path):
    """One edition has a file a section, the other a file a chapter; two chapters, against every pair compared."""
    inputs, sources = [], {}
    for edition, names in (("src", ("ch03-", "ch04-")), ("nostarch", ("chapter03", "chapter04"))):
        path = shared_data / "neardup" / f"en-rust-book-{edition}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if row["id"].rpartition("/")[2].startswith(names)]
        write_jsonl(tmp_path / f"{edition}.jsonl", [{"id": r["id"], "text": r["text"]} for r in rows])
        inputs.append(
            {"source": edition, "domain": "book", "format": "jsonl", "paths": [f"{tmp_path}/{edition}.jsonl"]}
        )
        sources |= {hex_key(edition, r["id"]): r["id"].rpartition("/")[2] for r in rows}
    run = {
        "name": "book", "workdir": str(tmp_path / "run"), "inputs": inputs, "ingest": {"validation_frac": 0.0},
        "dedup_sentences": {"exact": False, "containment": {}}, "spark": {"master": "local[2]"},
    }  # fmt: skip
    run_stages(spark, run, STAGES)
    rows = whole_table(run["workdir"], "dedup_sentences", "containment").to_pylist()
    found = {(sources[r["a_key"]], sources[r["b_key"]]) for r in rows}
    grams = {}
    for key, row in documents(run["workdir"]).items():
        words = words_of(row["text"], "words")
        grams[sources[key]] = {tuple(words[i : i + 13]) for i in range(len(words) - 12)}
    large = sorted((n for n, g in grams.items() if len(g) >= 100), key=lambda n: len(grams[n]))
    pairs = [(a, b) for i, a in enumerate(large) for b in large[i + 1 :]]
    assert found == {(a, b) for a, b in pairs if len(grams[a] & grams[b]) >= 0.5 * len(grams[a])}
    assert len({(a, b) for a, b in found if a.startswith("ch0") and b == f"chapter{a[2:4]}.md"}) >= 7
