"""The server's parts by themselves: text as it comes, fields of requests, who may ask, metrics."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from serve.api.limits import Gate, is_loopback, read_keys
from serve.api.metrics import Histogram, Metrics, ModelMetrics
from serve.api.schema import parse_chat, parse_completion, parse_embedding
from serve.api.streaming import TextWriter
from serve.run import find_models
from serve.web.errors import WebError
from serve.web.fields import Fields, parse_body

BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def _write(tokens, stop_texts=(), sizes=(1,)):
    """Pieces and marks of tokens that come in chunks of these sizes, and the writer."""
    writer, pieces, marks, at = TextWriter(BYTES, BYTES.stops, stop_texts), [], [], 0
    while at < len(tokens) and not writer.is_stopped:
        chunk = tokens[at:at + sizes[len(pieces) % len(sizes)]]
        at += len(chunk)
        text, new = writer.push(chunk, [-1.0] * len(chunk), [])
        pieces.append(text)
        marks += new
    text, new = writer.end()
    return [*pieces, text], [*marks, *new], writer


@given(st.binary(max_size=20), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_pieces_are_the_whole_text_whatever_comes_at_once(text, sizes):
    pieces, marks, _ = _write([*text], sizes=sizes)
    assert "".join(pieces) == BYTES.text_of([*text])
    assert [mark.token for mark in marks] == [*text]


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
       st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_an_answer_ends_before_the_first_stop_text_that_is_complete(text, stops, sizes):
    pieces, marks, writer = _write([*text.encode()], stops, sizes)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first = min((end for end, _ in ends), default=None)
    expected = text if first is None else text[:min(at for end, at in ends if end == first)]
    assert "".join(pieces) == expected and writer.is_stopped == bool(ends)
    assert len(marks) == len(expected), "tokens of the stop text are not reported"
    for count in range(len(pieces)):    # what was sent is never taken back
        assert expected.startswith("".join(pieces[:count]))


def test_text_is_sent_as_soon_as_it_is_certain():
    pieces, _, _ = _write([*b"one END"], ["END."])
    assert pieces == ["o", "n", "e", " ", "", "", "", "END"]
    pieces, _, _ = _write([*"a🌲é".encode()])
    assert pieces == ["a", "", "", "", "🌲", "", "é", ""]
    assert "".join(_write([*"a🌲".encode()[:3]])[0]) == "a\N{REPLACEMENT CHARACTER}"


def test_special_tokens_are_no_text_and_stop_tokens_are_marked():
    end = BYTES.end
    pieces, marks, _ = _write([97, BYTES.special("<|system|>"), 98, end])
    assert "".join(pieces) == "ab" and [mark.token for mark in marks][-1] == end
    assert [mark.offset for mark in marks] == [0, 1, 1, 2]


@pytest.mark.parametrize("body, code", [
    (b"{", "invalid_json"), (b"[]", "invalid_json"), (b'"\xff"', "invalid_utf8"),
    (b'{"a": NaN}', "invalid_json"), (b'{"a": -Infinity}', "invalid_json"),
    (b"[" * 100_000, "invalid_json"), (b'{"a": ' + b"9" * 10_000 + b"}", "invalid_json")])
def test_a_body_that_is_no_object_is_refused(body, code):
    with pytest.raises(WebError) as error:
        parse_body(body)
    assert (error.value.status, error.value.code) == (400, code)


WRONG_CHAT = [
    ("temperature", -0.1), ("temperature", 1e999), ("temperature", "1"), ("temperature", True),
    ("top_p", 1.1), ("top_p", -1), ("min_p", 2), ("top_k", -1), ("top_k", 1.5), ("n", 0),
    ("n", 1_000), ("max_tokens", 0), ("max_tokens", 1.0), ("max_completion_tokens", -1),
    ("seed", 0.5), ("seed", 2**63), ("stop", [""]), ("stop", [1]), ("stop", ["a"] * 17),
    ("stream", 1), ("logprobs", 1), ("top_logprobs", 21), ("top_logprobs", 2),
    ("stream_options", {"include_usage": True}), ("frequency_penalty", 0.5),
    ("logit_bias", {"1": 2}), ("presence_penalty", False), ("tools", {}),
    ("tool_choice", "required"),
    ("response_format", {"type": "xml"}), ("response_format", {"type": "json_schema"}),
    ("guided_regex", 1), ("user", 1), ("echo", True), ("unheard", 1), ("messages", []),
    ("messages", "Hi"), ("messages", [1]), ("messages", [{"role": "user"}]),
    ("messages", [{"role": "king", "content": "x"}]), ("model", None), ("model", 3),
    ("messages", [{"role": "user", "content": "x", "name": "y"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
    ("messages", [{"role": "user", "content": "\ud800"}])]


@pytest.mark.parametrize("field, value", WRONG_CHAT, ids=repr)
def test_a_field_that_is_wrong_or_unknown_is_named(field, value):
    with pytest.raises(WebError) as error:
        parse_chat(CHAT | {field: value})
    assert error.value.status == 400
    assert field in (error.value.param or "") and field in error.value.message


def test_fields_that_change_nothing_are_accepted():
    asked = parse_chat(CHAT | {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "store": False,
        "user": "someone", "stop": None, "tools": None, "n": None, "seed": 5, "max_tokens": 7,
        "response_format": {"type": "text"}, "tool_choice": "auto", "max_completion_tokens": 7})
    assert asked.settings.num_choices == 1 and asked.settings.max_tokens == 7
    assert asked.settings.seed == 5 and asked.settings.constraint is None
    other, again = (parse_chat(CHAT).settings.seed for _ in range(2))
    assert other != again, "without a seed answers differ"


def test_messages_may_come_in_parts_and_from_a_developer():
    asked = parse_chat(CHAT | {"messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}]})
    assert [(m.role, m.content) for m in asked.conversation.messages] == [
        ("system", "Be brief."), ("user", "ab")]


def test_prompts_are_texts_or_tokens_or_several_of_them():
    def prompts(value):
        return parse_completion({"model": "m", "prompt": value}).prompts

    assert prompts("a") == ("a",) and prompts(["a", "b"]) == ("a", "b")
    assert prompts([1, 2]) == ((1, 2),) and prompts([[1], [2, 3]]) == ((1,), (2, 3))
    for value in ([], [[]], [1, "a"], {}, [True], [-1], [[2**31]], None):
        with pytest.raises(WebError, match="prompt"):
            prompts(value)
    with pytest.raises(WebError, match="max_tokens must be at least 1 where the prompt is not"):
        parse_completion({"model": "m", "prompt": "a", "max_tokens": 0})
    with pytest.raises(WebError, match="dimensions is not supported"):
        parse_embedding({"model": "m", "input": "a", "dimensions": 2})


def test_a_field_that_is_null_is_absent():
    fields = Fields({"a": None})
    fields.end()
    with pytest.raises(WebError, match="b is not supported"):
        Fields({"a": None, "b": 0}).end()


def _gate(keys=(), hosts=(), is_closing=False):
    return Gate(None, keys=keys, hosts=hosts, is_closing=lambda: is_closing, metrics=Metrics(),
                paths=[], pages=["/"])


def _status(gate, method="POST", path="/v1/completions", **headers):
    named = {"host": "127.0.0.1:8000"} | {k.replace("_", "-"): v for k, v in headers.items()}
    try:
        gate.check({"method": method, "path": path, "headers": [
            (name.encode(), value.encode("latin-1")) for name, value in named.items()]})
    except WebError as error:
        return error.status
    return 200


@pytest.mark.parametrize("headers, status", [
    ({}, 200), ({"host": "localhost"}, 200), ({"host": "[::1]:80"}, 200),
    ({"host": "evil.example"}, 403), ({"host": ""}, 403), ({"host": "[::1"}, 403),
    ({"host": "models.example"}, 200), ({"origin": "http://127.0.0.1:8000"}, 200),
    ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403),
    ({"origin": "http://127.0.0.1:9000"}, 403), ({"sec_fetch_site": "cross-site"}, 403),
    ({"sec_fetch_site": "same-origin"}, 200)], ids=repr)
def test_other_names_and_pages_of_other_sites_are_refused(headers, status):
    assert _status(_gate(hosts=["models.example"]), **headers) == status


@pytest.mark.parametrize("header, status", [
    ("", 401), ("Bearer wrong", 401), ("Bearer ", 401), ("Basic one", 401), ("Bearer one", 200),
    ("bearer two", 200), ("Bearer one two", 401), ("Bearer \xe9", 401)])
def test_a_key_is_needed_where_there_are_keys(header, status):
    assert _status(_gate(keys=("one", "two")), authorization=header) == status
    assert _status(_gate(keys=("one",)), "GET", "/health") == 200
    assert _status(_gate(keys=("one",)), "GET", "/", sec_fetch_site="cross-site") == 200
    assert _status(_gate(keys=("one",)), "POST", "/") == 401


def test_nothing_new_begins_once_the_server_closes():
    assert _status(_gate(is_closing=True)) == 503
    assert _status(_gate(is_closing=True), "GET", "/metrics") == 200


def test_keys_are_read_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the lab\none\n\n two \n")
    assert read_keys(file) == ("one", "two")
    for text in ("", "# none\n", "a\x07b\n", "é\n"):
        file.write_text(text)
        with pytest.raises(UserError, match="--api_keys"):
            read_keys(file)
    with pytest.raises(UserError, match="no such file"):
        read_keys(tmp_path / "other")


def test_loopback_is_told_from_other_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))


def test_models_have_their_folders_names_or_their_own():
    found = find_models(["runs/a/rl", "b=runs/c", "runs/x=y/z"])
    assert {name: str(path) for name, path in found.items()} == {
        "rl": "runs/a/rl", "b": "runs/c", "z": "runs/x=y/z"}
    for entries in ([], ["a", "b/a"], ["=x"], ["x="]):
        with pytest.raises(UserError, match="--model"):
            find_models(entries)


def test_metrics_are_lines_of_the_format_of_prometheus():
    metrics = Metrics()
    metrics.models['a "b"\n'] = own = ModelMetrics(4)
    own.first_token.observe(0.03)
    own.first_token.observe(100.0)
    own.tokens["drawn"].add(20)
    own.tokens["reused"].add(30)
    own.tokens["read"].add(10)
    metrics.count_request("/health", 200)
    lines = metrics.format().splitlines()
    assert 'heartwood_requests_total{path="/health",status="200"} 1' in lines
    assert 'heartwood_slots{model="a \\"b\\"\\n"} 4' in lines
    assert 'heartwood_generated_tokens_per_second{model="a \\"b\\"\\n"} 2' in lines
    assert 'heartwood_prefix_cache_hit_ratio{model="a \\"b\\"\\n"} 0.75' in lines
    buckets = [line for line in lines if "seconds_bucket" in line]
    assert buckets[1].endswith('le="0.025"} 0') and buckets[2].endswith('le="0.05"} 1')
    assert buckets[-1].endswith('le="+Inf"} 2')
    assert len({line.split()[2] for line in lines if line.startswith("# TYPE")}) == 10


def test_a_histogram_counts_a_bound_itself():
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    assert [line.rpartition(" ")[2] for line in histogram.lines("x", "m=1")] == [
        "1", "1", "1", "1", "1"]


def test_errors_have_the_form_of_openai():
    error = WebError(400, "x is wrong", param="x", code="invalid_value")
    assert json.loads(json.dumps(error.body)) == {"error": {
        "message": "x is wrong", "type": "invalid_request_error", "param": "x",
        "code": "invalid_value"}}
    assert WebError(429, "").headers == {"Retry-After": "1"}
    assert WebError(500, "").body["error"]["type"] == "server_error"
