"""A page that hangs, crashes or exhausts memory does not affect other pages."""

import os
import signal

import pytest

from core.errors import UserError
from data.extraction import guard
from data.extraction.extract import extract
from data.extraction.guard import CRASHED, TIMED_OUT, TOO_LARGE, Failure, GuardedExtractor

HTML = "text/html"
SENTENCE = "An article says what it has to say in sentences, and each of them has an end. "
ENDLESS = (b"<p>hi" * 1_000_000, HTML)          # minutes of CPU time
DEEP = (b"<div>" * 1_000_000 + b"x", HTML)
FINE = [(f"<html><body><article><p>{SENTENCE * 3}Number {i}.</p></article></body>".encode(), HTML)
        for i in range(6)]
TEXTS = [extract(*page) for page in FINE]


@pytest.fixture
def extractor():
    with GuardedExtractor(timeout_secs=20, max_page_bytes=10 << 20) as extractor:
        yield extractor


def test_outcomes_are_those_of_extract_in_order(extractor, monkeypatch):
    monkeypatch.setattr(guard, "BATCH_PAGES", 3)
    pages = [*FINE, ("Grüße \ud800 dir", "text/plain"), (b"", HTML),
             ("Привет, мир".encode("koi8-r"), "text/plain; charset=koi8-r"), (b"\x00\xff", HTML)]
    assert list(extractor.run(iter(pages))) == [extract(*page) for page in pages]
    assert list(extractor.run([])) == []


@pytest.mark.parametrize("page", [ENDLESS, DEEP])
def test_a_page_that_times_out_is_the_only_failure(page):
    with GuardedExtractor(timeout_secs=0.3, max_page_bytes=10 << 20) as extractor:
        outcomes = list(extractor.run([*FINE[:2], page, *FINE[2:]]))
    assert outcomes == [*TEXTS[:2], Failure(TIMED_OUT), *TEXTS[2:]]


def test_a_page_that_exhausts_memory_is_the_only_failure(monkeypatch):
    monkeypatch.setattr(guard, "MAX_MEMORY_BYTES", 300 << 20)
    large = (b"<b>bold</b>" * 800_000, HTML)
    with GuardedExtractor(timeout_secs=20, max_page_bytes=10 << 20) as extractor:
        outcomes = list(extractor.run([large, *FINE[:3], large, large, *FINE[3:]]))
    assert outcomes == [Failure(CRASHED), *TEXTS[:3], Failure(CRASHED), Failure(CRASHED),
                        *TEXTS[3:]]


def test_a_page_that_is_too_large_is_not_tried():
    with GuardedExtractor(timeout_secs=20, max_page_bytes=1000) as extractor:
        large = [(b" " * 60_000_000, HTML), ("é" * 501, "text/plain")]
        outcomes = list(extractor.run([large[0], FINE[0], large[1]]))
    assert outcomes == [Failure(TOO_LARGE), TEXTS[0], Failure(TOO_LARGE)]


def test_a_child_killed_between_pages_is_replaced(extractor):
    assert list(extractor.run(FINE[:1])) == TEXTS[:1]
    os.kill(extractor._child.pid, signal.SIGKILL)
    assert list(extractor.run(FINE)) == TEXTS


def test_a_stalled_child_is_ended(extractor, monkeypatch):
    assert list(extractor.run(FINE[:1])) == TEXTS[:1]
    monkeypatch.setattr(extractor, "_stall_secs", 0.2)
    os.kill(extractor._child.pid, signal.SIGSTOP)
    assert list(extractor.run(FINE[:1])) == [Failure(TIMED_OUT)]
    monkeypatch.setattr(extractor, "_stall_secs", 60)
    assert list(extractor.run(FINE)) == TEXTS


def test_a_child_is_replaced_after_a_number_of_pages(extractor, monkeypatch):
    monkeypatch.setattr(guard, "CHILD_PAGES", 4)
    assert list(extractor.run(FINE)) == TEXTS
    first = extractor._child.pid
    assert list(extractor.run(FINE)) == TEXTS
    assert extractor._child.pid != first


def test_closing_early_leaves_no_process():
    with GuardedExtractor(timeout_secs=20, max_page_bytes=1 << 20) as extractor:
        assert next(extractor.run(FINE)) == TEXTS[0]
        assert list(extractor.run(FINE)) == TEXTS
        child = extractor._child
    assert child.returncode == -signal.SIGKILL


def test_options_reach_the_child():
    with GuardedExtractor(mode="quality", timeout_secs=20, max_page_bytes=1 << 20,
                          emoji_names=True, punctuation=True) as extractor:
        outcome, = extractor.run([("<p>“So”</p> <p>it is ☀</p>", HTML)])
    assert '"So"' in outcome and ":black_sun_with_rays:" in outcome


def test_an_unknown_mode_is_a_user_error():
    with pytest.raises(UserError, match="mode='slow': no such extractor: choose one of fast"):
        GuardedExtractor(mode="slow", timeout_secs=1, max_page_bytes=1)
