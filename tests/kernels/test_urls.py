from __future__ import annotations

import pytest

from refinery.kernels.urls import normal_url, url_keys


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("http://A.org/x/", "https://www.a.org/x"),
        ("http://a.org:80/x#part", "https://a.org:443/x?"),
        ("http://a.org/x?utm_source=m&id=3&gclid=9", "http://a.org/x?id=3"),
        ("  http://a.org ", "http://a.org/"),
        ("http://a.org/x?utm_medium=a&utm_campaign=b", "http://a.org/x"),
    ],
)
def test_captures_of_one_page_meet(first, second):
    assert normal_url(first) == normal_url(second)
    assert url_keys([first]) == url_keys([second]) != [None]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("http://a.org/x", "http://a.org/X"),
        ("http://a.org/x", "http://b.a.org/x"),
        ("http://a.org:8080/x", "http://a.org/x"),
        ("http://a.org/?a=1&b=2", "http://a.org/?b=2&a=1"),
        ("http://a.org/?utm=1", "http://a.org/"),
        ("http://a.org/?id=1", "http://a.org/?id=2"),
    ],
)
def test_other_pages_do_not(first, second):
    assert normal_url(first) != normal_url(second)


def test_what_is_no_url_has_no_key():
    assert url_keys([None, "", "page 3", "mailto:a@b.org", "http://[broken", "http://a.org:port/"]) == [None] * 6
