from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from refinery import cli
from refinery.hashing import hex_key
from refinery.stages.workspace import Run, hold_lock
from tests.stages.corpus import build_corpus, recipe_values, write_jsonl
from tests.stages.runs import decisions, documents, fork

pytestmark = pytest.mark.spark


@pytest.fixture
def refinery(spark, monkeypatch, capsys):
    """The command as ``main`` runs it, exit code included, in the session of the tests."""
    monkeypatch.setattr("refinery.stages.session.make_session", lambda *_: spark)
    monkeypatch.setattr(Run, "stop_session", lambda self: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["refinery", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def _write(values, path):
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(spark, tmp_path_factory):
    """Recipe values and recipe file of a run made by the command, with a cut by every deciding stage."""
    folder = tmp_path_factory.mktemp("cli")
    corpus = build_corpus(folder / "corpus")
    values = recipe_values(corpus, folder / "run")
    values["mix"]["budget_tokens"] = 30_000
    path = _write(values, folder / "recipe.yaml")
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr("refinery.stages.session.make_session", lambda *_: spark)
        patched.setattr(Run, "stop_session", lambda self: None)
        patched.setattr(sys, "argv", ["refinery", "run", str(path), "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return values, path


@pytest.fixture
def own(finished, tmp_path):
    """A copy that the test may damage."""
    values = fork(finished[0], tmp_path / "run")
    return values, _write(values, tmp_path / "recipe.yaml")


class TestCommands:
    def test_run_again_says_that_nothing_is_to_do(self, refinery, finished):
        code, out, err = refinery("run", finished[1])
        assert code == 0
        assert len(re.findall(r"up to date", err)) == 6
        assert "pack/shards/manifest.json" in out
        assert "report" in out

    def test_run_json_is_one_value(self, refinery, finished):
        code, out, err = refinery("run", finished[1], "--json")
        body = json.loads(out)
        assert (code, err) == (0, "")
        assert [s["stage"] for s in body["stages"]] == [
            "ingest", "rules", "dedup_documents", "tokenize", "mix", "pack"
        ]  # fmt: skip
        assert Path(body["report"]).is_file()

    def test_dry_run_runs_nothing(self, refinery, finished, tmp_path):
        values = {**finished[0], "workdir": str(tmp_path / "other")}
        code, out, _ = refinery("run", _write(values, tmp_path / "r.yaml"), "--dry-run")
        assert code == 0
        assert out.count("to do") == 6
        assert not (tmp_path / "other").exists()

    def test_from_and_to(self, refinery, own):
        code, out, _ = refinery("run", own[1], "--from", "rules", "--to", "tokenize", "--json")
        assert code == 0
        assert [s["stage"] for s in json.loads(out)["stages"]] == ["rules", "dedup_documents", "tokenize"]
        code, _, err = refinery("run", own[1], "--from", "mix", "--to", "rules")
        assert code == 2
        assert "comes after" in err
        assert refinery("run", own[1], "--to", "train")[0] == 2

    def test_one_stage(self, refinery, own):
        values, path = own
        manifest = Path(values["workdir"], "mix", "_stage.json")
        before = manifest.read_text("utf-8")
        code, out, _ = refinery("mix", path, "--json")
        assert code == 0
        assert json.loads(out)["content_hash"] == json.loads(before)["content_hash"]
        assert manifest.read_text("utf-8") == before
        code, out, _ = refinery("mix", path, "--force", "--json")
        assert code == 0
        assert json.loads(out)["content_hash"] == json.loads(before)["content_hash"]
        assert manifest.read_text("utf-8") != before, "made again at another time"

    def test_a_stage_before_its_inputs(self, refinery, finished, tmp_path):
        values = {**finished[0], "workdir": str(tmp_path / "new")}
        code, _, err = refinery("rules", _write(values, tmp_path / "r.yaml"))
        assert code == 2
        assert "stage ingest is not complete" in err
        assert "refinery ingest RECIPE" in err

    def test_status(self, refinery, finished, tmp_path):
        code, out, _ = refinery("status", finished[1])
        assert code == 0
        assert out.count("complete") == 6
        rows = json.loads(refinery("status", finished[1], "--json")[1])
        assert rows[0]["docs_kept"] == 204
        assert rows[1]["docs_dropped"] == 4
        assert rows[-1]["tokens_kept"] > 0
        values = {**finished[0], "workdir": str(tmp_path / "new")}
        code, out, _ = refinery("status", _write(values, tmp_path / "r.yaml"))
        assert (code, out.count("to do")) == (0, 6)

    @pytest.mark.parametrize("stage", ["rules", "dedup_documents", "mix"])
    def test_explain_says_why_at_each_stage(self, refinery, finished, stage):
        values, path = finished
        by_id = {row["doc_id"]: row for row in documents(values["workdir"]).values()}
        doc_id, dropped = next((i, d) for i, d in decisions(values["workdir"], stage).items() if d["keep"] is False)
        key = by_id[doc_id]["doc_key"]
        code, out, _ = refinery("explain", path, key)
        assert code == 0
        assert dropped["drop_reason"] in out or dropped["drop_reason"].rpartition(".")[2] in out
        facts = json.loads(refinery("explain", path, key, "--json")[1])
        assert facts["outcome"] == "dropped"
        assert facts["dropped_at"] == stage
        assert facts["reason"] == dropped["drop_reason"]
        if stage == "dedup_documents":
            assert dropped["because_of"] in out
            assert dropped["because_of"] in json.dumps(facts["twin"])

    def test_explain_of_a_kept_document_names_its_rows(self, refinery, finished):
        values, path = finished
        by_id = {row["doc_id"]: row for row in documents(values["workdir"]).values()}
        kept = next(i for i, d in decisions(values["workdir"], "mix").items() if d["keep"])
        facts = json.loads(refinery("explain", path, by_id[kept]["doc_key"], "--json")[1])
        assert facts["outcome"] == "kept"
        assert facts["rows"]

    def test_explain_of_an_unknown_document(self, refinery, finished):
        code, _, err = refinery("explain", finished[1], "0" * 32)
        assert code == 2
        assert "0" * 32 in err

    def test_doctor(self, refinery):
        code, out, _ = refinery("doctor")
        assert code == 0
        assert "Java" in out
        rows = json.loads(refinery("doctor", "--json")[1])
        assert {"name", "found", "ok", "needed", "remedy"} <= set(rows[0])

    def test_verify_accepts_what_was_written(self, refinery, finished):
        root = Path(finished[0]["workdir"], "pack", "shards")
        for arguments in ([root], [root / "manifest.json"], [root, "--full"], [root, "--level", "audit"]):
            code, out, _ = refinery("verify", *arguments)
            assert code == 0
            assert "intact" in out
        body = json.loads(refinery("verify", root, "--json")[1])
        assert body["content_hash"] in out
        assert any(name.startswith("law/target/zh") for name in body["streams"])
        tokenizer = Path(finished[0]["workdir"], "tokenize", "tokenizer")
        assert refinery("verify", root, "--tokenizer", tokenizer)[0] == 0

    def test_the_module_is_a_command(self, finished):
        """One real process: what `refinery` does as installed."""
        command = [sys.executable, "-m", "refinery.cli", "status", str(finished[1]), "--json"]
        shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert shown.returncode == 0, shown.stderr
        assert len(json.loads(shown.stdout)) == 6
        command[3:] = ["status", "nothing.yaml"]
        wrong = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("ConfigError: recipe nothing.yaml does not exist")
        assert "Traceback" not in wrong.stderr

    def test_export_for_megatron(self, refinery, finished, tmp_path):
        code, _, _ = refinery("export", "megatron", Path(finished[0]["workdir"], "pack", "shards"), tmp_path / "out")
        assert code == 0
        assert list((tmp_path / "out").rglob("*.bin"))


class TestDamage:
    @pytest.mark.parametrize("suffix", [".bin", ".seg", ".idx", ".rows.parquet"])
    def test_a_flipped_byte_in_a_shard_is_refused(self, refinery, own, suffix):
        root = Path(own[0]["workdir"], "pack", "shards")
        path = next(p for p in sorted(root.rglob(f"*{suffix}")) if p.stat().st_size > 100)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        code, _, err = refinery("verify", root, "--full")
        assert code == 4
        assert "IntegrityError" in err
        assert path.name in err

    def test_a_missing_shard_is_refused(self, refinery, own):
        root = Path(own[0]["workdir"], "pack", "shards")
        next(iter(sorted(root.rglob("*.bin")))).unlink()
        assert refinery("verify", root)[0] == 4

    @pytest.mark.parametrize("name", ["manifest.json", "plan/main.json"])
    def test_a_damaged_shard_manifest_or_plan_is_refused(self, refinery, own, name):
        path = Path(own[0]["workdir"], "pack", "shards", name)
        path.write_text(re.sub(r"(\"rows\":\s*)(\d+)", r"\g<1>9\2", path.read_text("utf-8"), count=1), encoding="utf-8")
        if name == "manifest.json":
            assert refinery("verify", path.parent)[0] == 4
        path.write_bytes(path.read_bytes()[:-20])
        root = Path(own[0]["workdir"], "pack", "shards")
        command = ["verify", root] if name == "manifest.json" else ["export", "megatron", root, root / "out"]
        code, _, err = refinery(*command)
        assert code == 4
        assert "IntegrityError" in err

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: re.sub(r'"docs": (\d+)', r'"docs": 1\1', text, count=1),
            lambda text: text.replace('"version": 1', '"version": 99'),
            lambda text: "[]",
            lambda text: "",
        ],
        ids=["cut off", "a count changed", "another version", "a list", "empty"],
    )
    def test_a_damaged_stage_manifest(self, refinery, own, damage):
        path = Path(own[0]["workdir"], "rules", "_stage.json")
        before = path.read_text("utf-8")
        path.write_text(damage(before), encoding="utf-8")
        code, _, err = refinery("run", own[1])
        assert code == 4
        assert "IntegrityError" in err
        assert "rules/_stage.json" in err
        assert "--force" in err
        assert refinery("run", own[1], "--force", "rules")[0] == 0, "the remedy works"
        assert json.loads(path.read_text("utf-8"))["content_hash"] == json.loads(before)["content_hash"]

    def test_a_damaged_part_in_a_worker(self, refinery, own):
        """An error raised in a Spark worker keeps its exit code and its message."""
        workdir = Path(own[0]["workdir"])
        part = workdir / "ingest" / "documents" / "part-00000002.parquet"
        part.write_bytes(b"no parquet")
        code, _, err = refinery("rules", own[1], "--force")
        assert code == 4
        assert "part-00000002.parquet" in err
        assert "Traceback" not in err

    def test_a_tokenizer_of_another_vocabulary(self, refinery, own, tmp_path):
        from refinery.tokenization.recipe import TokenizerRecipe
        from refinery.tokenization.train import train_bpe

        other = tmp_path / "other"
        train_bpe(
            iter(["some other text " * 50]),
            TokenizerRecipe(name="o", vocab_size=262, num_reserved=0, sample_bytes=9999),
            other,
        )
        root = Path(own[0]["workdir"], "pack", "shards")
        code, _, err = refinery("verify", root, "--tokenizer", other)
        assert code == 4
        assert "tokenizer" in err
        folder = Path(own[0]["workdir"], "tokenize", "tokenizer")
        for name in ("tokenizer.json", "info.json"):
            if (other / name).is_file():
                (folder / name).write_bytes((other / name).read_bytes())
        code, _, err = refinery("pack", own[1], "--force")
        assert code == 4, err

    def test_two_runs_in_one_folder(self, refinery, own):
        with hold_lock(own[0]["workdir"]):
            code, _, err = refinery("run", own[1])
        assert code == 75
        assert f"process {os.getpid()}" in err
        assert "own workdir" in err
        assert refinery("run", own[1])[0] == 0


def hash_hex(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def _one_input(tmp_path, **changes):
    source = {"source": "s", "domain": "d", "format": "jsonl", "paths": [str(tmp_path / "in.jsonl")], **changes}
    return {"name": "n", "workdir": str(tmp_path / "run"), "inputs": [source]}


GOOD = [{"id": str(n), "text": f"a good document number {n}"} for n in range(40)]


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ruels": {}}, "unknown key ruels; did you mean rules?"),
            ({"ingest": {"part_byte": 5000}}, "unknown key ingest.part_byte; did you mean part_bytes?"),
            (
                {"mix": {"stages": [{"domains": {"law": 1.0}, "shares": 1}]}},
                "unknown key mix.stages.0.shares; did you mean share?",
            ),
            ({"mix": {"stages": [{"domains": {"law": 0.5, "web": 0.4}}]}}, "sum to 0.900000, not 1"),
            ({"mix": {"stages": [{"share": 0.5, "domains": {"law": 1.0}}]}}, "shares of the stages sum to 0.5"),
            ({"mix": {"stages": [{"domains": {"laws": 1.0}}]}}, "did you mean law?"),
            ({"mix": {"stages": [{"domains": {"law": 0.9}, "replay": 0.1}], "budget_tokens": 0}}, "at least 1 token"),
            ({"mix": {"stages": [{"domains": {"law": 0.9}, "replay": 0.1}], "budget_tokens": 10**9}}, "infeasible"),
            ({"seed": -1}, "seed"),
            ({"rules": {"presets": ["gofer"]}}, "gopher"),
            ({"tokenizer": {"path": "nowhere/tokenizer"}}, "nowhere/tokenizer"),
            ({"tokenizer": {"train": "nowhere.yaml"}}, "nowhere.yaml"),
            ({"tokenizer": {}}, "exactly one of train"),
            ({"dedup_documents": {"bands": "14by8"}}, "dedup_documents.bands"),
        ],
    )
    def test_recipes(self, refinery, own, tmp_path, change, message):
        path = _write({**own[0], **change}, tmp_path / "bad.yaml")
        code, _, err = refinery("run", path)
        assert code == 2, err
        assert err.splitlines()[-1].startswith("ConfigError: ")
        assert message in err
        assert "Traceback" not in err

    def test_a_file_that_is_no_recipe(self, refinery, tmp_path):
        for content in (b"- a\n- b\n", b"a: [1, 2", b"\xff\xfe\x00"):
            (tmp_path / "r.yaml").write_bytes(content)
            code, _, err = refinery("run", tmp_path / "r.yaml")
            assert code == 2
            assert err.startswith("ConfigError: ")

    def test_an_unset_variable(self, refinery, tmp_path):
        values = {**_one_input(tmp_path), "workdir": "${REFINERY_TEST_UNSET}/run"}
        code, _, err = refinery("run", _write(values, tmp_path / "r.yaml"))
        assert code == 2
        assert "REFINERY_TEST_UNSET" in err

    def test_a_path_that_matches_nothing(self, refinery, tmp_path):
        code, _, err = refinery(
            "run", _write(_one_input(tmp_path, paths=[str(tmp_path / "no" / "*.jsonl")]), tmp_path / "r.yaml")
        )
        assert code == 2
        assert "matches no file" in err
        assert str(tmp_path) in err

    @pytest.mark.parametrize(
        ("content", "wanted", "message"),
        [
            (b"", 2, "is empty"),
            (b"\n\n", 2, "no document"),
            (b'{"id": "1", "text": ""}\n{"id": "2", "text": null}\n', 5, "2 of 2 records are unreadable"),
        ],
    )
    def test_an_empty_source(self, refinery, tmp_path, content, wanted, message):
        (tmp_path / "in.jsonl").write_bytes(content)
        code, _, err = refinery("run", _write(_one_input(tmp_path), tmp_path / "r.yaml"))
        assert code == wanted
        assert message in err

    def _gz(self, tmp_path, keep):
        write_jsonl(tmp_path / "in.jsonl.gz", GOOD * 100)
        data = (tmp_path / "in.jsonl.gz").read_bytes()
        (tmp_path / "in.jsonl.gz").write_bytes(data[: int(len(data) * keep)])
        return _one_input(tmp_path, paths=[str(tmp_path / "in.jsonl.gz")])

    def test_a_gz_that_is_none(self, refinery, tmp_path):
        (tmp_path / "in.jsonl.gz").write_bytes(b"not gzip at all")
        values = _one_input(tmp_path, paths=[str(tmp_path / "in.jsonl.gz")])
        code, _, err = refinery("run", _write(values, tmp_path / "r.yaml"))
        assert code == 5, err
        assert "max_bad_records_frac" in err
        assert "in.jsonl.gz" in err

    def test_a_cut_off_gz_gives_what_it_has_and_is_named(self, refinery, tmp_path):
        values = self._gz(tmp_path, 0.6)
        path = _write(values, tmp_path / "r.yaml")
        code, _, err = refinery("run", path)
        assert code == 0, err
        facts = json.loads((tmp_path / "run" / "ingest" / "_stage.json").read_text("utf-8"))["facts"]
        assert sum(facts["bad_records"]["s"].values()) == 1
        assert facts["bad_listed"][0][1] == "in.jsonl.gz"
        values["ingest"] = {"max_bad_records_frac": 0.0}
        code, _, err = refinery("run", _write(values, tmp_path / "r.yaml"))
        assert code == 5
        assert "1 of" in err

    def test_broken_lines_are_counted_with_their_place(self, refinery, tmp_path):
        lines = [json.dumps(row).encode() for row in GOOD]
        lines[7] = b'{"id": "7", "text": "broken'
        offset = sum(len(line) + 1 for line in lines[:7])
        (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        code, out, err = refinery("run", _write(_one_input(tmp_path), tmp_path / "r.yaml"))
        assert code == 0, err
        facts = json.loads((tmp_path / "run" / "ingest" / "_stage.json").read_text("utf-8"))["facts"]
        assert facts["bad_listed"][0][:3] == ["s", "in.jsonl", offset]
        assert f"s in.jsonl at {offset}: bad_json" in out
        (tmp_path / "in.jsonl").write_bytes(b"\n".join([*lines, b"{", b"}", b"["]) + b"\n")
        code, _, err = refinery("run", _write(_one_input(tmp_path), tmp_path / "r.yaml"))
        assert code == 5
        assert "4 of 43 records are unreadable" in err

    def test_every_kind_of_bad_input_in_one_run(self, refinery, tmp_path):
        """The run goes on, ends with the list, and what was readable is there."""
        good = "".join(json.dumps(row) + "\n" for row in GOOD).encode()
        noise = "".join(f'{{"id": "n{n}", "text": "{hash_hex(n)}"}}\n' for n in range(200)).encode()
        (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good + noise)[:-200])
        (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(good + b" " * (80 << 20)))
        (tmp_path / "lines.jsonl").write_bytes(
            good + b'["list"]\n{"id": "1"}\n{"text": 7}\n'
            + b'{"text": "' + b"x" * 9000 + b'"}\n{"text": "nul \\u0000 byte"}\n{'
        )
        (tmp_path / "empty.jsonl").write_bytes(b"")
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 no such thing PAR1")
        options = {"max_line_bytes": 8000, "max_decompression_ratio": 100}
        values = _one_input(tmp_path, paths=[str(tmp_path / "*.jsonl*")], options=options)
        parquet = {"source": "p", "domain": "d", "format": "parquet", "paths": [str(tmp_path / "*.parquet")]}
        values["inputs"].append(parquet)
        table = pa.table({"id": ["1"], "text": ["one good document of a parquet file"]})
        pq.write_table(table, tmp_path / "good.parquet")
        values["ingest"] = {"max_bad_records_frac": 0.5}
        code, out, err = refinery("run", _write(values, tmp_path / "r.yaml"))
        assert code == 0, err
        told = out[out.index("Not readable") :]
        for name, reason in (
            ("cut.jsonl.gz", "truncated"), ("bomb.jsonl.gz", "decompression_bomb"), ("empty.jsonl", "empty_file"),
            ("lines.jsonl", "not_an_object"), ("lines.jsonl", "no_text"), ("lines.jsonl", "text_not_string"),
            ("lines.jsonl", "line_too_long"), ("lines.jsonl", "bad_json"), ("broken.parquet", "bad_parquet"),
        ):  # fmt: skip
            assert re.search(rf"{name} at \d+: {reason}", told), (name, reason, told)
        texts = [row["text"] for row in documents(str(tmp_path / "run")).values()]
        assert texts.count(GOOD[0]["text"]) == 3
        assert "nul  byte" in texts
        assert table.column("text")[0].as_py() in texts
        values["inputs"][1]["text_field"] = "body"
        code, _, err = refinery("run", _write(values, tmp_path / "r.yaml"))
        assert code == 2
        assert "its columns are id, text" in err

    def test_the_awkward_archives_all_run(self, refinery, tmp_path, shared_data):
        pytest.importorskip("fastwarc")
        folder = shared_data / "web" / "edge-cases"
        values = _one_input(tmp_path, format="warc", paths=[str(folder / "*.warc*"), str(folder / "*.arc*")])
        text = {"source": "t", "domain": "d", "format": "text", "paths": [str(folder / "*.txt")]}
        values |= {"inputs": [*values["inputs"], text], "ingest": {"max_bad_records_frac": 0.9}}
        code, out, err = refinery("run", _write(values, tmp_path / "r.yaml"))
        assert code == 0, err
        assert re.search(r"s example-trunc.warc at \d+: wrong_digest", out)
        assert re.search(r"s bad.arc at \d+: bad_record", out)
        assert len(documents(str(tmp_path / "run"))) == 13

    def test_invalid_utf8_is_repaired_and_the_rest_is_whole(self, refinery, tmp_path):
        lines = [json.dumps(row).encode() for row in GOOD]
        lines[3] = b'{"id": "3", "text": "caf\xe9 and tea"}'
        (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        code, _, err = refinery("run", _write(_one_input(tmp_path), tmp_path / "r.yaml"))
        assert code == 0, err
        texts = {row["doc_key"]: row["text"] for row in documents(str(tmp_path / "run")).values()}
        facts = json.loads((tmp_path / "run" / "ingest" / "_stage.json").read_text("utf-8"))["facts"]
        assert len(texts) + sum(sum(c.values()) for c in facts["bad_records"].values()) == len(GOOD)
        if hex_key("s", "3") in texts:
            assert texts[hex_key("s", "3")] == "caf\ufffd and tea"
        assert texts[hex_key("s", "4")] == GOOD[4]["text"]

    def test_invalid_utf8_in_gz_text(self, refinery, tmp_path):
        (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"a line\nof caf\xe9\xff\n"))
        values = _one_input(tmp_path, format="text", paths=[str(tmp_path / "t.txt.gz")])
        assert refinery("run", _write(values, tmp_path / "r.yaml"))[0] == 0
        row = next(iter(documents(str(tmp_path / "run")).values()))
        assert row["text"].startswith("a line\nof caf")
        assert len(row["text"].encode()) == row["num_bytes"]

    def test_unknown_command_and_stage(self, refinery, finished):
        assert refinery("launch")[0] == 2
        assert refinery("run", finished[1], "--force", "everything")[0] == 2
