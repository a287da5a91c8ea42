"""Planted personal data is found and similar text is not; precision and recall on labelled text."""

import base64
import gzip
import importlib.util
import itertools
import json
import os
import random
import re
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from data.privacy import redaction
from data.privacy.redaction import KINDS, Span, find

REDACT = dict.fromkeys(KINDS, "redact")
MASK = dict.fromkeys(KINDS, "mask")


def redact(text):
    return redaction.apply(text, find(text), REDACT)


@pytest.mark.parametrize("text, expected", [
    ("write to jane.doe+news@example.co.uk.", "write to <email>."),
    ("Jane <jane@example.org>, Joe <joe@example.com>", "Jane <<email>>, Joe <<email>>"),
    ("Über 8 Zeilen: jürgen.x@müller.de", "Über 8 Zeilen: <email>"),
    ("邮箱jane@example.com。", "邮箱<email>。"),
    ("почта@пример.рф", "<email>"),
    ("see a@b.com.Then go", "see <email>.Then go"),
    ("https://me:secret@host.com/x", "https://me:<email>/x"),
    ("jane [at] example [dot] org or jane(at)example.org", "<email> or <email>"),
    ("jane at example dot org", "<email>"),
    ("ask d'arcy.m@example.com, git@example.org: or JANE@EXAMPLE.COM to a@b.org:/x",
     "ask <email>, <email>: or <email> to <email>:/x"),
    ('host = "93.184.216.34"; Server 93.4.6.8, ([93.184.216.34]) from 93.184.216.34',
     'host = "<ip>"; Server <ip>, ([<ip>]) from <ip>'),
    ("server 93.184.216.34:53", "server <ip>:53"),
    ("from 2606:2800:220:1:248:1893:25c8:1946, 2a00:1450::200e", "from <ip>, <ip>"),
    ("+49 30 901820, (415) 555-2671, 415-555-2671, tel: 030 901820",
     "<phone>, <phone>, <phone>, tel: <phone>"),
    ("call us at 0800 123 4567 or +1 415.555.2671 2024", "call us at <phone> or <phone> 2024"),
    ("4111 1111 1111 1111 123, 378282246310005, 3056-930902-5904",
     "<card> 123, <card>, <card>"),
    ("GB29 NWBK 6016 1331 9268 19, DE89370400440532013000 BIC", "<iban>, <iban> BIC"),
    ("BE68 5390 0754 7034 CALL NOW", "<iban> CALL NOW"),
    ("AKIAZ7VRSQ5TJN2XMLPD and ghp_q7Rw2Lk9Zx4Vb8Nm3Tc6Yh1Jd5Fg0Ps7Ae2U", "<key> and <key>"),
])
def test_personal_data_is_replaced(text, expected):
    assert redact(text)[0] == expected


