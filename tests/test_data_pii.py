"""Planted personal data goes, what merely looks like it stays."""

import pytest

from data import pii


@pytest.mark.parametrize("text, expected", [
    ("write to jane.doe+news@example.co.uk.", "write to <email>."),
    ("Jane <jane@example.org>, Joe <joe@example.com>", "Jane <<email>>, Joe <<email>>"),
    ("Über 8 Zeilen: jürgen.x@example.org", "Über 8 Zeilen: jü<email>"),
    ("server 93.184.216.34:53", "server <ip>:53"),
])
def test_personal_data_is_replaced(text, expected):
    assert pii.redact(text)[0] == expected


@pytest.mark.parametrize("text", [
    "x@weights.mean and @functools.wraps and a @ b.T",
    "127.0.0.1, 10.0.0.7, 192.168.1.1, 0.0.0.0, 999.1.1.1",
    "object identifier 1.3.6.1.4.1 and 1.2.840.113549.1",
    "version 10.20.30.40, RFC 5445 12.7.3.9, Section 1.3.6.6",
    "at 12:30 on 2024.01.02",
])
def test_lookalikes_stay(text):
    assert pii.redact(text) == (text, {})


def test_spans_are_counted_by_kind():
    text = "a@b.com c@d.org 93.184.216.34 ünïcode e@f.net"
    redacted, counts = pii.redact(text)
    assert redacted == "<email> <email> <ip> ünïcode <email>"
    assert counts == {"email": 3, "ip": 1}


def test_redaction_is_idempotent():
    once, _ = pii.redact("mail a@b.com from 93.184.216.34")
    assert pii.redact(once) == (once, {})
