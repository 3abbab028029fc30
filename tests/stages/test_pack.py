from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from refinery.errors import ConfigError, IntegrityError
from refinery.shards.verify import verify_dataset
from refinery.shards.writer import lock_folder
from refinery.stages import pack as module
from refinery.stages.workspace import need_stage
from tests.stages.runs import fork, run_stages, shard_hash

pytestmark = pytest.mark.spark


def _root(values):
    return Path(values["workdir"], "pack", "shards")


def test_a_pack_that_dies_between_parts_leaves_an_unfinished_data_set_and_goes_on(spark, done, tmp_path, monkeypatch):
    values = fork(done, tmp_path / "run")
    root = _root(values)
    before = {p.relative_to(root) for p in root.rglob("part-*")}
    values["mix"] = {"stages": [{"domains": {"law": 0.5, "web": 0.5}}]}
    run_stages(spark, values, ["mix"])
    with lock_folder(root), pytest.raises(ConfigError, match="is writing there"):
        run_stages(spark, values, ["pack"])
    assert verify_dataset(root).content_hash == shard_hash(done), "a refused writer changes nothing"
    real = module.apply_groups

    def dies(*args):
        real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "apply_groups", dies)
        with pytest.raises(KeyboardInterrupt):
            run_stages(spark, values, ["pack"])
    with pytest.raises(IntegrityError, match="never finished"):
        verify_dataset(root)
    (root / ".part-00000.bin.tmp-1-dead").write_bytes(b"half")
    monkeypatch.setattr(module, "map_parts", lambda *args: pytest.fail("parts that stand are packed again"))
    run_stages(spark, values, ["pack"])
    manifest = verify_dataset(root, "audit")
    listed = {part.path + suffix for s in manifest.streams for part in s.parts for suffix in part.files}
    assert {str(p.relative_to(root)) for p in root.rglob("part-*")} == listed, "no part of the mix before is left"
    assert len(before) > len(listed)
    assert not list(root.rglob(".*.tmp-*"))


def test_the_card_says_where_the_text_comes_from(done):
    text = (_root(done) / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["task_categories"] == ["text-generation"]
    manifest = verify_dataset(_root(done))
    assert manifest.content_hash in text
    for one in done["inputs"]:
        assert f"| {one['source']} | {one['domain']} |".replace("_", "\\_") in text
    funnel = dict(re.findall(r"^\| (\w+) \| [\d,]+ \| ([\d,]+) \|", text.replace("\\_", "_"), flags=re.MULTILINE))
    for stage in ("ingest", "rules", "dedup_documents", "tokenize", "mix"):
        kept = sum(c.docs for c in need_stage(done["workdir"], stage).counts if c.kind == "kept")
        assert funnel[stage] == f"{kept:,}", stage
    assert "every pair verified" in text
    assert "Decontamination: none" in text


def test_packing_is_compared_with_concat(done):
    facts = need_stage(done["workdir"], "pack").facts
    rows = sum(s["rows"] for s in facts["streams"])
    assert 0 < facts["concat_rows"] <= rows
    assert facts["dropped_tokens"] == 0
    assert sum(d["share"] for d in facts["domains"].values()) == pytest.approx(1)
