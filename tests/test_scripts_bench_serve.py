"""The benchmark of the server: what its clients time, what is made of it, and how it is watched."""

import asyncio
import http.server
import json
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from api_server import BYTES, CAPACITY, NUM_SLOTS, make_model, make_worker, serving, serving_model

from core.artifacts import ROOT, make_lineage, write_json
from core.errors import UserError
from model.directory import save_model
from scripts.bench import serve_soak
from scripts.bench.serve import make_bodies, time_server
from scripts.bench.serve_load import LEFT, Timing, percentiles, send, send_all, summarise
from scripts.bench.serve_process import Command, Started, find_program, memory_bytes, started
from scripts.bench.serve_soak import (
    KINDS,
    WRONG,
    count_outcomes,
    fit_growth,
    is_clean,
    make_request,
    soak,
)
from serve.api.metrics import Metrics

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def model(config, execution):
    return make_model(config, execution)


def write_model(model, folder):
    """Writes a model directory."""
    BYTES.save(folder.with_name("source"))
    folder.mkdir()
    save_model(folder, model.params, model.config, folder.with_name("source"), chat=True,
               context_tokens=CAPACITY)
    write_json(folder / "lineage.json", make_lineage(stage="x", config={}, inputs={}, code=""))


def test_clients_time_streams_and_count_what_fails(model):
    bodies = [body | {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
              for body in make_bodies(5, num_tokens=6)]
    with serving_model(model) as (url, _):
        timings, secs = asyncio.run(send_all(url, bodies, concurrency=2))
        unknown = asyncio.run(send(url, bodies[0] | {"model": "other"}))
        whole = asyncio.run(send(url, {
            name: value for name, value in bodies[0].items() if "stream" not in name}))
        left = asyncio.run(send(url, bodies[0], leaves=True))
    assert len(timings) == 5 and not any(timing.fault for timing in timings)
    assert {timing.num_tokens for timing in timings} <= {*range(1, 7)}
    for timing in timings:
        assert 0 < timing.first_secs <= timing.secs < secs
    assert whole[2:] == timings[0][2:] and whole.num_prompt_tokens > 2
    assert unknown.fault == "status_404" and left.fault == LEFT
    assert asyncio.run(send(url, bodies[0])).fault == "ConnectionRefusedError"


# A server of streams that counts no tokens, as llama-cpp-python's; the second answer breaks off.
STREAMS = '''
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    count = 0
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Handler.count += 1
        self.send_response(200)
        self.end_headers()
        for delta in ('{"role": "assistant"}', '{"content": "a"}', '{"content": "b"}', '{}'):
            self.wfile.write(b'data: {"choices": [{"delta": %s}]}\\n' % delta.encode())
        if Handler.count != 2:
            self.wfile.write(b"data: [DONE]\\n")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''


def test_a_server_is_started_and_its_pieces_are_counted(tmp_path):
    command = Command([sys.executable, "-c", STREAMS, "{port}"], "/", tmp_path)
    found = time_server(command, make_bodies(4, num_tokens=6), concurrency=2)
    assert found["requests"] == 4 and found["faults"] == {"broken_off": 1}
    assert found["tokens"] == 2 * 3 and found["ready_secs"] > 0
    assert found["first_token_secs"]["p99"] > 0


def test_a_server_that_does_not_start_says_why(tmp_path):
    failing = Command([sys.executable, "-c", "raise SystemExit('no such model')"], "/", tmp_path)
    with pytest.raises(UserError, match="no such model"), started(failing):
        pass
    with pytest.raises(UserError, match="--llama_server=/nowhere: is no program"):
        find_program("llama_server", "/nowhere")


def test_figures_are_of_what_went_well():
    found = summarise([Timing(1.0, 3.0, 5, "", 7), Timing(2.0, 2.0, 1, "", 7),
                       Timing(0.0, 9.0, 0, "status_429")], secs=4.0)
    assert found["tokens"] == 6 and found["tokens_per_sec"] == 1.5 and found["prompt_tokens"] == 14
    assert found["faults"] == {"status_429": 1} and found["requests"] == 3
    assert found["first_token_secs"]["p50"] == 1.5
    assert found["between_tokens_secs"] == {"p50": 0.5, "p99": 0.5}
    assert percentiles([]) == {"p50": None, "p99": None}
    assert percentiles(np.array([1.0, 3.0]))["p50"] == 2.0


def test_a_soak_sends_every_kind_and_finds_each_outcome(model):
    metrics = Metrics()
    worker = make_worker(model, metrics, "bench", num_slots=NUM_SLOTS, capacity=CAPACITY,
                         max_queue=64)
    worker.start()
    with serving({"bench": worker}, {}, metrics) as (url, _):
        found = soak(Started(url, os.getpid(), 0.0), 60, concurrency=4)
    assert found["kinds"] == dict.fromkeys(KINDS, 6) and found["unexpected"] == {}
    assert found["is_clean"] and found["busy_or_waiting"] == 0
    assert found["statuses"]["400"] == found["statuses"]["404"] == 6
    assert [count for count, _ in found["memory_bytes"]] == [*range(3, 61, 3)]
    assert len(found["open_files"]) == 20 and memory_bytes(os.getpid()) > 1 << 20


def test_what_a_server_does_wrong_is_found(monkeypatch):
    class Broken(http.server.BaseHTTPRequestHandler):
        """Answers nothing well, and never frees a slot."""

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'heartwood_slots_busy{model="bench"} 1\n'
                             b'heartwood_queue_length{model="bench"} 2\n'
                             b'heartwood_requests_total{path="/v1/chat/completions",status="500"} 2'
                             b"\n")

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(serve_soak, "IDLE_SECS", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        found = soak(Started(f"http://127.0.0.1:{server.server_port}", os.getpid(), 0.0), 20, 2)
        server.shutdown()
    assert found["busy_or_waiting"] == 3 and found["statuses"] == {"500": 2}
    assert found["unexpected"]["streamed: status_500"] == 2
    assert found["unexpected"]["wrong: status_500"] == 2
    assert not found["is_clean"]
    clean = {"unexpected": {}, "busy_or_waiting": 0, "statuses": {"200": 3, "499": 1}}
    assert is_clean(clean)
    for name, value in (("unexpected", {"whole: status_429": 1}), ("busy_or_waiting", 1),
                        ("statuses", {"500": 1})):
        assert not is_clean(clean | {name: value})


@pytest.mark.full
def test_a_soak_ends_with_its_figures(model, tmp_path):
    """In processes of their own."""
    write_model(model, tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.serve", f"--model={tmp_path / 'tiny'}",
         "--concurrency=2", "--soak=20"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["soak"]
    assert found["is_clean"] and found["requests"] == 20 and "MiB" in done.stderr


def test_growth_is_fitted_without_the_first_tenth():
    steady = [(place, 99 * place) for place in range(1, 1000, 9)]
    steady += [(place, 4 * place + 7) for place in range(1000, 10001, 500)]
    assert fit_growth(steady) == {"growth_bytes_per_1000": 4000, "growth_interval": [4000, 4000]}
    noise = random.Random(0)
    flat = [(place, noise.randrange(1000)) for place in range(500, 10001, 500)]
    low, high = fit_growth(flat)["growth_interval"]
    assert low < 0 < high


def test_requests_differ_and_outcomes_are_counted():
    made = [make_request(place) for place in range(40)]
    assert len({body["messages"][0]["content"] for name, body in made if name != "wrong"}) == 36
    assert made == [make_request(place) for place in range(40)]
    wrong = [body for name, body in map(make_request, range(1000)) if name == "wrong"]
    assert all(any(body.items() >= changes.items() for body in wrong) for changes in WRONG)
    found = count_outcomes(["whole", "wrong", "whole"],
                           [Timing(1, 1, 1), Timing(1, 1, 1), Timing(1, 1, 0, "status_500")])
    assert found["unexpected"] == {"wrong: answered": 1, "whole: status_500": 1}