@pytest.mark.parametrize("text", [
    "x@weights.mean and @functools.wraps and a @ b.T, h@self.w.sum(), user@localhost",
    "look at this dot product, meet us at noon",
    "git clone git@code.example.org:team/tool.git, ssh://git@code.example.org:22/team/tool.git",
    "hg clone ssh://hg@code.example.org/team/tool",
    "scores = q@k.mT / 8; r = A@b.to(device); follow @jane@social.example.org",
    'productVersion="14.22.36.81", <Version>14.22.36.81</Version>, FileVersion("14.22.36.81")',
    "upgrade to 84.22.36.81 now, org.example:tool:14.22.36.81, httpd/14.22.36.81",
    "Oracle 11.2.0.4, Photoshop CS5 12.0.4.21, 14.22.36.81-beta",
    "127.0.0.1, 10.0.0.7, 192.168.1.1, 0.0.0.0, 999.1.1.1, 224.0.0.251",
    "object identifier 1.3.6.1.4.1 and 1.2.840.113549.1, 2.5.29.17",
    "version 10.20.30.40, RFC 5445 12.7.3.9, Section 1.3.6.6, 8.2.4.44",
    "lib==10.20.30.40, lib-10.20.30.40.tar.gz, Agent/99.0.48.51, firmware: 12.34.56.78",
    "at 12:30 on 2024.01.02, 2024:01:02:03, std::vector, dead::beef, fe80::1, 2001:db8::7, 2024::",
    "ISBN 978-0-306-40615-7, call 2024-01-02, 2024-01-02 12:30, +1.4155552671, 1,234,567,890",
    "4111111111111112, 0.4111111111111111, /posts/4111111111111111",
    "4220315081820346526, 4006381333931",
    "GB29 NWBK 6016 1331 9268 18, XX29 NWBK 6016 1331 9268 19, DE22370400440532",
    "+35236450.6, +49 30 123, +83 123 456 789, +28 1234 5678",
    "ghp_000000000000000000000000000000000000, sk-Abababababababababab1",
    '_START = b"-----BEGIN OPENSSH PRIVATE KEY-----"\n_END = b"-----END OPENSSH PRIVATE KEY-----"',
    "AKIAIOSFODNN7EXAMPLE, sk-xxxxxxxxxxxxxxxxxxxxxxxx, sk-container-id-1-arrow-label",
    "-----BEGIN RSA PRIVATE KEY-----", "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0B\n",
])
def test_similar_text_is_kept(text):
    assert find(text) == []
    assert redact(text) == (text, {})


def test_a_private_key_is_redacted_up_to_its_end():
    body = "\n".join(base64.b64encode(random.Random(n).randbytes(48)).decode() for n in range(6))
    block = f"-----BEGIN RSA PRIVATE KEY-----\n{body}\nYWI=\n-----END RSA PRIVATE KEY-----"
    assert redact(f"a\n{block}\nb") == ("a\n<key>\nb", {"key": 1})
    assert redact(f"a\n{block[:-40]}\n\nand more prose.")[0].startswith("a\n<key>")
    assert redact(f"a\n{block[:-40]}\n\nand more prose.")[0].endswith("and more prose.")
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (
        b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890","iat":1516239022}',
        random.Random(0).randbytes(32)))
    assert redact(f"Bearer {token}, ok") == ("Bearer <key>, ok", {"key": 1})


def test_spans_are_sorted_disjoint_and_counted():
    text = "a@b.com c@d.org 93.184.216.34 ünïcode e@f.net"
    spans = find(text)
    assert spans == sorted(spans)
    assert all(first.end <= second.start for first, second in itertools.pairwise(spans))
    assert [text[span.start:span.end] for span in spans] == [
        "a@b.com", "c@d.org", "93.184.216.34", "e@f.net"]
    assert redact(text) == ("<email> <email> <ip> ünïcode <email>", {"email": 3, "ip": 1})


def test_overlapping_finds_become_one():
    text = "jane@example.com (at) host.org, mail@GB29NWBK60161331926819.de"
    assert redact(text) == ("<email> (at) host.org, <email>", {"email": 2})


def test_only_the_kinds_asked_for_are_found():
    assert {span.kind for span in find("a@b.com 93.184.216.34", kinds=("ip",))} == {"ip"}


def test_actions():
    text = "mail jane@acme.com from 93.184.216.34, card 4111 1111 1111 1111, tel +49 30 901820"
    spans = find(text)
    masked, counts = redaction.apply(text, spans, MASK)
    assert masked == ("mail email@example.com from 192.0.2.1, card 0000 0000 0000 0000, "
                      "tel +00 00 000000")
    assert counts == {"email": 1, "ip": 1, "card": 1, "phone": 1}
    assert redaction.apply(text, spans, {"email": "keep"}) == (text, counts), "without action: keep"
    assert redaction.apply(text, spans, {"card": "drop", "ip": "mask"}) is None
    assert redaction.drop_reason(spans, {"card": "drop", "ip": "mask"}) == "privacy_card"
    assert redaction.drop_reason(spans, {"iban": "drop"}) is None


