"""The benchmark of the server: what its clients time, and what is made of it."""

import asyncio

import numpy as np
import pytest
from api_server import make_model, serving_model

from scripts.bench.serve import make_bodies, make_short_bodies
from scripts.bench.serve_load import Timing, percentiles, send, send_all, summarise

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


def test_clients_time_streams_and_count_what_fails(config, execution):
    bodies = [body | {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
              for body in make_bodies(5, num_tokens=6)]
    with serving_model(make_model(config, execution)) as (url, _):
        timings, secs = asyncio.run(send_all(url, bodies, concurrency=2))
        unknown = asyncio.run(send(url, bodies[0] | {"model": "other"}))
    assert len(timings) == 5 and not any(timing.fault for timing in timings)
    assert {timing.num_tokens for timing in timings} <= {*range(1, 7)}
    for timing in timings:
        assert 0 < timing.first_secs <= timing.secs < secs
    assert unknown.fault == "status_404"
    assert asyncio.run(send(url, bodies[0])).fault == "ConnectionRefusedError"


def test_figures_are_of_what_went_well():
    found = summarise([Timing(1.0, 3.0, 5), Timing(2.0, 2.0, 1), Timing(0.0, 9.0, 0, "status_429")],
                      secs=4.0)
    assert found["tokens"] == 6 and found["tokens_per_sec"] == 1.5
    assert found["faults"] == {"status_429": 1} and found["requests"] == 3
    assert found["first_token_secs"]["p50"] == 1.5
    assert found["between_tokens_secs"] == {"p50": 0.5, "p99": 0.5}
    assert percentiles([]) == {"p50": None, "p99": None}
    assert percentiles(np.array([1.0, 3.0]))["p50"] == 2.0


def test_short_requests_differ():
    bodies = make_short_bodies(3)
    assert len({body["messages"][0]["content"] for body in bodies}) == 3
    assert all(body["max_tokens"] == 4 and body["stream"] for body in bodies)
