"""Word boundaries of Chinese text: stored once by rules, read back by later stages."""

from __future__ import annotations

import numpy as np
import pytest

from refinery.io import parts as part_files
from refinery.io.survivors import read_survivors
from refinery.kernels.segmentation import segment_han
from refinery.kernels.signals import signals
from refinery.kernels.text import text_views
from refinery.kernels.words import word_spans
from refinery.recipe import parse_recipe
from refinery.stages.workspace import need_stage, stores_words
from tests.stages.corpus import build_corpus, recipe_values
from tests.stages.runs import fork, parts_of, run_stages

pytestmark = pytest.mark.spark
STAGES = ("ingest", "rules")


@pytest.fixture(scope="module")
def ruled(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    values = recipe_values(build_corpus(folder / "corpus"), folder / "run")
    run_stages(spark, values, STAGES, slice_rows=7)
    return values


def test_every_document_with_han_that_rules_saw_has_its_boundaries(ruled):
    workdir, segmented = ruled["workdir"], 0
    for part in parts_of(workdir):
        words = part_files.read_part(workdir, "rules", "words", part)
        documents = part_files.read_part(workdir, "ingest", "documents", part, ["doc_id", "text"])
        assert words.column("doc_id").equals(documents.column("doc_id"))
        views = text_views(documents.column("text"))
        found = segment_han(views)
        assert words.column("boundaries").is_valid().to_pylist() == found.has_han.tolist()
        for piece in read_survivors(workdir, part, ["text", "words"], (), 5):
            mine = text_views(piece.table.column("text"))
            flags = piece.boundaries(mine)
            want = segment_han(mine)
            assert (flags is None) == (not want.has_han.any())
            assert flags is None or np.array_equal(flags, want.boundaries)
        stored = part_files.read_part(workdir, "rules", "signals", part).column("num_words").to_numpy()
        assert np.array_equal(stored, np.diff(word_spans(views, found.boundaries).word_offsets))
        segmented += int(found.has_han.sum())
    assert segmented > 5


def test_switched_off_there_are_none(ruled, spark, tmp_path):
    values = fork(ruled, tmp_path / "run")
    values["rules"] = {**values.get("rules", {}), "segment_chinese": False}
    assert stores_words(parse_recipe(ruled), "dedup_documents")
    assert not stores_words(parse_recipe(ruled), "rules")
    assert not stores_words(parse_recipe(values), "dedup_documents")
    done = run_stages(spark, values, STAGES)["rules"]
    assert {e.table for e in done.parts} == {"signals", "decisions"}
    assert part_files.part_numbers(values["workdir"], "rules", "words") == [], "boundaries of another run would mislead"
    assert done.content_hash != need_stage(ruled["workdir"], "rules").content_hash
    for part in parts_of(values["workdir"]):
        text = part_files.read_part(values["workdir"], "ingest", "documents", part, ["text"]).column("text")
        stored = part_files.read_part(values["workdir"], "rules", "signals", part).column("num_words").to_numpy()
        assert np.array_equal(stored, signals(text_views(text))["num_words"])


def test_a_lost_part_of_words_is_made_again(ruled, spark, tmp_path):
    values = fork(ruled, tmp_path / "run")
    path = part_files.part_path(values["workdir"], "rules", "words", 1)
    before = need_stage(values["workdir"], "rules")
    part_files.storage.remove(path)
    after = run_stages(spark, values, STAGES)["rules"]
    assert after.content_hash == before.content_hash
    assert part_files.part_numbers(values["workdir"], "rules", "words") == parts_of(values["workdir"])
