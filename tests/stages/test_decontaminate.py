"""decontaminate on text whose evals were planted, behind a stage that cuts first."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.stages.workspace import need_stage
from tests.stages.corpus import ENGLISH, build_corpus, chinese, prose, recipe_values, sentence_text, write_jsonl
from tests.stages.runs import decisions, documents, fork, run_stages, survivors, whole_table

pytestmark = pytest.mark.spark

STAGES = ("ingest", "dedup_sentences", "decontaminate")
REPEATED = "Subscribe to the weekly letter of the harbour market and never miss a garden story again."
BOILERPLATE = "All rights reserved and no part of this page may be copied without a letter of consent from us"


def _question(rng, n):
    return f"Question {n}: " + " ".join(f"{w}{rng.randrange(50)}" for w in rng.choices(ENGLISH, k=30))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Documents of all roles with planted items, and two evals; one of them stands nowhere."""
    root = tmp_path_factory.mktemp("planted")
    corpus = build_corpus(root / "corpus")
    rng = random.Random(5)
    items = [{"id": f"q{n}", "question": _question(rng, n), "answer": "42"} for n in range(6)]
    items.append({"id": "zh", "question": chinese(rng, 40), "answer": BOILERPLATE})
    absent = [{"id": f"a{n}", "text": _question(random.Random(n), 1000 + n)} for n in range(3)]
    absent.append({"id": "short", "text": "too few words"})
    rows = [{"id": f"d{n}", "text": sentence_text(prose(rng, ENGLISH, 140))} for n in range(60)]
    rows[0]["text"] += "\n" + items[0]["question"].upper() + "\nand more text behind it."
    words = items[1]["question"].split()
    words[5] = "changed"
    rows[1]["text"] += "\n" + " ".join(words)
    rows[2]["text"] = items[2]["question"]
    for n in (50, 52, 53):  # some of them are held out
        rows[n]["text"] = f"Page {n}: {items[2]['question']} End."
    between = items[3]["question"].index(" ", 85)  # a cut sentence leaves the paragraphs on its sides apart
    head, tail = items[3]["question"][:between], items[3]["question"][between + 1 :]
    rows[3]["text"] = f"{sentence_text(prose(rng, ENGLISH, 90))}\n\n{head}\n\n{REPEATED}\n\n{tail}\n\nEnd of page 3."
    rows[4]["text"] += "\n\n" + REPEATED
    rows[5]["text"] += "\n" + " ".join(items[4]["question"].split()[:14])  # too little of it
    for row in (rows[6], rows[51]):  # one of them may be held out
        row["text"] += "\n本题：" + items[6]["question"] + "完"
    for n, row in enumerate(rows[10:45]):  # each in a sentence of its own, or dedup_sentences would take it
        row["text"] += f"\n{BOILERPLATE} year{n} page{n}."
    target = [{"id": f"t{n}", "text": sentence_text(prose(rng, ENGLISH, 150))} for n in range(40)]
    for row in target[:14]:
        row["text"] += "\n" + items[5]["question"]
    write_jsonl(root / "pool.jsonl", rows)
    write_jsonl(root / "target.jsonl", target)
    write_jsonl(root / "evals" / "planted.jsonl", items)
    write_jsonl(root / "evals" / "absent.jsonl.gz", absent)
    values = recipe_values(corpus, root / "run")
    values["inputs"] = [
        {"source": s, "domain": "web", "role": s, "format": "jsonl", "paths": [str(root / f"{s}.jsonl")]}
        for s in ("pool", "target")
    ]
    for name in ("rules", "dedup_documents", "tokenizer", "mix", "pack"):
        del values[name]
    values["ingest"] = {"part_bytes": 12_000, "validation_frac": 0.2}
    values["dedup_sentences"] = {"exact": True, "min_words": 6}
    values["decontaminate"] = {"evals": [str(root / "evals" / "*")], "max_documents": 15, "max_removed_frac": 0.6}
    return values


@pytest.fixture(scope="module")
def cleaned(spark, planted):
    run_stages(spark, planted, STAGES)
    return planted


