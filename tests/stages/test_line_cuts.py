"""Line rules in the rules stage: what goes, what is judged behind them, and that later stages see what is left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from refinery.errors import ConfigError
from refinery.io import parts as part_files
from refinery.io.survivors import read_labels, read_survivors
from refinery.kernels.segmentation import segment_han
from refinery.kernels.signals import CHARACTER_SIGNALS, signals
from refinery.kernels.text import text_views, views_of
from refinery.recipe import parse_recipe
from refinery.report.explain import explain, explain_text
from refinery.report.page import write_report
from refinery.stages import rules, rules_facts
from refinery.stages.retune import plan_retune
from refinery.stages.workspace import Run, need_stage
from tests.stages import local
from tests.stages.line_corpus import EN_STORY, PAGES

GOLDEN = Path(__file__).parent.parent / "golden" / "line_rules.json"
RECIPES = {
    "c4": ["c4"],
    "fineweb": ["c4_fineweb", "fineweb"],
    "refinedweb": ["refinedweb_lines"],
    "zh": ["zh_lines"],
    "all": ["gopher", "c4", "refinedweb_lines", "zh_lines"],
}


@pytest.fixture(autouse=True)
def no_spark(monkeypatch):
    monkeypatch.setattr(rules, "run_part_tasks", local.tasks_in_turn)


def rows():
    found = []
    for name, (lang, text) in PAGES.items():
        domain = "code" if name == "code" else "web"
        row = {"source": name[:2], "role": "pool", "domain": domain, "lang": lang, "name": name, "text": text}
        found.append(row)
    return found


def ran(folder, presets, *, parts=2, slice_rows=4096, **section):
    values = local.values_for(folder, rows(), rules={"presets": presets, "by_domain": {"code": ["code"]}, **section})
    local.write_documents(values, rows(), num_parts=parts, seed=None)
    return values, local.run_local(values, rules, slice_rows=slice_rows)


def names_of(values):
    known = {local.hex_key(row["source"], row["name"]): row["name"] for row in rows()}
    return {r["doc_id"]: known[r["doc_key"]] for r in local.table_of(values, "ingest", "documents")}


def outcome(values):
    """Return name -> why it goes, or what it loses: [rule, text] in order."""
    names = names_of(values)
    told = {names[r["doc_id"]]: r["drop_reason"] or [] for r in local.table_of(values, "rules", "decisions")}
    for cut in sorted(local.table_of(values, "rules", "cuts"), key=lambda r: (r["doc_id"], r["start"])):
        name = names[cut["doc_id"]]
        piece = PAGES[name][1].encode()[cut["start"] : cut["end"]].decode()
        told[name].append([cut["reason"], piece])
    return told


def test_golden_decisions(tmp_path):
    found = {}
    for recipe, presets in RECIPES.items():
        values, _ = ran(tmp_path / recipe, presets)
        found[recipe] = outcome(values)
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for recipe, pages in wanted.items():
        for name, told in pages.items():
            assert found[recipe][name] == told, (recipe, name)
    assert found.keys() == wanted.keys()


def test_same_bytes_for_any_parts_and_slices(tmp_path):
    """Rows depend on the document alone: by key, all tables are the same however they were dealt and sliced."""
    whole = None
    for parts, slice_rows in ((1, 4096), (3, 7), (7, 1)):
        values, _ = ran(tmp_path / f"{parts}", RECIPES["all"], parts=parts, slice_rows=slice_rows)
        names = names_of(values)
        seen = {}
        for table in ("signals", "words", "signals_left", "line_findings", "decisions", "cuts"):
            grouped = [(names[r.pop("doc_id")], repr(r)) for r in local.table_of(values, "rules", table)]
            seen[table] = sorted(grouped)
        assert whole is None or seen == whole
        whole = seen
    again, _ = ran(tmp_path / "again", RECIPES["all"], parts=3, slice_rows=4096)
    first = need_stage(str(tmp_path / "3"), "rules")
    assert need_stage(again["workdir"], "rules").content_hash == first.content_hash


def test_what_came_in_is_kept_dropped_or_cut(tmp_path):
    values, done = ran(tmp_path, RECIPES["all"])
    size = sum(len(text.encode()) for _, text in PAGES.values())
    assert sum(c.bytes for c in done.counts) == size
    assert sum(c.docs for c in done.counts if c.kind != "cut") == len(PAGES)
    cut = {c.reason: c.bytes for c in done.counts if c.kind == "cut"}
    assert "c4.few_words" in cut
    assert "zh_lines.share_bar" in cut
    # what later stages read is as long as what was kept
    left = 0
    for part in (0, 1):
        labels = read_labels(values["workdir"], part, ["num_bytes"], ("rules",)).column("num_bytes").to_numpy()
        for piece in read_survivors(values["workdir"], part, ["doc_id", "text", "num_bytes"], ("rules",), 3):
            lengths = [len(t.encode()) for t in piece.table.column("text").to_pylist()]
            assert piece.table.column("num_bytes").to_pylist() == lengths == labels[piece.rows].tolist()
            left += sum(lengths)
    assert left == sum(c.bytes for c in done.counts if c.kind == "kept")


def test_rules_behind_line_rules_judge_what_is_left(tmp_path):
    values, _ = ran(tmp_path, ["c4"])
    left = local.by_key(values, "rules", "signals_left")
    before = local.by_key(values, "rules", "signals")
    for row in rows():
        key = local.hex_key(row["source"], row["name"])
        if row["name"] == "en-framed":
            story = signals(views_of([EN_STORY]))
            assert left[key]["num_sentences"] == story["num_sentences"][0] == 8
            assert left[key]["c4.num_line_sentences"] == 8
            assert before[key]["num_sentences"] > 8
            assert left[key]["dup_5gram_char_frac"] is None, "no rule behind the line rules asks for n-grams"
            assert before[key]["dup_5gram_char_frac"] is not None
            assert left[key]["c4.cut_word_frac"] > 0
        if row["name"] == "en-brace":
            assert left[key]["c4.braces"] == 1
    decided = local.by_key(values, "rules", "decisions")
    assert decided[local.hex_key("en", "en-few-sentences")]["drop_reason"] == "c4.sentences"
    assert decided[local.hex_key("co", "code")]["drop_reason"] is None, "the code preset has no line rules"


def test_rules_before_line_rules_judge_the_text_as_it_came_in(tmp_path):
    preset = tmp_path / "long.yaml"
    rule = {"name": "long", "signal": "num_lines", "max": 8, "source": "test"}
    preset.write_text(yaml.safe_dump({"name": "long", "doc": "", "rules": [rule]}))
    first, _ = ran(tmp_path / "first", [str(preset), "c4"])
    last, _ = ran(tmp_path / "last", ["c4", str(preset)])
    key = local.hex_key("en", "en-framed")  # ten lines, four of them text
    assert local.by_key(first, "rules", "decisions")[key]["drop_reason"] == "long.long"
    assert local.by_key(last, "rules", "decisions")[key]["drop_reason"] is None


def test_stored_words_are_those_of_what_is_left(tmp_path):
    values, _ = ran(tmp_path, RECIPES["all"])
    seen = 0
    for part in (0, 1):
        for piece in read_survivors(values["workdir"], part, ["text", "words"], ("rules",), 4):
            views = text_views(piece.table.column("text"))
            flags, fresh = piece.boundaries(views), segment_han(views)
            if flags is not None:
                assert np.array_equal(flags, fresh.boundaries), "lines end runs of Han: cutting them moves no word"
                seen += int(fresh.has_han.sum())
    assert seen >= 3


def test_without_line_rules_no_cut_of_another_run_is_left(tmp_path):
    values, _ = ran(tmp_path, RECIPES["all"])
    assert part_files.part_numbers(values["workdir"], "rules", "cuts") == [0, 1]
    plain = {**values, "rules": {"presets": ["gopher"]}}
    done = local.run_local(plain, rules)
    for table in ("cuts", "line_findings", "signals_left"):
        assert part_files.part_numbers(values["workdir"], "rules", table) == []
    assert {e.table for e in done.parts} == {"signals", "words", "decisions"}


def test_a_recipe_without_line_rules_writes_none_of_their_tables(tmp_path):
    values, done = ran(tmp_path, ["gopher"])
    assert {e.table for e in done.parts} == {"signals", "words", "decisions"}
    assert "line_rules" not in done.facts
    assert "after_lines" not in done.recipe_slice
    assert local.by_key(values, "rules", "signals").keys() == {local.hex_key(r["source"], r["name"]) for r in rows()}


def test_an_interrupted_stage_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    _, done = ran(tmp_path / "done", RECIPES["all"])
    for stop_at in range(1, 12):
        folder = tmp_path / f"stop-{stop_at}"
        written = []
        real = part_files.write_part

        def stop(path, *args, _written=written, _real=real, _stop_at=stop_at, **kwargs):
            if "/rules/" in str(path):
                _written.append(path)
                if len(_written) == _stop_at:
                    raise KeyboardInterrupt
            return _real(path, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(part_files, "write_part", stop)
            with pytest.raises(KeyboardInterrupt):
                ran(folder, RECIPES["all"])
        values = local.values_for(
            folder, rows(), rules={"presets": RECIPES["all"], "by_domain": {"code": ["code"]}}
        )  # fmt: skip
        assert local.run_local(values, rules).content_hash == done.content_hash


def test_retune_decides_again_behind_line_rules(tmp_path):
    values, _ = ran(tmp_path / "run", ["refinedweb_lines"])
    looser = tmp_path / "refinedweb_lines.yaml"
    packed = (Path(rules_facts.__file__).parents[1] / "kernels/presets/refinedweb_lines.yaml").read_text()
    looser.write_text(packed.replace("max: 0.05", "max: 0.6"))
    changed = {**values, "rules": {**values["rules"], "presets": [str(looser)]}}
    kept_before = sum(c.docs for c in need_stage(values["workdir"], "rules").counts if c.kind == "kept")
    found = plan_retune(parse_recipe(changed))
    back = {c.before: c for c in found.changes if c.after is None}
    assert set(back) == {"refinedweb_lines.cut_words"}
    done = local.run_local(changed, rules)
    kept = sum(c.docs for c in done.counts if c.kind == "kept")
    assert kept == kept_before + found.total(kept=True)[0] > kept_before


def test_retune_says_that_a_changed_line_rule_needs_the_text(tmp_path):
    values, _ = ran(tmp_path / "run", ["refinedweb_lines"])
    other = tmp_path / "refinedweb_lines.yaml"
    packed = (Path(rules_facts.__file__).parents[1] / "kernels/presets/refinedweb_lines.yaml").read_text()
    other.write_text(packed.replace("fact: upper_frac, max: 0.5", "fact: upper_frac, max: 0.6"))
    for changed in ([str(other)], ["refinedweb_lines", "c4"], ["gopher"]):
        with pytest.raises(ConfigError, match=r"refinery rules RECIPE"):
            plan_retune(parse_recipe({**values, "rules": {**values["rules"], "presets": changed}}))
    before = {**values, "rules": {**values["rules"], "presets": ["gopher", "refinedweb_lines"]}}
    assert any(c.after == "gopher.words_min" for c in plan_retune(parse_recipe(before)).changes), "numbers suffice"


def test_explain_shows_the_lines_and_their_rules(tmp_path):
    values, _ = ran(tmp_path, RECIPES["all"])
    told = explain(values["workdir"], local.hex_key("zh", "zh-framed"))
    assert told["outcome"] == "kept"
    by_rule = {line["rule"]: line for line in told["lines"]}
    assert by_rule["zh_lines.share_bar"]["text"].strip() == "分享到：微信 微博 QQ空间"
    assert by_rule["zh_lines.share_bar"]["line"] == 6
    text = explain_text(told)
    assert "line 6 cut by zh_lines.share_bar" in text
    told = explain(values["workdir"], local.hex_key("en", "en-brace"))
    assert told["reason"] == "c4.braces"
    assert "c4.braces: 1 lines trip over it" in explain_text(told)
    assert "line 5 drops the document by c4.braces: 'All of it {is listed} in the log.'" in explain_text(told)
    values, _ = ran(tmp_path / "other", ["refinedweb_lines"])
    told = explain(values["workdir"], local.hex_key("en", "en-shouting"))
    assert told["reason"] == "refinedweb_lines.cut_words"
    assert "kept is at most 0.05, of what line rules left" in explain_text(told)


def test_report_shows_cut_bytes_by_source_and_escapes_the_lines(tmp_path):
    rows_of_tags = rows()
    rows_of_tags[0]["text"] = EN_STORY + "\n<script>alert(1)</script> is no sentence"
    values = local.values_for(tmp_path, rows_of_tags, rules={"presets": ["c4", "zh_lines"]})
    local.write_documents(values, rows_of_tags, seed=None)
    local.run_local(values, rules)
    page = Path(write_report(values["workdir"], parse_recipe(values))).read_text(encoding="utf-8")
    assert "Lines that rules cut" in page
    assert "Bytes cut out of kept documents, by rule and source" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; is no sentence" in page
    assert "zh_lines.<wbr>share_bar" in page or "zh_lines.share_bar" in page


def test_where_every_rule_stands_behind_line_rules_the_whole_signals_are_of_what_is_left(tmp_path):
    mine = [row for row in rows() if row["name"] in ("en-framed", "en-clean")]
    values = local.values_for(tmp_path, mine, rules={"presets": ["c4", "gopher"]})
    local.write_documents(values, mine, num_parts=1, seed=None)
    local.run_local(values, rules)
    story = signals(views_of([EN_STORY]))
    for row in local.table_of(values, "rules", "signals_left"):
        assert row["dup_5gram_char_frac"] == pytest.approx(float(story["dup_5gram_char_frac"][0]))
        assert row["top_2gram_char_frac"] == pytest.approx(float(story["top_2gram_char_frac"][0]))
    for row in local.table_of(values, "rules", "signals"):
        whole = signals(views_of([next(r["text"] for r in mine if len(r["text"].encode()) == row["num_bytes"])]))
        told = {name: value for name, value in row.items() if value is not None and name != "doc_id"}
        assert told.keys() == CHARACTER_SIGNALS
        assert told == {name: pytest.approx(float(whole[name][0])) for name in told}


def test_facts_say_what_each_rule_alone_would_cut(tmp_path):
    _, done = ran(tmp_path, ["c4"])
    told = done.facts["line_rules"]
    counts = zip(told["cut"], told["would_cut"], told["would_cut_alone"], strict=True)
    figures = dict(zip(told["names"], counts, strict=True))
    assert figures["c4.javascript"][1] == figures["c4.javascript"][2] == 1
    assert figures["c4.no_terminal_punctuation"][1] > figures["c4.no_terminal_punctuation"][2] > 0
    assert figures["c4.lorem_ipsum"][:2] == (0, 0)
    assert done.facts["rule_names"][-1] == "rules.nothing_left"


def test_a_task_is_a_function_of_its_recipe(tmp_path):
    values, _ = ran(tmp_path, RECIPES["all"])
    task = rules.rules_task(Run(parse_recipe(values)))
    assert task.passes_before == "ngrams"
    assert task.passes_left == "words", "no rule behind the line rules asks for n-grams"
    assert task.line_rules[0].name == "c4.long_word"


def test_explain_shows_all_signals_and_what_line_rules_changed(tmp_path):
    values, _ = ran(tmp_path, RECIPES["all"])
    told = explain(values["workdir"], local.hex_key("en", "en-framed"))
    [verdict] = [v for v in told["stages"] if v["stage"] == "rules"]
    whole, left = verdict["signals"]["whole"], verdict["signals"]["left"]
    by_hand = signals(views_of([PAGES["en-framed"][1]]))
    assert whole == {name: pytest.approx(float(values[0])) for name, values in by_hand.items()}
    assert left["num_bytes"] < whole["num_bytes"]
    assert left["c4.cut_byte_frac"] > 0
    text = explain_text(told)
    before, behind = text.split("signals of what line rules left: ")
    assert f"signals: num_bytes {whole['num_bytes']}, num_chars" in before
    assert f"num_bytes {left['num_bytes']}" in behind
    assert "c4.cut_byte_frac" in behind
    assert max(map(len, text.splitlines())) < 200
    code = explain_text(explain(values["workdir"], local.hex_key("co", "code")))
    assert "signals of what line rules left: " in code
    assert "num_words" not in code.split("signals of what line rules left: ")[1], "nothing was cut"
