from __future__ import annotations

import zipfile

from refinery.kernels.chinese_script import HANS, HANT, chinese_scripts, script_marks
from refinery.kernels.text import views_of


def test_marks_are_what_one_character_set_alone_contains():
    marks = script_marks()
    of = lambda letter: marks[ord(letter) - 0x4E00]  # noqa: E731
    assert [of(c) for c in "国说为学东车"] == [HANS] * 6
    assert [of(c) for c in "國說為學東車"] == [HANT] * 6
    assert [of(c) for c in "的在是有人"] == [0] * 5


def test_scripts_of_documents():
    texts = ["国家发展为人民", "國家發展為人民", "的在是有人一二三", "国家", "", "plain words", "国说为國說為"]
    assert chinese_scripts(views_of(texts)).tolist() == [HANS, HANT, 0, 0, 0, 0, 0]
    assert chinese_scripts(views_of([])).tolist() == []


def test_declaration_of_human_rights(shared_data):
    with zipfile.ZipFile(shared_data / "langid" / "nltk-udhr2.zip") as archive:
        names = [n for n in archive.namelist() if "cmn_han" in n]
        texts = {n.rpartition("/")[2]: archive.read(n).decode() for n in names}
    assert {name.split(".")[0] for name in texts} >= {"cmn_hans", "cmn_hant"}
    for name, text in texts.items():
        wanted = HANS if "hans" in name else HANT
        pieces = [p for p in text.split("\n") if len(p) >= 20]
        assert set(chinese_scripts(views_of(pieces)).tolist()) <= {0, wanted}, "open at worst, never wrong"
        long = [p for p in pieces if len(p) >= 50]
        assert len(long) > 10
        assert set(chinese_scripts(views_of(long)).tolist()) == {wanted}