def test_check_actions():
    redaction.check_actions("curate.privacy", {"email": "redact", "name": "mask"})
    with pytest.raises(UserError, match=r"curate\.privacy\.mail: is not a kind"):
        redaction.check_actions("curate.privacy", {"mail": "redact"})
    with pytest.raises(UserError, match=r"curate\.privacy\.email='hide': is not an action"):
        redaction.check_actions("curate.privacy", {"email": "hide"})


def test_names_come_from_a_plugin(tmp_path, monkeypatch):
    (tmp_path / "finder_of_jane.py").write_text(
        "import re\ndef find_names(text):\n"
        "    return [m.span() for m in re.finditer('Jane', text)]\nBAD = lambda text: [(0, 999)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    finder = redaction.load_name_finder("finder_of_jane.find_names")
    text = "Jane <Jane@example.org>"
    assert find(text, name_finder=finder) == [Span(0, 4, "name"), Span(6, 22, "email")]
    assert find(text, kinds=("email",), name_finder=finder) == [Span(6, 22, "email")]
    inside = [(8, 12), (7, 23), (0, 4), (2, 5), (5, 6)]
    assert find(text, name_finder=lambda _: inside) == [
        Span(0, 4, "name"), Span(5, 6, "name"), Span(6, 22, "email")]
    with pytest.raises(UserError, match=r"return \(start, end\) pairs"):
        find(text, name_finder=redaction.load_name_finder("finder_of_jane.BAD"))
    for path in ("finder_of_jane.no_such", "no_such_module.f", "f"):
        with pytest.raises(UserError, match="cannot be imported"):
            redaction.load_name_finder(path)
    sys.modules.pop("finder_of_jane")


# --- labelled text --------------------------------------------------------------------------

LOCAL = ("jane", "joe", "li", "o.brien", "anna-lena", "x_ray", "t.k.smith", "info", "JSmith")
HOSTS = ("gmail.com", "acme.co.uk", "mail.uni-ulm.de", "startup.io", "museum.museum",
         "shop.berlin", "b2b.com.br", "localnews.press")
FRAMES = ("Please note {} for later.", "{}", "see ({}), then go on", "value: {};", "\"{}\"",
          "In the list\n- {}\n- other", "It was {}. The next day came.", "<td>{}</td>", "x={}, y=2")


def _digits(rng, num):
    return "".join(rng.choice("0123456789") for _ in range(num))


def _luhn(partial):
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10))
                for place, digit in enumerate(reversed(partial)))
    return partial + str(-total % 10)


def make_email(rng):
    return f"{rng.choice(LOCAL)}{rng.choice(['', '', '+tag', str(rng.randrange(99))])}@" \
           f"{rng.choice(HOSTS)}"


def make_ip(rng):
    if rng.random() < 0.3:
        return rng.choice((f"2a{rng.randrange(256):02x}:{rng.randrange(1, 65536):x}::"
                           f"{rng.randrange(1, 65536):x}",
                           "2607:" + ":".join(f"{rng.randrange(65536):x}" for _ in range(7))))
    return ".".join(str(part) for part in (
        rng.choice([5, 23, 31, 46, 62, 80, 93, 104, 142, 185, 203, 212]), rng.randrange(2, 255),
        rng.randrange(256), rng.randrange(1, 255)))


def make_card(rng):
    prefix, length = rng.choice((("4", 16), ("4", 16), ("51", 16), ("55", 16), ("2221", 16),
                                 ("37", 15), ("36", 14), ("6011", 16), ("3530", 16), ("62", 16)))
    number = _luhn(prefix + _digits(rng, length - len(prefix) - 1))
    gap = rng.choice(("", " ", "-"))
    cuts = (0, 4, 8, 12, 16) if length == 16 else (0, 4, 10, length)
    return gap.join(number[start:stop] for start, stop in itertools.pairwise(cuts))


