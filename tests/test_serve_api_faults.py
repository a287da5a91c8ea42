"""The server under faults: clients that leave, answers and engines that fail, bodies at random,
keys, full queues, and its end."""

import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from api_server import (
    BYTES,
    CAPACITY,
    GREEDY,
    NUM_SLOTS,
    await_idle,
    make_model,
    make_worker,
    serving,
    serving_model,
)

from core.artifacts import ROOT, make_lineage, write_json
from model.directory import save_model
from serve.api import worker as worker_module
from serve.api.metrics import Metrics

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def model(config, execution):
    return make_model(config, execution)


@pytest.fixture(scope="module")
def server(model):
    """The URL of a server, and what is served."""
    with serving_model(model) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def _slow_down(engine, monkeypatch):
    """So that clients do what they do before an answer ends."""
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step())[1])


def test_a_key_is_needed_where_there_are_keys(model):
    with serving_model(model, keys=("secret",)) as (url, _):
        for key, is_right in (("secret", True), ("other", False)):
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            if is_right:
                assert client.models.list().data
            else:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/metrics").status_code == 401


def test_a_full_queue_is_429_and_a_late_answer_504(model, monkeypatch):
    body = GREEDY | {"max_tokens": 100}
    with serving_model(model, max_queue=1, request_secs=0.0) as (url, served):
        _slow_down(served.workers["tiny"]._engine, monkeypatch)
        found = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
        served.request_secs = 60.0
        with ThreadPoolExecutor(10) as pool:
            found = [*pool.map(lambda _: httpx.post(f"{url}/v1/chat/completions", json=body,
                                                    timeout=60), range(10))]
        statuses = [one.status_code for one in found]
        assert set(statuses) == {200, 429} and statuses.count(200) >= NUM_SLOTS + 1
        assert all(one.headers["retry-after"] == "1" for one in found if one.status_code == 429)
        assert await_idle(served)


def test_a_client_that_leaves_frees_its_slot(server, client, monkeypatch):
    """More of them than slots: their answers are not drawn to the end."""
    url, served = server
    engine = served.workers["tiny"]._engine
    drawn, num_left = served.metrics.models["tiny"].tokens["drawn"], 2 * NUM_SLOTS + 1
    for seed in range(20):
        body = GREEDY | {"max_tokens": 100, "temperature": 1, "seed": seed}
        whole = client.chat.completions.create(**body).usage.completion_tokens
        if whole > 60:
            break
    assert whole > 60 and await_idle(served)
    _slow_down(engine, monkeypatch)
    before = drawn.value
    for _ in range(num_left - 1):
        with httpx.stream("POST", f"{url}/v1/chat/completions", timeout=60,
                          json=body | {"stream": True}) as response:
            next(response.iter_bytes())
    with pytest.raises(httpx.ReadTimeout):      # one that waits for the whole answer
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.02)
    assert await_idle(served)
    assert drawn.value - before < num_left * whole / 2
    monkeypatch.undo()
    assert client.chat.completions.create(**body).usage.completion_tokens == whole


def test_an_answer_that_fails_is_a_500_and_leaves_the_others(client, server, monkeypatch, capfd):
    expected = client.chat.completions.create(**GREEDY).choices[0].message.content
    push = worker_module.TextWriter.push

    def fail(self, tokens, *rest):
        if self._stop_texts == ("fail",):
            raise ValueError("planted")
        return push(self, tokens, *rest)

    monkeypatch.setattr(worker_module.TextWriter, "push", fail)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(client.chat.completions.create, **GREEDY) for _ in range(3)]
        for _ in range(2 * NUM_SLOTS):
            with pytest.raises(openai.InternalServerError) as error:
                client.chat.completions.create(**GREEDY, stop="fail")
            assert error.value.code == "internal_error" and "planted" not in str(error.value)
        assert {one.result().choices[0].message.content for one in others} == {expected}
    assert "planted" in capfd.readouterr().err
    assert await_idle(server[1])


def test_an_engine_that_fails_is_opened_anew(model, monkeypatch, capfd):
    with serving_model(model) as (url, served):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        expected = client.chat.completions.create(**GREEDY).choices[0].message.content
        monkeypatch.setattr(served.workers["tiny"]._engine, "_admit", lambda: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**GREEDY)
        assert client.chat.completions.create(**GREEDY).choices[0].message.content == expected
        assert "is opened anew" in capfd.readouterr().err and await_idle(served)


def test_a_model_whose_engine_cannot_be_opened_anew_answers_no_more(model, monkeypatch, capfd):
    with serving_model(model) as (url, served):
        worker = served.workers["tiny"]
        monkeypatch.setattr(worker, "_open_engine", lambda: 1 / 0)
        monkeypatch.setattr(worker._engine, "_admit", lambda: 1 / 0)
        statuses = [httpx.post(f"{url}/v1/chat/completions", json=GREEDY).status_code
                    for _ in range(2)]
        assert statuses == [500, 503] and not worker.num_open
        assert httpx.get(f"{url}/health").json() == {"status": "failed"}
    assert "answers no more" in capfd.readouterr().err


