"""The labelling page in a real browser: pairs and rankings by keys and by drag, and what a reload
finds."""

import contextlib
import threading
import time

import pytest
from browser import browsing, page_of

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
from label_server import PAIRS, servers

pytestmark = pytest.mark.full
RANKINGS = [{"messages": [{"role": "user", "content": f"Question {n}"}],
             "responses": [f"{word} {n}" for word in ("first", "second", "third")]}
            for n in range(3)]


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@contextlib.contextmanager
def labelling(folder, browser, rows, **how):
    """A page of a labelling server of rows; also yields the server."""
    from serve.labelling.app import Server, make_app
    from serve.web.sockets import bind_socket

    with servers(folder) as make:
        own = make(rows)
        listener = bind_socket("127.0.0.1", 0)
        server = Server(make_app(own.work))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/?annotator=ada"
            with page_of(browser, url, **how) as page:
                page.wait_for_selector(".answer")
                yield page, own
        finally:
            server.should_exit = True
            thread.join()


def _answers(page):
    return page.locator(".answer .text").all_text_contents()


def _save(page):
    count = page.text_content("#count")
    page.keyboard.press("Enter")
    page.wait_for_function("was => document.getElementById('count').textContent !== was",
                           arg=count)


def test_a_pair_is_labelled_by_keys_and_a_reload_goes_on(browser, tmp_path):
    with labelling(tmp_path, browser, PAIRS[1:4]) as (page, own):
        answers = _answers(page)
        page.keyboard.press("2")
        _save(page)
        [preference] = own.store.rows("preferences.jsonl")
        best = preference["ranks"].index(1)
        assert preference["responses"][best] == answers[1]
        assert page.text_content("#count") == "ada: 1 done, 2 left"
        page.reload()
        page.wait_for_selector(".answer")
        assert page.text_content("#count") == "ada: 1 done, 2 left" and _answers(page) != answers
        page.keyboard.press("u")
        page.wait_for_selector("#message:has-text('Undone')")
        assert _answers(page) == answers


def test_answers_are_ranked_by_keys_and_by_drag(browser, tmp_path):
    with labelling(tmp_path, browser, RANKINGS) as (page, own):
        first = _answers(page)
        for key in "213":       # of the answers in the order in which they are shown
            page.keyboard.press(key)
        _save(page)
        second = _answers(page)
        page.drag_and_drop(".answer >> nth=2 >> h2", ".answer >> nth=0")
        assert _answers(page) == [second[2], *second[:2]]
        _save(page)
        rows = own.store.rows("preferences.jsonl")
        found = [dict(zip(row["responses"], row["ranks"])) for row in rows]
        assert found == [dict(zip(first, (2, 1, 3))), dict(zip(second, (2, 3, 1)))]


@pytest.mark.parametrize("size, is_dark", [((1200, 800), False), ((360, 740), True)])
def test_texts_with_markup_are_text_and_fit_the_window(browser, tmp_path, size, is_dark):
    with labelling(tmp_path, browser, PAIRS[:1], size=size, is_dark=is_dark) as (page, _):
        title = page.title()
        shown = [page.text_content("#prompt .text"), *_answers(page)]
        assert sum("<script>alert('x')</script>" in text for text in shown) == 2
        assert not {"\u202e", "\x1b"} & {*"".join(shown)}, "they are shown by their names"
        assert page.title() == title and page.locator("main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
