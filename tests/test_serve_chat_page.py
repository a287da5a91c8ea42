"""The chat page in a real browser: conversations, what is kept of them, and what goes wrong."""

import dataclasses
import itertools
import re
import time

import pytest
from api_server import NUM_SLOTS, await_idle, make_model, make_worker, serving
from browser import browsing, page_of

from core.json_text import format_json
from core.page.markup import visible
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.tokenizers.bpe import BytePairTokenizer
from serve.api.metrics import Metrics

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
from starlette.applications import Starlette
from starlette.testclient import TestClient

from serve.pages import static

CAPACITY = 512
SCRIPT = "<script>document.title = 'x'</script><img src=x onerror=alert(1)> & \u202e\x1b[2J"
CHAT = "**/v1/chat/completions"
LAST = ".turn:last-child .text"


class Endless(BytePairTokenizer):
    """A tokenizer whose models answer until a limit."""

    stops = ()


@pytest.fixture(scope="module")
def server(config, execution):
    """The URL of a server of a chat model and a base model, and what is served."""
    metrics, tokenizer = Metrics(), Endless({bytes([i]): i for i in range(256)})
    model = dataclasses.replace(make_model(config, execution), tokenizer=tokenizer)
    workers = {name: make_worker(dataclasses.replace(model, chat=name == "tiny"), metrics, name,
                                 num_slots=NUM_SLOTS, capacity=CAPACITY, max_queue=4)
               for name in ("tiny", "base")}
    for worker in workers.values():
        worker.start()
    with serving(workers, {}, metrics) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@pytest.fixture
def page(browser, server):
    with page_of(browser, server[0]) as found:
        found.set_default_timeout(20_000)
        await_models(found)
        yield found


@pytest.fixture
def slow_steps(server, monkeypatch):
    """Answers take seconds, so that a test comes in time for what happens before their end."""
    engine = server[1].workers["tiny"]._engine
    step = engine.step

    def step_slowly():
        time.sleep(0.03)
        return step()

    monkeypatch.setattr(engine, "step", step_slowly)


def await_models(page):
    page.wait_for_selector("#model option", state="attached")


def send(page, text, **settings):
    """Sends a message and waits for the end of the answer; returns the answer's text."""
    set_up(page, **settings)
    page.fill("#draft", text)
    page.press("#draft", "Enter")
    return await_answer(page)


def set_up(page, **settings):
    for name, value in settings.items():
        page.fill(f"[name={name}]", str(value))
        page.dispatch_event(f"[name={name}]", "change")


def await_answer(page):
    page.wait_for_selector(".turn.assistant:last-child button:text-is('Retry')")
    return page.text_content(LAST)


def list_texts(page):
    return page.locator(".turn .text").all_text_contents()


def token(text, *others):
    """A token with its alternatives as the server sends them; a text may be a part of one."""
    def entry(part):
        try:
            name = part.decode()
        except UnicodeDecodeError:
            name = "bytes:" + "".join(f"\\x{byte:02x}" for byte in part)
        return {"token": name, "logprob": -0.5, "bytes": [*part]}

    return entry(text) | {"top_logprobs": [entry(other) for other in (text, *others)]}


