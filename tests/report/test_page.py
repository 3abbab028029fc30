from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from refinery.errors import IntegrityError
from refinery.report.collect import collect
from refinery.report.facts import Amount
from refinery.report.page import render, size_names, write_report
from tests.report import fake_run

VOID = {"meta", "wbr", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    path = write_report(str(run_folder), fake_run.recipe(run_folder))
    assert path == str(run_folder / "report" / "index.html")
    return Path(path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_strangers_text_is_escaped_and_its_hidden_characters_are_shown(html, page):
    assert page.named("script") == []
    assert page.named("img") == []
    assert "<script>" not in html
    assert "&lt;script&gt;alert(" in html
    assert "\u202e" not in html
    assert '<span class="code-point">U+202E</span>' in html
    assert '<span class="code-point">U+200B</span>' in html
    assert '<span class="code-point">U+0007</span>' in html
    assert "too short &lt;b&gt;" in html
    assert "a&lt;b&gt;.jsonl" in html
    assert "too few &lt;texts&gt;" in html


def test_page_loads_nothing(html, page):
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            if name in ("src", "srcset", "action", "data", "poster") or name.startswith("on"):
                pytest.fail(f"<{tag} {name}={value!r}>")
            if name in ("href", "xlink:href"):
                assert value.startswith("#"), (tag, value)
    assert page.named("link") == []
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert "default-src 'none'" in page.named("meta")[2]["content"]


def test_contents_lead_to_sections_and_ids_are_unique(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in page.named("a")]
    assert set(links) == set(ids)
    assert {"funnel", "drops", "rules", "ingest", "clusters", "tokenizer", "mix", "packing", "training"} <= set(ids)
    assert {"time", "samples", "about"} <= set(ids)


def test_tables_have_captions_and_pictures_have_words(page, html):
    assert len(page.named("table")) == html.count("<caption>")
    for attrs in page.named("svg"):
        assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"
    assert page.named("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in html


def test_page_speaks_in_sentences_with_the_run_numbers(page):
    assert "9 documents" in page.text
    assert "filters and deduplication kept 5 of them" in page.text
    assert "fell from 3.00 to 2.50 bits per byte on law (target, zh)" in page.text
    assert "2 records could not be read" in page.text
    assert "law is read 5.0 times" in page.text


def test_caps_on_shares_stand_with_their_reasons(page, html):
    assert "law has 30.00%, at most 50%: it is <law>." in page.text
    assert "it is <law>" not in html


def test_a_removed_duplicate_stands_beside_its_twin(html):
    assert "<del>changed</del><ins>as it was</ins>" in html
    assert "Jaccard 0.812" in html


def test_rules_show_values_bounds_and_what_was_spared(html, page):
    assert "num_words = 3" in page.text
    assert "Keeps num_words ≥ 5" in page.text
    assert "kept documents nearest to the bound" in page.text
    assert 'class="cut"' in html


def test_summary_json_holds_the_same_numbers(html, run_folder):
    summary = json.loads((run_folder / "report" / "summary.json").read_text(encoding="utf-8"))
    assert summary["format"] == "refinery.report"
    assert [flow["stage"] for flow in summary["funnel"]] == ["ingest", "rules", "dedup_documents", "tokenize", "mix"]
    assert all(flow["balanced"] for flow in summary["funnel"])
    assert sum(stream["docs"] for stream in summary["packing"]["streams"]) == 4
    assert summary["validation"][-1]["bits_per_byte"] == 2.5
    assert summary["to_look_at"]


def test_page_is_the_same_twice(html, run_folder):
    again = write_report(str(run_folder), fake_run.recipe(run_folder))
    assert Path(again).read_text(encoding="utf-8") == html


@pytest.mark.parametrize("upto", ["ingest", "rules", "tokenize", "mix"])
def test_unfinished_runs_are_reported_as_far_as_they_came(tmp_path, upto):
    fake_run.write(tmp_path, upto)
    page = Page(Path(write_report(str(tmp_path), fake_run.recipe(tmp_path))).read_text(encoding="utf-8"))
    assert "train has not been run yet" in page.text
    assert "training" not in {attrs.get("id") for _, attrs in page.tags}


def test_stages_that_the_recipe_leaves_out_do_not_appear(tmp_path):
    fake_run.write(tmp_path, "ingest")
    only = dict.fromkeys(["rules", "dedup_documents", "tokenizer", "mix", "pack", "train"])
    html = Path(write_report(str(tmp_path), fake_run.recipe(tmp_path, **only))).read_text(encoding="utf-8")
    page = Page(html)
    assert "has not been run yet" not in page.text
    assert "all were kept" in page.text
    assert not {"rules", "clusters", "mix", "tokenizer"} & {attrs.get("id") for _, attrs in page.tags}


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    page = Page(Path(write_report(str(tmp_path), fake_run.recipe(tmp_path))).read_text(encoding="utf-8"))
    assert "No stage has finished yet" in page.text


def test_no_samples_when_none_are_asked_for(tmp_path):
    fake_run.write(tmp_path, "rules")
    recipe = fake_run.recipe(tmp_path, report={"samples": 0})
    html = Path(write_report(str(tmp_path), recipe)).read_text(encoding="utf-8")
    assert "too short" not in html


def test_a_damaged_manifest_is_refused(tmp_path):
    fake_run.write(tmp_path, "rules")
    path = tmp_path / "rules" / "_stage.json"
    path.write_text(path.read_text().replace('"docs": 1', '"docs": 2', 1))
    with pytest.raises(IntegrityError, match="content hash"):
        write_report(str(tmp_path), fake_run.recipe(tmp_path))


def test_size_names():
    assert size_names([2, 3, 6, 1001]) == ["2", "3–5", "6–1,000", "1,001+"]


def test_many_languages_do_not_make_a_table_without_end(run_folder):
    facts = collect(str(run_folder), fake_run.recipe(run_folder))
    amount = (Amount(1, 10), Amount(1, 10), Amount(1, 10))
    languages = {f"l{i:03d}": amount for i in range(150)} | {"zh": (Amount(9, 900), Amount(), Amount())}
    html = render(dataclasses.replace(facts, labels={**facts.labels, "lang": languages}), {}, [])
    assert "the 12 of 151 with the most bytes" in html
    assert '<th scope="col">zh</th>' in html
    assert '<th scope="col">l140</th>' not in html


def test_numbers_are_there_for_a_hostile_source_name(run_folder):
    facts = collect(str(run_folder), fake_run.recipe(run_folder))
    sources = {
        '<b onload="x">\u202e': (Amount(1, 10), Amount(1, 10), Amount(1, 10)),
        "web": (Amount(), Amount(), Amount()),
    }
    page = Page(render(dataclasses.replace(facts, labels={"source": sources}), {}, []))
    assert page.named("b") == []
    assert not any("onload" in attrs for _, attrs in page.tags)
    assert "U+202E" in page.text