def _hits(values, **changed):
    rows = whole_table(values["workdir"], "decontaminate", "hits").to_pylist()
    return [r for r in rows if all(r[k] == v for k, v in changed.items())]


def _text_of(values, doc_id, upto=STAGES[1:]):
    part, row = doc_id >> 32, doc_id & 0xFFFFFFFF
    for piece in read_survivors(values["workdir"], part, ["text"], upto, 64):
        if row in piece.rows:
            return piece.table.column("text")[piece.rows.tolist().index(row)].as_py()
    return None


def _documents(values):
    return {r["doc_id"]: r for r in documents(values["workdir"]).values()}


def test_planted_items_are_found_with_spans_on_both_sides(cleaned):
    facts = _documents(cleaned)
    items = {r["item_number"]: r for r in whole_table(cleaned["workdir"], "decontaminate", "items").to_pylist()}
    found = _hits(cleaned)
    assert {h["eval"] for h in found} == {"planted"}
    assert all(h["doc_key"] == facts[h["doc_id"]]["doc_key"] for h in found)
    whole = next(h for h in found if h["item"] == "q0")
    span = facts[whole["doc_id"]]["text"].encode()[whole["doc_start"] : whole["doc_end"]].decode()
    text = items[whole["item_number"]]["text"]
    assert span.lower() == text.lower()
    assert text.encode()[whole["item_start"] : whole["item_end"]].decode() == text
    assert (whole["item_covered_frac"], whole["num_ngrams"]) == (1.0, whole["longest_run"])
    edited = next(h for h in found if h["item"] == "q1")
    assert 0.5 <= edited["item_covered_frac"] < 1.0
    clause = next(h for h in found if h["item"] == "zh")
    assert clause["item_covered_frac"] == 1.0
    assert not [h for h in found if h["item"] == "q4"]


def test_golden_hits(cleaned):
    """Shares, runs and spans inside the item as stored: other numbers are another algorithm version."""
    facts = ("eval", "item", "field", "item_start", "item_end", "num_ngrams", "longest_run")
    rows = {(*(h[k] for k in facts), round(h["item_covered_frac"], 6), round(h["doc_covered_frac"], 6))
            for h in _hits(cleaned) if h["item"] in ("q0", "q1", "zh")}  # fmt: skip
    golden = json.loads((Path(__file__).parents[1] / "golden" / "contamination_hits.json").read_text(encoding="utf-8"))
    assert sorted(rows) == [tuple(row) for row in golden]


def test_boilerplate_is_no_hit_and_is_told(cleaned):
    assert not _hits(cleaned, field="answer")
    assert {_documents(cleaned)[h["doc_id"]]["role"] for h in _hits(cleaned, item="q5")} == {"target"}
    facts = need_stage(cleaned["workdir"], "decontaminate").facts
    rows = {r["eval"]: r for r in facts["evals"]}
    assert rows["planted"]["items_common"] == 1
    assert "cannot be hits" in facts["warnings"][0]
    assert rows["planted"]["ngrams_common"] > 0
    assert rows["planted"]["items_too_short"] == 6


def test_an_eval_that_matches_nothing_is_told_with_its_numbers(cleaned):
    [row] = [r for r in need_stage(cleaned["workdir"], "decontaminate").facts["evals"] if r["eval"] == "absent"]
    assert (row["items"], row["items_too_short"], row["items_hit"], row["documents_hit"]) == (4, 1, 0, 0)
    assert row["ngrams"] > 50
    assert row["contaminated_frac"] == 0.0


def test_validation_is_neither_scanned_nor_touched(cleaned):
    facts = _documents(cleaned)
    held_out = {i for i, r in facts.items() if r["split"] == "validation"}
    assert any("Question 5:" in facts[i]["text"] for i in held_out)
    assert not held_out & {h["doc_id"] for h in _hits(cleaned)}
    assert held_out <= survivors(cleaned["workdir"], STAGES[1:])
    assert all(_text_of(cleaned, i) == facts[i]["text"] for i in held_out)