def answer_with(page, *pieces, tokens=(), is_cut=False):
    """Answers the page's next requests with a stream of these texts and the tokens that begin in
    each of them, instead of the server."""
    chunks = [{"index": 0, "delta": {"content": piece}, "finish_reason": None,
               "logprobs": {"content": own} if own else None}
              for piece, own in itertools.zip_longest(pieces, tokens)]
    if not is_cut:
        chunks.append({"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None})
    body = "".join(f"data: {format_json({'choices': [one], 'system_fingerprint': 'stub@1'})}\n\n"
                   for one in chunks) + ("" if is_cut else "data: [DONE]\n\n")
    page.route(CHAT, lambda route: route.fulfill(body=body, content_type="text/event-stream"))


# --- conversations ----------------------------------------------------------------------------

def test_an_answer_grows_and_the_conversation_is_there_after_a_reload(page, slow_steps):
    set_up(page, temperature=0, max_tokens=300)
    page.fill("#draft", "Hello.")
    page.press("#draft", "Enter")
    page.wait_for_selector(".assistant .text:not(:empty)")
    first = page.text_content(LAST)
    assert page.is_visible("#stop") and page.get_attribute(LAST, "aria-busy") == "true"
    whole = await_answer(page)
    assert whole.startswith(first) and len(whole) > len(first)
    foot = page.text_content(".assistant .foot")
    assert re.search(r"\d+ tokens read, \d+ written · first after [\d.]+ s · [\d.]+ tokens/s", foot)
    assert page.text_content("#said") == f"Answer: {whole}"
    page.reload()
    await_models(page)
    assert list_texts(page) == ["Hello.", whole]
    assert page.input_value("[name=max_tokens]") == "300"
    assert page.text_content(".assistant .foot") == foot


def test_stopping_frees_the_slot_and_keeps_what_came(page, server, slow_steps):
    set_up(page, temperature=0)
    page.fill("#draft", "Go on.")
    page.press("#draft", "Enter")
    page.wait_for_selector(".assistant .text:not(:empty)")
    assert server[1].num_open == 1
    page.keyboard.press("Escape")
    text = await_answer(page)
    assert text and "stopped by you" in page.text_content(".assistant .foot")
    assert await_idle(server[1], 5.0)
    page.reload()
    await_models(page)
    assert list_texts(page) == ["Go on.", text]


def test_retries_and_edits_are_branches_and_none_is_lost(page):
    one = send(page, "A first question.", max_tokens=24)
    page.click("text=Retry")
    other = await_answer(page)
    assert other != one, "another seed"
    followed = send(page, "And then?")
    page.click(".assistant >> nth=0 >> [aria-label='Version before']")
    assert list_texts(page) == ["A first question.", one]
    page.keyboard.press("Enter")        # the focus is on the other arrow
    assert list_texts(page) == ["A first question.", other, "And then?", followed]
    page.click("text=Edit >> nth=0")
    page.fill("#draft", "Another question.")
    page.press("#draft", "Escape")
    assert list_texts(page)[0] == "A first question."
    page.click("text=Edit >> nth=0")
    page.fill("#draft", "Another question.")
    page.press("#draft", "Enter")
    page.wait_for_selector(".user .versions:has-text('2/2')")
    edited = await_answer(page)
    assert list_texts(page) == ["Another question.", edited]
    page.click(".user [aria-label='Version before']")
    assert list_texts(page) == ["A first question.", other, "And then?", followed]


def test_an_answer_is_drawn_again_with_its_seed(page):
    drawn = [send(page, "Hello.", max_tokens=24, seed=7)]
    page.click("text=Retry")
    drawn.append(await_answer(page))
    page.click("#new")
    assert send(page, "Hello.") == drawn[0]
    page.click("#new")
    assert send(page, "Hello.", seed=8) == drawn[1] != drawn[0]


def test_a_base_model_goes_on_with_the_text(page, server):
    described = page.request.get(f"{server[0]}/v1/models").json()["data"]
    assert [(one["id"], one["task"]) for one in described] == [
        ("tiny", "chat"), ("base", "completion")]
    page.select_option("#model", "base")
    assert page.locator("#model option").all_text_contents() == [
        f"tiny ({CAPACITY} tokens)", f"base (base, {CAPACITY} tokens)"]
    with page.expect_request("**/v1/completions") as asked:
        first = send(page, "Once upon", max_tokens=8, system="Be brief.")
    assert asked.value.post_data_json["prompt"] == "Once upon"
    page.check("[name=logprobs]")
    with page.expect_request("**/v1/completions") as asked:
        send(page, " a time")
    assert visible(asked.value.post_data_json["prompt"]) == f"Once upon{first} a time"
    assert page.locator(f"{LAST} .token").count() > 0


def test_an_exported_conversation_is_read_by_the_project(page, tmp_path):
    one = send(page, "Hello.", system="Be brief.", max_tokens=16)
    page.click("text=Retry")
    other = await_answer(page)
    page.click("[aria-label='Version before']")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    [conversation] = read_examples(path, "conversations", faults=Faults("chat", "fail"))
    assert [(turn.role, visible(turn.content)) for turn in conversation.messages] == [
        ("system", "Be brief."), ("user", "Hello."), ("assistant", one)]
    meta = conversation.meta
    assert meta["model"] == "tiny" and meta["fingerprint"] == "tiny@0123"
    assert meta["settings"]["max_tokens"] == "16" and meta["settings"]["seed"].isdigit()
    assert other in [visible(node["content"]) for node in meta["nodes"].values()]


def test_forgotten_conversations_are_gone(page):
    answer_with(page, "Yes.")
    for text in ("one", "two", "three"):
        page.click("#new")
        send(page, text)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("[aria-label='Forget two']")
    assert page.locator("#chats .open").all_text_contents() == ["three", "one"]
    assert list_texts(page) == ["three", "Yes."], "what is shown stays"
    page.click("#forget")
    assert page.locator("#chats li").count() == 0 and list_texts(page) == []
    assert page.evaluate("Object.keys(localStorage)") == []


@pytest.mark.full
def test_the_last_of_two_tabs_wins_and_the_oldest_conversation_makes_room(page):
    answer_with(page, "first")
    send(page, "Hello.")
    tab = page.context.new_page()
    tab.goto(page.url)
    await_models(tab)
    answer_with(tab, "second")
    tab.click("text=Retry")
    tab.wait_for_selector(f"{LAST}:text-is('second')")
    answer_with(page, "third")
    page.click("text=Retry")
    page.wait_for_selector(f"{LAST}:text-is('third')")
    page.reload()
    assert "2/2" in page.text_content(".assistant .foot") and list_texts(page)[1] == "third"
    page.evaluate("""() => {
      const chat = Object.values(localStorage).find((text) => text.includes("third"));
      for (let k = 0; k < 49; k++) localStorage[`heartwood.chat.old${k}`] = JSON.stringify(
        {...JSON.parse(chat), id: `old${k}`, changed: k});
    }""")
    page.reload()
    await_models(page)
    page.click("#new")
    send(page, "One more.")
    assert "The oldest conversation was forgotten" in page.text_content("#message")
    assert page.locator("#chats li").count() == 50
    assert page.evaluate("'heartwood.chat.old0' in localStorage") is False
    assert page.evaluate("'heartwood.chat.old1' in localStorage") is True


# --- texts and tokens -------------------------------------------------------------------------

def test_markup_and_control_characters_of_a_model_are_text(page):
    answer_with(page, SCRIPT)
    assert send(page, SCRIPT) == SCRIPT.replace("\u202e", "⟨U+202E⟩").replace("\x1b", "␛")
    assert page.title() == "Heartwood: chat" and page.locator("main img, main script").count() == 0
    page.reload()
    assert page.locator("#chats img, main img").count() == 0


def test_probabilities_are_shown_by_pointing_and_by_keys(page):
    page.check("[name=logprobs]")
    euro, bill = [token(b"\xe2\x82"), token(b"\xac", b"\xad")], [token(b" bill", b"\n")]
    answer_with(page, "A ", "€", " b", "", "", tokens=[     # a stop text cut the bill
        [token(b"A", b"<b>"), token(b" ")], euro, bill, [token(b"<|end|>")]])
    assert send(page, "Hello.").removesuffix("<|end|>") == "A € b"
    spans = page.locator(f"{LAST} .token")
    assert spans.all_text_contents() == ["A", " ", "€", " b", "<|end|>"]
    spans.nth(0).hover()
    assert page.locator("#tip tr").all_text_contents() == ["A60.7 %", "<b>60.7 %"]
    page.mouse.move(1, 1)
    assert page.is_hidden("#tip")
    spans.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip tr").all_text_contents() == [
        "\\xe2\\x8260.7 %", "\\xac60.7 %", "\\xad60.7 %"]
    assert spans.nth(2).get_attribute("aria-describedby") == "tip"
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip tr").all_text_contents() == ["␣bill60.7 %", "⏎60.7 %"]
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_the_servers_own_probabilities_give_the_text_as_it_is(page):
    text = send(page, "Hello.", max_tokens=60, seed=3)
    page.click("#new")
    page.check("[name=logprobs]")
    shown = send(page, "Hello.")
    silent = page.locator(f"{LAST} .silent").all_text_contents()
    for name in silent:
        shown = shown.replace(name, "")
    assert shown == text
    tints = page.eval_on_selector_all(f"{LAST} .token", "all => all.map("
                                      "(one) => Number(one.style.getPropertyValue('--chance')))")
    assert all(0 <= tint <= 1 for tint in tints)


# --- what goes wrong --------------------------------------------------------------------------

def test_a_key_is_asked_for_and_kept_for_the_tab(browser):
    with serving({}, {}, Metrics(), keys=["right"]) as (url, _), \
            page_of(browser, url, statuses=(401,)) as page:
        page.wait_for_selector("#login[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#message:has-text('a valid key is needed')")
        page.reload()
        for key in ("wrong", "right"):
            page.wait_for_selector("#login[open] #key:placeholder-shown")    # asked for anew
            page.fill("#key", key)
            page.press("#key", "Enter")
        page.wait_for_selector("#message:text-is('No model that writes text is served here.')")
        page.reload()
        page.wait_for_selector("#message:text-is('No model that writes text is served here.')")
        assert page.evaluate("Object.keys(localStorage)") == []


def test_a_refusal_is_a_line_and_the_message_can_be_sent_again(browser, server):
    with page_of(browser, server[0], statuses=(429, 400)) as page:
        await_models(page)
        page.route(CHAT, lambda route: route.fulfill(
            status=429, headers={"Retry-After": "7"},
            json={"error": {"message": "the queue is full", "code": "queue_full"}}))
        page.fill("#draft", "Hello.")
        page.press("#draft", "Enter")
        page.wait_for_selector(".assistant .foot:has-text('busy: try again in 7 s')")
        page.unroute(CHAT)
        page.route(CHAT, lambda route: None)
        page.click("text=Retry")
        page.wait_for_selector("#stop")
        page.keyboard.press("Escape")
        page.wait_for_selector(".assistant .foot:has-text('stopped by you')")
        page.unroute(CHAT)
        set_up(page, max_tokens=CAPACITY)
        page.click("text=Retry")
        page.wait_for_selector(f".assistant .foot:has-text('refuses'):has-text('{CAPACITY}')")
        set_up(page, max_tokens=8)
        page.click("text=Retry")
        assert await_answer(page)
        assert page.locator(".versions").count() == 0 and len(list_texts(page)) == 2


def test_a_lost_connection_keeps_what_came(page):
    answer_with(page, "Half an", is_cut=True)
    assert send(page, "Hello.") == "Half an"
    assert "cut: the connection was lost" in page.text_content(".assistant .foot")
    page.reload()
    assert list_texts(page) == ["Hello.", "Half an"]


def test_a_server_that_is_gone_is_a_line(browser, server):
    with page_of(browser, server[0], size=(360, 400), statuses=(502,)) as page:
        await_models(page)
        page.route(CHAT, lambda route: route.fulfill(status=502, body="<html>bad gateway"))
        page.fill("#draft", "Hello." + 9 * "\n.")
        page.press("#draft", "Enter")
        page.wait_for_selector(".assistant .foot:has-text('The server refuses: status 502.')")
        page.unroute(CHAT)
        page.route(CHAT, lambda route: route.fulfill(
            status=502, json={"error": {"message": "a long reason " * 30}}))
        page.click("text=Retry")
        page.wait_for_selector(".assistant .foot:has-text('a long reason')")
        foot, form = (page.locator(part).bounding_box() for part in (
            ".assistant .foot", "#composer"))
        assert foot["y"] + foot["height"] <= form["y"], "not behind the form"
        page.evaluate("void (fetch = () => Promise.reject(new TypeError()))")
        page.click("text=Retry")
        page.wait_for_selector(".assistant .foot:has-text('The server does not answer.')")
        assert len(list_texts(page)) == 2


# --- keys, sizes, headers ---------------------------------------------------------------------

def test_everything_is_done_by_keys(page):
    page.focus("#draft")
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    answer_with(page, "Yes.")
    page.keyboard.press("Enter")
    assert await_answer(page) == "Yes." and list_texts(page)[0] == "One line\nand another"
    page.keyboard.press("Escape")       # leaves the field
    assert page.evaluate("document.activeElement.id") == "title"
    answer_with(page, "No.")
    for key in ("Tab", "Tab", "Enter"):         # over the edit of the turn to its answer's retry
        page.keyboard.press(key)
    page.wait_for_selector(f"{LAST}:text-is('No.')")
    assert page.evaluate("document.activeElement.className").startswith("turn assistant")
    side, main = (page.locator(part).bounding_box() for part in ("#side", "main"))
    assert side["x"] + side["width"] <= main["x"] and side["width"] < main["width"] / 2
    page.press("#to-side", "Enter")
    assert page.is_hidden("#side") and page.get_attribute("#to-side", "aria-expanded") == "false"
    page.press("#new", "Enter")
    assert list_texts(page) == [] and page.evaluate("document.activeElement.id") == "draft"


def test_all_controls_have_names(page):
    send(page, "Hello.", max_tokens=8)
    page.click("text=Retry")
    await_answer(page)
    page.click("text=Edit")
    nameless = page.evaluate("""() => [...document.querySelectorAll(
      "button, input, select, textarea")].filter((one) => !one.labels?.length && !one.ariaLabel
        && !one.textContent.trim()).map((one) => one.outerHTML)""")
    assert nameless == []


def width_of(page):
    return page.evaluate("document.documentElement.scrollWidth")


def test_a_narrow_page_does_not_scroll_sideways(browser, server):
    with page_of(browser, server[0], size=(320, 600), is_dark=True) as page:
        await_models(page)
        assert page.is_hidden("#side"), "closed where there is no room"
        page.evaluate("document.querySelector('[name=logprobs]').click()")
        long = "x" * 300
        answer_with(page, long, tokens=[[token(long.encode(), b"y" * 200)]])
        send(page, long)
        page.locator(".token").focus()
        assert page.is_visible("#tip") and width_of(page) <= 320
        page.keyboard.press("Escape")
        page.click("#to-side")
        assert page.is_visible("#side") and width_of(page) <= 320


def test_pages_forbid_what_they_do_not_need_and_need_no_key(browser, server):
    with serving({}, {}, Metrics(), keys=["right"]) as (url, _):
        context = browser.new_context()
        try:
            for path in ("/", "/chat.js", "/chat.css", "/page.css", "/turns.js"):
                reply = context.request.get(url + path, headers={"Sec-Fetch-Site": "cross-site"})
                assert reply.status == 200 and "script-src 'self'" in reply.headers[
                    "content-security-policy"]
            assert context.request.get(f"{url}/v1/models").status == 401
            assert context.request.get(f"{url}/v1/models", headers={
                "Sec-Fetch-Site": "cross-site"}).status == 403
            assert context.request.get(f"{url}/../chat.py").status in (401, 404)
        finally:
            context.close()


def test_pages_stay_small_and_hold_nothing_that_runs_texts():
    texts = {file: file.read_text() for suffix in ("html", "js")
             for file in static.FRAME.parent.glob(f"*.{suffix}")}
    assert sum(text.count("\n") for text in texts.values()) <= 950
    for file, text in texts.items():
        assert max(map(len, text.splitlines())) <= 100, file.name
        found = re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|\sstyle=|\sonclick="
                          r"|https?://", text)
        assert not found, f"{file.name} has {found}"


def test_a_way_to_the_arena_is_shown_where_there_is_one():
    for table, is_there in ((static.CHAT, False), (static.CHAT | static.ARENA, True)):
        [page] = [route for route in static.make_routes(table) if route.path == "/"]
        reply = TestClient(Starlette(routes=[page])).get("/")
        assert (static.ARENA_LINK in reply.text) == is_there and 'id="composer"' in reply.text