def make_phone(rng):
    def some(*groups):
        return [_digits(rng, num) for num in groups]
    area, exchange = (f"{rng.randrange(2, 10)}{_digits(rng, 2)}" for _ in range(2))
    (line,) = some(4)
    return rng.choice((
        f"({area}) {exchange}-{line}", f"{area}-{exchange}-{line}", f"+1 {area} {exchange} {line}",
        f"{area}.{exchange}.{line}", " ".join(("+44 20", *some(4, 4))), "+49-89-" + _digits(rng, 7),
        " ".join(("+33 6", *some(2, 2, 2, 2))), " ".join(("+86 138", *some(4, 4))),
        "+91" + _digits(rng, 10)))


def make_iban(rng):
    country, bank = rng.choice((("DE", _digits(rng, 18)), ("NL", "INGB" + _digits(rng, 10)),
                                ("GB", "NWBK" + _digits(rng, 14)), ("ES", _digits(rng, 20))))
    letters = "".join(str(int(char, 36)) for char in f"{bank}{country}00")
    number = f"{country}{98 - int(letters) % 97:02d}{bank}"
    return number if rng.random() < 0.5 else " ".join(re.findall(".{1,4}", number))


def make_key(rng):
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

    def some(num):
        return "".join(rng.choice(alphabet) for _ in range(num - 3)) + "aZ7"
    return rng.choice((f"AKIA{some(16).upper()}", f"ghp_{some(36)}", f"sk-{some(48)}",
                       f"sk-proj-{some(60)}", f"xoxb-{_digits(rng, 11)}-{some(24)}",
                       f"AIza{some(35)}", f"hf_{some(34)}", f"sk_live_{some(24)}"))


def make_lookalike(rng):
    """Text that resembles personal data."""
    num, hexadecimal = rng.randrange, f"{rng.getrandbits(160):040x}"
    return rng.choice((
        f"version {num(20)}.{num(30)}.{num(100)}.{num(100)}",
        f"package-{num(20)}.{num(30)}.{num(100)}.{num(100)}.tar.gz",
        f"section {num(20)}.{num(30)}.{num(10)}.{num(10)}",
        f"1.3.6.1.4.1.{num(9999)}.{num(99)}", f"192.168.{num(256)}.{num(256)}",
        f"10.{num(256)}.{num(256)}.{num(256)}", f"{num(300, 999)}.{num(99)}.3.17",
        f"{num(1990, 2030)}-{num(10, 13)}-{num(10, 29)}T{num(10, 24)}:30:59.123456",
        f"{num(10, 29)}.{num(10, 13)}.{num(1990, 2030)}", f"{num(24)}:{num(10, 60)}:59",
        f"978-0-{num(100, 999)}-{num(10000, 99999)}-{num(10)}", f"978{_digits(rng, 10)}",
        str(num(1_500_000_000, 1_900_000_000)), str(num(1_500_000_000_000, 1_900_000_000_000)),
        f"order no. {_digits(rng, 10)}", f"ticket {_digits(rng, 16)}", f"4{_digits(rng, 18)}",
        f"0.{_digits(rng, 16)}", hexadecimal, hexadecimal[:32], f"0x{hexadecimal[:16]}",
        "-".join((hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[:12])),
        ":".join(re.findall("..", hexadecimal[:12])), f"std::vector<{num(9)}>", "face::add(b::c)",
        "@app.route", "@pytest.mark.full", "x@weights.mean", "q @ k.T", "h@self.proj.weight",
        "user@localhost", f"icon@{num(2, 4)}x.png", f"${num(999)},{num(100, 999)}.00",
        f"{num(100, 200)}-{num(100, 999)}-{num(1000, 9999)}", f"{num(100)}-{num(100)}",
        f"FR{_digits(rng, 10)}", f"AB12 {_digits(rng, 4)} {_digits(rng, 4)} {_digits(rng, 4)}",
        "sk-container-id-1-toggleable-label", "AKIAIOSFODNN7EXAMPLE", "eyJhbGciOi.only.one",
        f"+{num(1, 99)}.{_digits(rng, 8)}", f"@@ -{num(999)},7 +{num(999)},9 @@",
        f"{num(100)} {num(100)} {num(1000)} {num(10000)} {num(1000)}"))