def test_cuts_are_disjoint_from_earlier_ones_and_take_the_items_out(cleaned):
    """A span around a sentence that was cut before goes to both sides of it."""
    rows = whole_table(cleaned["workdir"], "decontaminate", "cuts").to_pylist()
    earlier = whole_table(cleaned["workdir"], "dedup_sentences", "cuts").to_pylist()
    crossed = 0
    for cut in rows:
        mine = [c for c in earlier if c["doc_id"] == cut["doc_id"]]
        assert all(c["end"] <= cut["start"] or cut["end"] <= c["start"] for c in mine)
        crossed += len(mine)
    facts = _documents(cleaned)
    for doc_id in {c["doc_id"] for c in rows}:
        left = _text_of(cleaned, doc_id)
        gone = [(c["start"], c["end"]) for c in [*rows, *earlier] if c["doc_id"] == doc_id]
        raw = facts[doc_id]["text"].encode()
        kept = bytes(b for i, b in enumerate(raw) if not any(a <= i < z for a, z in gone))
        assert left == kept.decode()
    [split] = {h["doc_id"] for h in _hits(cleaned, item="q3")}
    if any(c["doc_id"] == split for c in earlier):
        assert crossed >= 2
        assert "Question" not in _text_of(cleaned, split)


def test_a_document_that_is_an_item_is_dropped(cleaned):
    decided = decisions(cleaned["workdir"], "decontaminate")
    reasons = [decided[doc_id]["drop_reason"] for doc_id in {h["doc_id"] for h in _hits(cleaned, item="q2")}]
    assert reasons
    assert set(reasons) == {"decontaminate.mostly_eval"}


@pytest.mark.parametrize("policy", ["drop", "report"])
def test_another_policy_reads_no_text_again(cleaned, spark, tmp_path, policy, monkeypatch):
    values = fork(cleaned, tmp_path / "run")
    values["decontaminate"] = {**values["decontaminate"], "policy": policy}
    folder = Path(values["workdir"], "decontaminate", "matches")
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    manifest = run_stages(spark, values, ("decontaminate",))["decontaminate"]
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    dropped = sum(c.docs for c in manifest.counts if c.kind == "dropped")
    assert dropped == (len({h["doc_id"] for h in _hits(values)}) if policy == "drop" else 0)
    assert manifest.facts["num_cuts"] == 0
    assert _hits(values) == _hits(cleaned)


@pytest.mark.parametrize(("part_bytes", "parts"), [(10**6, 2), (25_000, 3), (7_000, 7)])
def test_parts_and_slices_do_not_change_hits(cleaned, spark, tmp_path, part_bytes, parts):
    values = {**cleaned, "workdir": str(tmp_path / "run"), "ingest": {**cleaned["ingest"], "part_bytes": part_bytes}}
    run_stages(spark, values, STAGES, slice_rows=7)
    assert len(part_files.part_numbers(values["workdir"], "ingest", "documents")) >= parts

    def by_key(v):
        rows = sorted(({k: x for k, x in h.items() if k != "doc_id"} for h in _hits(v)), key=str)
        return rows, need_stage(v["workdir"], "decontaminate").facts["evals"]

    assert by_key(values) == by_key(cleaned)


def test_an_eval_among_the_inputs_is_told(cleaned, spark, tmp_path):
    values = fork(cleaned, tmp_path / "run")
    pool = Path(values["inputs"][0]["paths"][0])
    values["decontaminate"] = {"evals": [{"paths": [str(pool)], "preset": "text"}], "policy": "report"}
    facts = run_stages(spark, values, ("decontaminate",))["decontaminate"].facts
    assert len(facts["warnings"]) == 1
    assert "input of source pool" in facts["warnings"][0]
    [row] = facts["evals"]
    assert row["items_hit"] > 0.6 * row["items"]  # held-out documents are not scanned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "one two"}\n', "yields no n-gram"),
        ("\n", "holds no record"),
        ('{"other": "a"}\n', "none of the known"),
    ],
)
def test_an_eval_that_checks_nothing_is_refused(cleaned, spark, tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    values = {**cleaned, "decontaminate": {"evals": [str(path)]}}
    with pytest.raises(ConfigError, match=message):
        run_stages(spark, {**values, "workdir": fork(cleaned, tmp_path / "run")["workdir"]}, ("decontaminate",))
