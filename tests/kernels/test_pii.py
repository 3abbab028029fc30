from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinery.kernels.pii import TOKENS, is_bank_card, is_id_card, mask


@pytest.mark.parametrize(
    ("text", "masked", "kind"),
    [
        ("write to jane.doe+list@mail.some-host.org, please", "write to [EMAIL], please", "email"),
        ("联系邮箱：zhang_san@qq.com。", "联系邮箱：[EMAIL]。", "email"),
        ("<a href='mailto:me@corp.io'>", "<a href='mailto:[EMAIL]'>", "email"),
        ("clone https://bob:secret@repo.corp.io/x", "clone https://[USER]@repo.corp.io/x", "userinfo"),
        ("from 74.125.224.84 at noon", "from [IP] at noon", "ip"),
        ("from [2001:4860:4001:801::1011].", "from [[IP]].", "ip"),
        ("电话13812345678，", "电话[PHONE]，", "phone"),
        ("call +86 138 1234 5678 now", "call [PHONE] now", "phone"),
        ("call 138-1234-5678", "call [PHONE]", "phone"),
        ("身份证号11010519491231002X。", "身份证号[ID]。", "id_card"),
        ("card 4111 1111 1111 1111", "card 4111 1111 1111 1111", None),  # a test number: too few different digits
        ("card 4539 1488 0343 6467!", "card [CARD]!", "bank_card"),
        ("卡号6222020903001483077，", "卡号[CARD]，", "bank_card"),
    ],
)
def test_personal_data_is_masked_and_counted(text: str, masked: str, kind: str | None) -> None:
    assert mask(text) == (masked, {kind: 1} if kind else {})


@pytest.mark.parametrize(
    "text",
    [
        "someone@example.com is reserved, git@github.com:a/b.git is no person",
        "ssh://git@host.org/x",
        "10.0.0.1, 192.168.1.20, 127.0.0.1 and 172.16.0.3 are private, 224.0.0.251 multicast",
        "version 10.15.7.192 and section 2.4.7.11, v8.8.100.8",
        "999.1.1.300 is no address",
        "times 12:30:45 and std::vector<dead::beef> a::b",
        "11010519491231002 without, 110105194912310021 wrong check digit",
        "978-7-302-51141-1 ISBN 9787302511411",
        "12345678901 begins wrongly; 0.13812345678 is a fraction; x13812345678 a name; 138123456789 too long",
        "4539148803436468 fails Luhn",
        "2019 2020 2021 2022 2023",
        "a@b, @mention and x @ y.com",
        "",
    ],
)
def test_lookalikes_stay(text: str) -> None:
    assert mask(text) == (text, {})


def test_two_phone_numbers_in_one_run_are_both_found() -> None:
    assert mask("13812345678 13912345678") == ("[PHONE] [PHONE]", {"phone": 2})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("4539148803436467+86x@y.org", "[EMAIL]"),  # a card's number that goes on as an address
        ("+8613812345678+x@y.org, call", "[EMAIL], call"),  # the number's plus is not part of the address
        ("https://13812345678@y.org/", "https://[PHONE]@y.org/"),
    ],
)
def test_of_two_that_overlap_nothing_stays(text: str, masked: str) -> None:
    once, counts = mask(text)
    assert once == masked
    assert sum(counts.values()) == 1


def test_check_digits() -> None:
    assert is_id_card("11010519491231002X")
    assert is_id_card("11010519491231002x")
    assert not is_id_card("110105194913310021")
    assert is_bank_card("4539148803436467")
    assert not is_bank_card("4539148803436466")


PIECES = st.lists(
    st.sampled_from(
        ["@", "a", "b.c", ".", "://", ":", "13812345678", "1", "-", " ", "74.125.224.84", "中", "é", "+86", "x@y.org"]  # noqa: RUF005
        + ["::", "2001:db8", "[EMAIL]", "\n", "4539148803436467", "11010519491231002X", "=", "/", *TOKENS.values()]
    ),
    max_size=12,
).map("".join)


@given(PIECES)
def test_masking_twice_masks_nothing_new(text: str) -> None:
    once, counts = mask(text)
    assert (once == text) == (not counts)
    assert mask(once) == (once, {})


@pytest.mark.parametrize(
    "hostile", ["a" * 300_000, "1" * 300_000, "a@" * 100_000, "1 " * 150_000, "1.1." * 80_000, "2001:" * 60_000]
)
def test_hostile_text_costs_linear_time(hostile: str) -> None:
    started = time.process_time()
    mask(hostile + " x@y.org 74.125.224.84")
    assert time.process_time() - started < 3
