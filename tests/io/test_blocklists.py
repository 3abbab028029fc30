from __future__ import annotations

import gzip

import pytest

from refinery.errors import ConfigError
from refinery.io.blocklists import Blocklist, read_blocklist


def test_hosts_urls_and_words(tmp_path):
    hosts = tmp_path / "list.txt"
    hosts.write_text("# comment\nBad.example\nhttps://half.example/spam/\n\nten.example/a/b # trailing\n")
    words = tmp_path / "words.txt"
    words.write_text("casino\n赌博\n")
    blocked = read_blocklist(str(hosts), str(words))
    reasons = {
        "http://bad.example/": "host",
        "https://www.bad.example:8080/x": "host",
        "notbad.example/x": None,
        "https://half.example/spam/page": "url",
        "https://half.example/spammers": None,
        "https://sub.half.example/spam": "url",
        "https://ten.example/a": None,
        "https://ten.example/a/b/c?d": "url",
        "https://ok.example/best-Casino_2": "url_word",
        "https://ok.example/casinos": None,
        "https://ok.example/%E8%B5%8C%E5%8D%9A": "url_word",
        "https://[broken": None,
        "": None,
        None: None,
    }
    assert {url: blocked.reason(url) for url in reasons} == reasons


def test_folder_of_ut1(tmp_path):
    (tmp_path / "domains").write_text("one.example\n")
    (tmp_path / "urls.gz").write_bytes(gzip.compress(b"two.example/x\n"))
    (tmp_path / "usage").write_text("black\n")
    blocked = read_blocklist(str(tmp_path), None)
    assert blocked.hosts == {"one.example"}
    assert blocked.prefixes == {"two.example/x"}


def test_identity_is_of_the_entries_not_their_order(tmp_path):
    (tmp_path / "a").write_text("x.example\ny.example\n")
    (tmp_path / "b").write_text("y.example\n# z\nx.example\nx.example\n")
    (tmp_path / "c").write_text("y.example\n")
    identities = [read_blocklist(str(tmp_path / n), None).identity() for n in "abc"]
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize(
    ("content", "match"), [(None, "does not exist"), ("# nothing\n", "no host"), ("folder", "holds none of")]
)
def test_bad_host_lists_are_refused(tmp_path, content, match):
    path = tmp_path / "list"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=match):
        read_blocklist(str(path), None)


@pytest.mark.parametrize(("content", "match"), [("\n", "no word"), ("two words\n", "one word a line")])
def test_bad_word_lists_are_refused(tmp_path, content, match):
    path = tmp_path / "words"
    path.write_text(content)
    with pytest.raises(ConfigError, match=match):
        read_blocklist(None, str(path))


def test_no_list_blocks_nothing():
    assert read_blocklist(None, None).reason("http://any.example") is None
    assert Blocklist().reason(None) is None
