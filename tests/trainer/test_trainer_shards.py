from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refinery.contracts.runs import read_run_record
from refinery.errors import ConfigError, DataError, IntegrityError
from refinery.shards.manifest import StreamKey
from refinery.shards.plan import append_stage, first_plan, plan_bytes
from refinery.tokenization.info import plain_tokenizer, probe_ids
from refinery.tokenization.recipe import recipe_from_mapping
from refinery.tokenization.train import train_bpe
from refinery.trainer.__main__ import check_init_tokenizer, load_train_file, main, profile_window
from refinery.trainer.checkpoint import find_latest, read_state
from refinery.trainer.metrics import read_json_lines
from refinery.trainer.shard_source import ShardSource, open_shards
from tests.shards import datasets

LAW, WEB = "law/target/zh/w0/train", "web/pool/en/w0/train"
REPLAY, HELD_OUT = "general/replay/en/w1/train", "law/target/zh/w0/validation"
MODEL = {"d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 64}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    manifest = datasets.build(root)
    plan = first_plan(manifest, 5, [(64, {LAW: 0.5, WEB: 0.3, REPLAY: 0.2})])
    (root / "plan.json").write_bytes(plan_bytes(plan))
    return root, manifest, plan


def train_file(folder: Path, root: Path, plan: str = "plan.json", **changes) -> Path:
    options = {"batch_tokens": 8 * datasets.L, "evaluate": {"every_steps": 2}, "threads": 1}
    values = {"manifest": str(root), "plan": str(root / plan), "out_dir": "out", "model": MODEL,
              "options": options | changes.pop("options", {})} | changes
    path = folder / "train.json"
    path.write_text(json.dumps(values))
    return path


def test_command_trains_from_the_manifest_to_the_end_of_the_plan(dataset, tmp_path):
    root, manifest, _ = dataset
    assert main(["--config", str(train_file(tmp_path, root))]) == 0
    record = read_run_record(tmp_path / "out" / "run.json")
    assert (record.status, record.steps, record.tokens) == ("finished", 8, 64 * datasets.L)
    assert record.data["content_hash"] == manifest.content_hash
    assert {point.stream for point in record.points} == {HELD_OUT}
    assert all(point.bits_per_byte is not None for point in record.points)
    assert record.points[-1].replay_frac == pytest.approx(0.2, abs=0.05)
    rows = {name: tokens / datasets.L for name, tokens in record.stream_tokens.items()}
    assert sum(rows.values()) == 64
    assert rows[LAW] == pytest.approx(32, abs=3)


def test_mix_may_change_ahead_but_not_behind(dataset, tmp_path):
    root, _, plan = dataset
    path = train_file(tmp_path, root, options={"steps": 4})
    assert main(["--config", str(path)]) == 0
    (root / "later.json").write_bytes(plan_bytes(append_stage(plan, 32, 64, {LAW: 1, WEB: 3})))
    (root / "earlier.json").write_bytes(plan_bytes(append_stage(plan, 24, 64, {LAW: 1, WEB: 3})))
    assert main(["--config", str(train_file(tmp_path, root, "earlier.json", options={"steps": 8}))]) == 4
    grown = train_file(tmp_path, root, options={"steps": 8})
    assert main(["--config", str(grown), "--plan", str(root / "later.json")]) == 0
    last = [line for line in read_json_lines(tmp_path / "out" / "metrics.jsonl") if line["kind"] == "train"][-1]
    assert set(last["stream_losses"]) <= {LAW, WEB}


def test_any_split_among_ranks_reads_the_same_rows(dataset):
    root, manifest, plan = dataset
    source = ShardSource(root, manifest, plan)
    whole = source.batch(8, 16)
    for world_size in (1, 2, 4):
        parts = [source.batch(8, 16, slice(rank, None, world_size)) for rank in range(world_size)]
        k = np.concatenate([part.k for part in parts])
        tokens = np.concatenate([part.tokens for part in parts])
        assert np.array_equal(np.sort(k), np.arange(8, 24))
        assert np.array_equal(tokens[np.argsort(k)], whole.tokens[np.argsort(whole.k)])
    source.close()


def test_validation_documents_in_training_are_refused(tmp_path, monkeypatch):
    original = datasets.documents
    monkeypatch.setattr(datasets, "documents", lambda stream, count: original("same", count))
    manifest = datasets.build(tmp_path, streams={
        StreamKey("law", "target", "zh", 0, "train"): 60, StreamKey("law", "target", "zh", 0, "validation"): 60})
    (tmp_path / "plan.json").write_bytes(plan_bytes(first_plan(manifest, 5, [(64, {LAW: 1.0})])))
    with pytest.raises(DataError, match="validation documents are in stream law"):
        open_shards(tmp_path, tmp_path / "plan.json")


def test_another_tokenizer_is_refused(dataset):
    root, _, _ = dataset
    with pytest.raises(IntegrityError, match=r"probe|tokenizer"):
        open_shards(root, root / "plan.json", encode=lambda text: [1, 2, 3])


def test_config_file_errors_have_their_exit_codes(dataset, tmp_path):
    root, _, _ = dataset
    assert main(["--config", str(tmp_path / "none.json")]) == 2
    assert main(["--config", str(train_file(tmp_path, root, modell=1))]) == 2
    assert main(["--config", str(train_file(tmp_path, root, options={"stepz": 1}))]) == 2
    assert main(["--config", str(train_file(tmp_path, root, "missing.json"))]) == 4


def test_sigterm_saves_and_exits_with_0(dataset, tmp_path):
    root, _, _ = dataset
    path = train_file(tmp_path, root, options={"log_every_steps": 1, "batch_tokens": datasets.L, "steps": 60})
    process = subprocess.Popen(
        [sys.executable, "-m", "refinery.trainer", "--config", str(path)], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step 3/60"):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, seen
    record = read_run_record(tmp_path / "out" / "run.json")
    assert (record.status, record.steps < 60) == ("stopped", True)
    found = find_latest(tmp_path / "out" / "checkpoints")
    assert found is not None
    assert read_state(found)["step"] == record.steps >= 3
    line = r"step 3/60  loss \S+  lr \S+  norm \S+  [\d,]+ tokens/s  \d+ min \d\d s left"
    assert any(re.match(line, one) for one in seen)


def test_wrong_tokenizers_and_versions_are_refused(dataset, tmp_path):
    root, manifest, _ = dataset
    recipe = recipe_from_mapping({"name": "t", "vocab_size": 280, "num_reserved": 2, "sample_bytes": 999, "seed": 1})
    train_bpe(["some text to learn from, again and again " * 20], recipe, tmp_path / "tokenizer")
    with pytest.raises(IntegrityError, match="ids of one are noise to the other"):
        load_train_file(train_file(tmp_path, root, tokenizer=str(tmp_path / "tokenizer")))
    definition = (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    probe = tuple((text, (1,)) for text, _ in probe_ids(plain_tokenizer(definition, "t")))
    made_otherwise = replace(manifest, tokenizer=replace(manifest.tokenizer, probe=probe))
    with pytest.raises(IntegrityError, match="tokenize with the checkpoint's tokenizer"):
        check_init_tokenizer(tmp_path / "tokenizer", SimpleNamespace(manifest=made_otherwise))
    check_init_tokenizer(tmp_path, SimpleNamespace(manifest=manifest))
    other = tmp_path / "other"
    shutil.copytree(root, other)
    values = json.loads((other / "manifest.json").read_text())
    values["format"]["version"] = values["format"]["reader_min"] = 90
    (other / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(IntegrityError, match="reader of version 90"):
        load_train_file(train_file(tmp_path, other))
    assert main(["--config", str(train_file(tmp_path, other))]) == 4
    assert main(["--config", str(train_file(tmp_path, root)), "--profile", "4:2"]) == 2


def test_profile_windows():
    assert profile_window("10:12") == (10, 12)
    for text in ("", "3", "5:5", "a:b", "-1:2"):
        with pytest.raises(ConfigError, match="a:b"):
            profile_window(text)


def test_preset_fills_in_vocabulary_rate_and_row_length(dataset, tmp_path):
    root, _, _ = dataset
    config = load_train_file(train_file(tmp_path, root, model="tiny")).config
    assert (config.model.d_model, config.model.vocab_size, config.model.max_sequence_length) == (128, 640, datasets.L)
    assert config.schedule.max_lr == 2e-3
    assert config.steps == 8
    with pytest.raises(ConfigError, match="preset"):
        load_train_file(train_file(tmp_path, root, model="tinny"))
