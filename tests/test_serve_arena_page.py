"""The arena's page in a browser: by keys, by touch, restored after a reload, safe with any text."""

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs the extra `dev`")
from arena_server import NAMES, SCRIPT, arena_of, scripted
from browser import browsing, page_of

from core.artifacts import read_jsonl
from core.page.markup import visible

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@pytest.fixture
def arena(config, execution, tmp_path):
    """The URL, the arena, and two models; one of them answers with markup."""
    workers = scripted(config, execution, NAMES[:2])
    workers["quartz"].text = f"I am quartz. {SCRIPT}"
    with arena_of(workers, tmp_path) as (client, server):
        yield str(client.base_url), server, workers


def _send(page, prompt="What is 3 + 4?"):
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")


def _vote_by_key(page, key):
    page.wait_for_selector("#verdicts button:enabled")
    page.keyboard.press(key)
    page.wait_for_selector(".name:not(:empty)")


def _state(page):
    return page.text_content("#message")


def test_a_battle_by_keys_is_stored_revealed_and_ranked(browser, arena):
    url, server, _workers = arena
    with page_of(browser, f"{url}/arena") as page:
        _send(page)
        page.wait_for_selector("#verdicts button:enabled")
        assert page.locator(".answer .text").all_text_contents() and "quartz" not in "".join(
            page.locator("h2, #message, nav").all_text_contents())
        assert page.get_by_role("region", name="Answer A").is_visible()
        _vote_by_key(page, "2")
        row = read_jsonl(server.store.path)[-1]
        assert row["ranks"] == [2, 1]
        assert page.locator(".name").all_text_contents() == row["meta"]["models"]
        assert page.locator(".answer.chosen h2").text_content().startswith("Answer B")
        assert _state(page).startswith("You voted: B is better. A is ")
        page.keyboard.press("Enter")        # the next battle has the focus
        assert page.locator("article").count() == 0
        for key in "34":
            _send(page, "Again?")
            _vote_by_key(page, key)
            page.click("#next")
        assert [row["meta"].get("both_bad", False) for row in read_jsonl(server.store.path)] == [
            False, False, True]
        page.click("text=Leaderboard")
        assert page.locator("td", has_text="quartz").first.is_visible()
        page.click("text=Vote in the arena")
        assert page.locator("#prompt").is_visible()
        page.click("text=Chat")
        page.click("text=Arena")
        assert page.locator("#prompt").is_visible()


def test_both_columns_stream_and_no_vote_is_possible_before_the_end(browser, arena):
    url, _server, workers = arena
    for worker in workers.values():
        worker.text = None
    with page_of(browser, f"{url}/arena") as page:
        _send(page)
        page.wait_for_selector("#stop:visible")
        while sum(worker.num_open for worker in workers.values()) < 2:
            page.wait_for_timeout(10)
        workers["quartz"].say("q" * 100)
        workers["basalt"].say("b" * 32)
        page.locator(".text", has_text="b" * 32).wait_for()
        page.locator(".text", has_text="q" * 32).wait_for()
        assert sorted(map(len, page.locator(".answer .text").all_text_contents())) == [32, 32]
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        assert page.locator("#verdicts button:disabled").count() == 4
        assert page.get_attribute("#turns", "aria-busy") == "true"
        page.click("#stop")
        page.wait_for_selector("#next:focus")
        assert _state(page) == "Stopped: no vote is counted."
        while any(worker.num_open for worker in workers.values()):
            page.wait_for_timeout(10)
        assert all(worker.cancelled for worker in workers.values())


def test_a_text_with_markup_is_a_text(browser, arena):
    url, _server, _workers = arena
    with page_of(browser, f"{url}/arena") as page:
        _send(page, SCRIPT)
        page.wait_for_selector("#verdicts button:enabled")
        prompt, *answers = page.locator(".text").all_text_contents()
        assert prompt == SCRIPT
        assert visible(f"I am quartz. {SCRIPT}") in answers
        assert page.title() == "Heartwood: arena" and page.locator("main script").count() == 0


def test_a_reload_restores_the_battle_before_and_after_the_vote(browser, arena):
    url, server, workers = arena
    with page_of(browser, f"{url}/arena") as page:
        _send(page)
        page.wait_for_selector("#verdicts button:enabled")
        _send(page, "And 4 + 5?")
        page.locator("article").nth(1).wait_for()
        page.wait_for_selector("#verdicts button:enabled")
        before = page.locator(".text").all_text_contents()
        page.reload()
        page.wait_for_selector("#verdicts button:enabled")
        assert page.locator(".text").all_text_contents() == before and len(before) == 6
        _vote_by_key(page, "3")
        assert server.store.num_votes == 1
        page.reload()
        page.wait_for_selector(".name:not(:empty)")
        assert page.locator("#verdicts").is_hidden() and page.locator("#next").is_visible()
        page.click("#next")
        for worker in workers.values():
            worker.text = None
        _send(page, "Left alone?")
        page.wait_for_selector("#stop:visible")
        page.reload()
        page.locator("#message", has_text="no vote is counted").wait_for()
        assert page.input_value("#prompt") == "Left alone?"
        assert page.locator("article").count() == 0


@pytest.mark.parametrize("size", [(1280, 860), (360, 740)], ids=["wide", "narrow"])
def test_nothing_is_wider_than_the_page_and_the_verdicts_are_in_reach(browser, arena, size):
    url, _server, workers = arena
    workers["basalt"].text = "w" * 400 + "\n" + "A line of an answer.\n" * 20
    with page_of(browser, f"{url}/arena", size=size, is_dark=True) as page:
        _send(page, "x" * 300)
        page.wait_for_selector("#verdicts button:enabled")

        def is_too_wide():
            return page.evaluate("document.documentElement.scrollWidth > innerWidth")

        assert not is_too_wide()
        left, right = (page.get_by_role("region", name=f"Answer {letter}").bounding_box()
                       for letter in "AB")
        assert (left["y"] < right["y"]) == (size[0] < 760)
        page.evaluate("scrollTo(0, 0)")
        box = page.locator("[value=both_bad]").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= size[1]
        page.click("[value=tie]")
        page.wait_for_selector(".name:not(:empty)")
        assert not is_too_wide()


def test_a_key_is_asked_for_once_and_stays_in_the_tab(browser, config, execution, tmp_path):
    workers = scripted(config, execution, NAMES[:2])
    with arena_of(workers, tmp_path, keys=["k1"]) as (client, _server):
        context = browser.new_context()
        page = context.new_page()       # the refusal is an error in the console
        page.goto(f"{client.base_url}/arena")
        _send(page)
        page.fill("#key", "k1")
        page.keyboard.press("Enter")
        _vote_by_key(page, "1")
        assert page.evaluate("[sessionStorage.apiKey, localStorage.length, document.cookie]") == [
            "k1", 0, ""]
        context.close()