MAKERS = {"email": make_email, "ip": make_ip, "card": make_card, "phone": make_phone,
          "iban": make_iban, "key": make_key}


def make_labelled(rng, num_pieces=40):
    """A text of framed pieces, half of them personal data; and the spans of those."""
    text, spans = "", []
    for _ in range(num_pieces):
        kind = rng.choice([*MAKERS, *[None] * len(MAKERS)])
        value = make_lookalike(rng) if kind is None else MAKERS[kind](rng)
        before, after = rng.choice(FRAMES).split("{}")
        start = len(text) + len(before)
        text += before + value + after + rng.choice(("\n", " ", "\n\n"))
        if kind is not None:
            spans.append(Span(start, start + len(value), kind))
    return text, spans


@pytest.fixture(scope="module")
def labelled():
    rng = random.Random(0)
    return [make_labelled(rng) for _ in range(300)]


def test_precision_and_recall_on_labelled_text(labelled):
    true = dict.fromkeys(MAKERS, 0)
    given, reported = dict(true), dict(true)
    for text, spans in labelled:
        proposed = find(text)
        for kind in MAKERS:
            ours, theirs = ({s for s in side if s.kind == kind} for side in (proposed, spans))
            true[kind] += len(ours & theirs)
            reported[kind] += len(ours)
            given[kind] += len(theirs)
    for kind in MAKERS:
        least = 0.98 if kind in ("email", "ip", "card") else 0.95
        assert true[kind] / reported[kind] >= least, f"precision of {kind}"
        assert true[kind] / given[kind] >= least, f"recall of {kind}"


def test_an_independent_pattern_finds_no_address_after_redaction(labelled):
    """Anything like x@y.zz, for all registered top-level domains."""
    spec = importlib.util.find_spec("hypothesis")
    listed = Path(spec.origin).parent / "vendor" / "tlds-alpha-by-domain.txt"
    endings = {line.lower() for line in listed.read_text().split("\n") if line.isalnum()}
    naive = re.compile(r"[\w.+-]+@(?:[\w-]+\.)+([A-Za-z]{2,})\b")

    def addresses(text):
        return [m.group() for m in naive.finditer(text) if m.group(1).lower() in endings]
    assert sum(len(addresses(text)) for text, _ in labelled) > 300
    for text, _ in labelled:
        for actions in (REDACT, {**MASK, "email": "redact"}):
            assert addresses(redaction.apply(text, find(text), actions)[0]) == []


@pytest.mark.parametrize("actions", [REDACT, MASK], ids=["redact", "mask"])
def test_a_second_pass_changes_nothing(labelled, actions):
    for text, _ in labelled[:50]:
        once, _ = redaction.apply(text, find(text), actions)
        assert redaction.apply(once, find(once), actions)[0] == once


def test_only_addresses_are_redacted_in_real_pages():
    folder = os.environ.get("HEARTWOOD_DATASETS")
    if not folder:
        pytest.skip("HEARTWOOD_DATASETS is not set")
    with gzip.open(Path(folder) / "text_small" / "c4_demo.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    counts = {}
    for text in texts:
        after, removed = redact(text)
        counts = {kind: counts.get(kind, 0) + removed.get(kind, 0) for kind in {*counts, *removed}}
        assert not re.search(r"\w@\w+\.[a-z]{2,}", after)
    assert counts == {"email": 8, "phone": 23}, "read one by one"