def _fuzzed(rng):
    """A body that is wrong somewhere, or not."""
    values = (None, True, False, -1, 0, 1, 2, 0.5, 1e400, -0.0, "", "x", "🌲", "\x00", [], {}, [1],
              ["a", None], {"type": "json_object"}, [[]], {"a": {"b": []}}, 2**70, "tiny")
    body = rng.choice((GREEDY, {"model": "tiny", "prompt": "a", "max_tokens": 3}))
    body = {**body, "max_tokens": 2}
    for _ in range(rng.randint(1, 3)):
        name = rng.choice((*body, "stream", "stop", "n", "seed", "top_p", "top_k", "min_p", "echo",
                           "logprobs", "top_logprobs", "tools", "response_format", "logit_bias",
                           "stream_options", "repetition_penalty", "encoding_format", "input"))
        body[name] = rng.choice(values)
    text = json.dumps(body).encode()
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = text[:at] + rng.randbytes(rng.randint(0, 4)) + text[at + rng.randint(0, 6):]
    return text


def _fuzz(server, client, count):
    url, served = server
    expected, rng = client.chat.completions.create(**GREEDY).choices[0].message, random.Random(1)
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
    jobs = [(rng.choice(paths), _fuzzed(rng), rng.random() < 0.1) for _ in range(count)]

    def post(job):
        path, body, leaves = job
        try:
            return http.post(url + path, content=body, timeout=0.01 if leaves else 60).status_code
        except httpx.TimeoutException:
            return 499

    with httpx.Client() as http, ThreadPoolExecutor(8) as pool:
        statuses = [*pool.map(post, jobs)]
    assert not {*statuses} - {200, 400, 404, 429, 499}, {*statuses}
    assert {200, 400} <= {*statuses}
    assert await_idle(served)
    assert client.chat.completions.create(**GREEDY).choices[0].message == expected


def test_whatever_is_sent_the_server_goes_on(server, client):
    _fuzz(server, client, 80)


@pytest.mark.full
def test_whatever_is_sent_the_server_goes_on_for_long(server, client):
    _fuzz(server, client, 1500)


def test_bytes_that_are_no_http_are_refused(server, client):
    host, port = server[0].removeprefix("http://").split(":")
    for data in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n"
                 b"Host: localhost\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(data)
            assert b" 400 " in connection.recv(200)
    assert client.models.list().data


def test_a_server_that_closes_ends_its_streams_and_begins_none(model):
    body = GREEDY | {"max_tokens": 100, "stream": True, "temperature": 2, "seed": 1}
    with serving_model(model) as (url, served):
        whole = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).text
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body,
                          timeout=60) as response:
            pieces = response.iter_text()
            text = next(pieces)
            served.is_closing = True
            try:
                late = httpx.post(f"{url}/v1/chat/completions", json=body)
                assert late.status_code == 503 and late.headers["retry-after"] == "1"
            except httpx.ConnectError:      # it has ended already
                pass
            text += "".join(pieces)
    parts = [[line for line in found.splitlines() if '"content"' in line]
             for found in (whole, text)]
    assert len(parts[0]) == len(parts[1]) and text.endswith("data: [DONE]\n\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_answers_that_outlast_the_limit_of_closing_fail(model, monkeypatch):
    body = GREEDY | {"max_tokens": 100, "stream": True, "temperature": 2, "seed": 1}
    metrics = Metrics()
    worker = make_worker(model, metrics, "tiny", num_slots=NUM_SLOTS, capacity=CAPACITY,
                         max_queue=1)
    _slow_down(worker._engine, monkeypatch)
    worker.start()
    with (serving({"tiny": worker}, {}, metrics) as (url, _),
          httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response):
        pieces = response.iter_text()
        text = next(pieces)
        worker.close()
        text += "".join(pieces)
    assert '"code": "closing"' in text and "[DONE]" not in text


@pytest.mark.full
def test_a_signal_lets_streams_end_and_refuses_new_requests(model, tmp_path):
    """In a process of its own."""
    BYTES.save(tmp_path / "source")
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_model(folder, model.params, model.config, tmp_path / "source", chat=True,
               context_tokens=400)
    write_json(folder / "lineage.json", make_lineage(stage="x", config={}, inputs={}, code=""))
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.run", f"--model={folder}", "--port=0", "--batch_size=1",
         "--context_tokens=250"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)
    try:
        lines = []
        while "ready after" not in (line := process.stderr.readline()):
            assert line, lines
            lines.append(line)
        assert "is compiled in" in lines[-1]
        url = re.search(r"(http://\S+)/v1 ", line)[1]
        with httpx.stream("POST", f"{url}/v1/completions", timeout=60, json={
                "model": "tiny", "prompt": "a", "max_tokens": 240, "temperature": 2, "seed": 0,
                "stream": True, "guided_regex": "[a-z]{240}"}) as response:
            body = response.iter_bytes()
            begun = next(body)
            process.send_signal(signal.SIGTERM)
            assert "SIGTERM" in process.stderr.readline()
            late = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "a"})
            assert late.status_code == 503 and httpx.get(f"{url}/health").status_code == 503
            whole = (begun + b"".join(body)).decode()
        parts = [json.loads(line.removeprefix("data: ")) for line in whole.splitlines()
                 if line.startswith("data: {")]
        assert whole.endswith("data: [DONE]\n\n")
        assert len("".join(part["choices"][0]["text"] for part in parts)) == 240
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert json.loads(out.splitlines()[-1])["tokens"] == 240
    finally:
        process.kill()
        process.communicate()
