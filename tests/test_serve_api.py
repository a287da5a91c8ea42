"""The server, asked by the official client: endpoints, streams, errors; and that no request changes
another one's answer, however they come, end or fail."""

import asyncio
import base64
import dataclasses
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
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
)

from core.artifacts import make_lineage, write_json
from data.chat import ask, render_prompt
from eval.respond.endpoint import EndpointResponder, Retries
from eval.respond.local import make_engine
from model.directory import save_model
from model.families.encoder import encode
from model.families.registry import init
from model.generation.requests import Request
from model.generation.sampling import Sampling
from model.heads.embedding import mean_embedding
from serve.api.embeddings import Encoder
from serve.api.metrics import Metrics
from serve.api.worker import BUDGET

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")



@pytest.fixture(scope="module")
def model(config, execution):
    return make_model(config, execution)


@pytest.fixture(scope="module")
def encoder_folder(config, tmp_path_factory):
    """The directory of an encoder over bytes."""
    folder = tmp_path_factory.mktemp("encoder")
    config = dataclasses.replace(config, V=BYTES.vocab_size, family="encoder",
                                 embed_previous=False)
    BYTES.save(folder / "source")
    save_model(folder, jax.jit(lambda key: init(config, key))(jax.random.key(4)), config,
               folder / "source", chat=False, context_tokens=40)
    write_json(folder / "lineage.json", make_lineage(stage="encoder", config={}, inputs={},
                                                     code=""))
    return folder


@pytest.fixture(scope="module")
def server(model, execution, encoder_folder):
    """The URL of a server of a chat model, a base model and an encoder, and what is served."""
    metrics, how = Metrics(), dict(num_slots=NUM_SLOTS, capacity=CAPACITY, max_queue=40)
    base = dataclasses.replace(model, chat=False)
    workers = {"tiny": make_worker(model, metrics, "tiny", **how),
               "base": make_worker(base, metrics, "base", **how)}
    for worker in workers.values():
        worker.start()
    encoders = {"embed": Encoder(encoder_folder, execution)}
    with serving(workers, encoders, metrics) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def _alone(model, prompt, sampling, **how):
    """The answer of an engine that has nothing else to do."""
    engine = make_engine(model, num_slots=NUM_SLOTS, capacity=CAPACITY, budget=BUDGET)
    [completion] = engine.run([Request(tuple(prompt), sampling, BYTES.stops, **how)])
    return completion


def _name(token):
    """Of a token, as the server writes it."""
    return BYTES.decode([token]) if token < 128 or token > 255 else f"bytes:\\x{token:02x}"


def test_the_models_are_listed(client):
    assert [one.id for one in client.models.list()] == ["tiny", "base", "embed"]
    assert client.models.retrieve("tiny").context_tokens == CAPACITY
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_a_chat_completion_is_the_answer_of_the_engine(client, model):
    prompt = render_prompt(ask("Hello."), BYTES)
    expected = _alone(model, prompt, Sampling(12, temperature=0))
    found = client.chat.completions.create(**GREEDY)
    [choice] = found.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.completion_tokens == len(expected.tokens)
    assert found.system_fingerprint == "tiny@0123" and found.object == "chat.completion"


def test_our_own_client_is_answered(server, client):
    responder = EndpointResponder(f"{server[0]}/v1", "tiny", Sampling(12, temperature=0),
                                  key_variable="", num_connections=2,
                                  retries=Retries(30.0, 0, 0.0))
    replies = responder.respond(["Hello.", "And then?"], seed=0)
    assert replies[0].text == client.chat.completions.create(**GREEDY).choices[0].message.content
    assert replies[0].num_tokens[0] == len(render_prompt(ask("Hello."), BYTES))


@pytest.mark.parametrize("changes", [
    {}, {"temperature": 1.5, "seed": 7, "n": 2}, {"temperature": 1.2, "seed": 3, "top_k": 20},
    {"temperature": 1, "seed": 1, "logprobs": True, "top_logprobs": 3}], ids=str)
def test_a_stream_is_the_same_answer_in_pieces(client, changes):
    extra = {name: changes[name] for name in ("top_k",) if name in changes}
    asked = GREEDY | {k: v for k, v in changes.items() if k not in extra} | {"extra_body": extra}
    whole = client.chat.completions.create(**asked)
    chunks = [*client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True})]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({choice.message.content for choice in whole.choices}) == changes.get("n", 1)
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices
                 if part.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [
            choice.finish_reason]
        if changes.get("logprobs"):
            entries = [one for part in parts if part.logprobs for one in part.logprobs.content]
            assert entries == choice.logprobs.content


@pytest.mark.parametrize("kind, asked", [
    ("chat", GREEDY | {"n": 2}),
    ("text", {"model": "base", "prompt": ["Once", "x"], "echo": True})])
def test_a_stream_counts_tokens_as_it_goes(client, kind, asked):
    create = client.chat.completions.create if kind == "chat" else client.completions.create
    chunks = [*create(**asked, stream=True, stream_options={
        "include_usage": True, "continuous_usage_stats": True})]
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts[0] == 0 and counts == sorted(counts) and len({*counts}) > 3
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {create(**asked).usage.prompt_tokens}
    assert all(chunk.usage.total_tokens == chunk.usage.prompt_tokens + count
               for chunk, count in zip(chunks, counts))
    with pytest.raises(openai.BadRequestError, match="needs include_usage"):
        create(**asked, stream=True, stream_options={"continuous_usage_stats": True})


def test_completions_continue_texts_and_tokens(client, model):
    asked = {"model": "base", "max_tokens": 9, "temperature": 0}
    prompt = (BYTES.bos, *BYTES.encode("Once"))
    expected = _alone(dataclasses.replace(model, chat=False), prompt, Sampling(9, temperature=0))
    found = client.completions.create(prompt=["Once", "x"], **asked)
    assert found.choices[0].text == expected.text and found.choices[1].index == 1
    assert found.usage.prompt_tokens == 5 + 2
    given = client.completions.create(prompt=[*prompt], echo=True, **asked)
    assert given.choices[0].text == "Once" + expected.text
    pieces = client.completions.create(prompt="Once", echo=True, stream=True, **asked)
    assert "".join(part.choices[0].text for part in pieces) == "Once" + expected.text


def test_log_probabilities_are_the_engines(client, model):
    prompt = (BYTES.bos, *BYTES.encode("Once"))
    expected = _alone(model, prompt, Sampling(8, temperature=0))
    [choice] = client.completions.create(model="tiny", prompt="Once", max_tokens=8, temperature=0,
                                         logprobs=3).choices
    found = choice.logprobs
    np.testing.assert_allclose(found.token_logprobs, expected.logps, atol=1e-4)
    for name, logp, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
        assert abs(max(top.values()) - logp) < 1e-5, "greedy: the likeliest is drawn"
        assert name in top and len(top) == 3
    [choice] = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2).choices
    for entry in choice.logprobs.content:
        assert entry.logprob == entry.top_logprobs[0].logprob
        assert entry.bytes == entry.top_logprobs[0].bytes and len(entry.top_logprobs) == 2


def test_a_stop_text_is_never_sent_however_it_is_cut(client):
    asked = {"model": "base", "prompt": "Once", "max_tokens": 30, "temperature": 1.3, "seed": 5}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[4:7]
    for stream in (False, True):
        found = client.completions.create(**asked, stop=[stop, "never"], stream=stream)
        parts = [*found] if stream else [found]
        assert "".join(part.choices[0].text for part in parts) == whole[:whole.index(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_embeddings_are_means_of_states_as_numbers_or_bytes(client, server, encoder_folder):
    texts = ["Hello.", "A longer text than the first", "x"]
    found = client.embeddings.create(model="embed", input=texts)    # in base64
    plain = client.embeddings.create(model="embed", input=texts, encoding_format="float")
    encoder = server[1].encoders["embed"]
    tokens_BL, segment_ids_BL = np.zeros((3, 32), int), np.zeros((3, 32), int)
    for row, text in enumerate(texts):
        tokens = [BYTES.bos, *BYTES.encode(text), BYTES.end]
        tokens_BL[row, :len(tokens)], segment_ids_BL[row, :len(tokens)] = tokens, 1
    x_BLD, _ = jax.jit(partial(encode, config=encoder._config, execution=encoder._execution))(
        encoder._params, tokens_BL, np.tile(np.arange(32), (3, 1)), segment_ids_BL)
    expected_BD = mean_embedding(x_BLD, segment_ids_BL)
    for given in (found, plain):
        np.testing.assert_allclose([one.embedding for one in given.data], expected_BD, atol=1e-5)
    assert found.usage.prompt_tokens == sum(map(len, texts)) + 2 * len(texts)
    raw = httpx.post(f"{server[0]}/v1/embeddings", json={
        "model": "embed", "input": "x", "encoding_format": "base64"}).json()
    assert len(base64.b64decode(raw["data"][0]["embedding"])) == 4 * encoder._config.D
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model="embed", input="x" * 39)
    assert error.value.code == "context_length_exceeded"


def test_json_and_regular_expressions_are_followed(client):
    pytest.importorskip("llguidance")
    asked = GREEDY | {"temperature": 1.5, "max_tokens": 60, "seed": 2}
    schema = {"type": "object", "properties": {"on": {"type": "boolean"},
                                               "size": {"enum": ["small", "large"]}},
              "required": ["on", "size"], "additionalProperties": False}
    found = client.chat.completions.create(**asked, response_format={
        "type": "json_schema", "json_schema": {"name": "lamp", "schema": schema, "strict": True}})
    choice = found.choices[0]
    assert choice.finish_reason == "stop", choice
    assert {*json.loads(choice.message.content)} == {"on", "size"}
    free = client.chat.completions.create(**asked).choices[0].message.content
    with ThreadPoolExecutor(2) as pool:     # beside an answer that is not guided
        other = pool.submit(lambda: client.chat.completions.create(**asked))
        guided = client.chat.completions.create(
            **asked, n=2, extra_body={"guided_regex": "[0-9]{3}-(cat|dog)"})
        assert other.result().choices[0].message.content == free
    for choice in guided.choices:
        assert re.fullmatch("[0-9]{3}-(cat|dog)", choice.message.content)
    trees = client.chat.completions.create(**asked, stream=True, extra_body={
        "guided_regex": "(🌲é){4}"})        # of which each byte is a token
    pieces = [part.choices[0].delta.content or "" for part in trees]
    assert "".join(pieces) == 4 * "🌲é" and len(pieces) > 3
    with pytest.raises(openai.BadRequestError, match="guided_regex is refused"):
        client.chat.completions.create(**GREEDY, extra_body={"guided_regex": "("})


WRONG = [
    (openai.NotFoundError, {"model": "other"}, "model_not_found"),
    (openai.BadRequestError, {"model": "embed"}, "no_language_model"),
    (openai.BadRequestError, {"model": "base"}, "no_chat_model"),
    (openai.BadRequestError, {"max_tokens": CAPACITY}, "context_length_exceeded"),
    (openai.BadRequestError, {"messages": [{"role": "user", "content": "x" * 200}]},
     "context_length_exceeded"),
    (openai.BadRequestError, {"temperature": -1}, "invalid_value"),
    (openai.BadRequestError, {"top_p": 0}, "invalid_value"),
    (openai.BadRequestError, {"n": 60}, "invalid_value"),
    (openai.BadRequestError, {"frequency_penalty": 1}, "unsupported_field"),
    (openai.BadRequestError, {"extra_body": {"best": 2}}, "unsupported_field"),
    (openai.BadRequestError, {"messages": [{"role": "tool", "content": "x"}]}, "invalid_value"),
    (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "f"}}]},
     "invalid_value")]


@pytest.mark.parametrize("kind, changes, code", WRONG, ids=lambda value: str(value)[:40])
def test_errors_are_the_clients_own(client, kind, changes, code):
    with pytest.raises(kind) as error:
        client.chat.completions.create(**GREEDY | changes)
    assert error.value.code == code and error.value.type == "invalid_request_error"


@pytest.mark.parametrize("path, how, status, code", [
    ("/v1/completions", dict(content=b"{"), 400, "invalid_json"),
    ("/v1/completions", dict(content=b'{"model": "\xff"}'), 400, "invalid_utf8"),
    ("/v1/completions", dict(content=b" " * (9 << 20)), 413, "body_too_large"),
    ("/v1/completions", dict(content=(b" " * (1 << 20) for _ in range(9))), 413, "body_too_large"),
    ("/v1/other", {}, 404, "unknown_url"), ("/v1/models", {}, 405, "unknown_url"),
    ("/v1/completions", dict(headers={"Host": "evil.example"}), 403, "unknown_host"),
    ("/v1/completions", dict(headers={"Origin": "http://evil.example"}), 403, "foreign_origin")],
    ids=["no_json", "no_utf8", "declared_size", "chunked_size", "url", "method", "host", "origin"])
def test_what_is_wrong_before_any_field_has_a_status(server, path, how, status, code):
    found = httpx.post(server[0] + path, **how)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)
    assert "access-control-allow-origin" not in found.headers


def _random_body(rng, number):
    prompts = ("Once", "Once upon a time, in a land far away", "x", "Hello there, who are you?")
    return {"model": "tiny", "prompt": rng.choice(prompts), "max_tokens": rng.randint(1, 24),
            "temperature": rng.choice((0, 0, 1.3)), "seed": number % 5,
            "top_p": rng.choice((1, 0.8)), "logprobs": rng.choice((0, 0, 0, 2))}


def test_no_interleaving_changes_an_answer(server, model):
    """Greedy and seeded answers, some streamed, some left midway, are those of each alone."""
    rng = random.Random(0)
    bodies = [_random_body(rng, number) for number in range(24)]

    async def post(http, number, body):
        await asyncio.sleep(0.02 * (number % 7))
        found = await http.post("/v1/completions", json=body)
        return found.json()["choices"][0]["logprobs"]

    async def leave(http, body):
        async with http.stream("POST", "/v1/completions", json=body | {
                "stream": True, "max_tokens": 90}) as response:
            async for _ in response.aiter_bytes():
                break

    async def run():
        async with httpx.AsyncClient(base_url=server[0], timeout=120) as http:
            leavers = [leave(http, body) for body in bodies[::6]]
            return (await asyncio.gather(*(post(http, number, body) for number, body in
                                           enumerate(bodies)), *leavers))[:len(bodies)]

    for body, found in zip(bodies, asyncio.run(run()), strict=True):
        sampling = Sampling(body["max_tokens"], body["temperature"], top_p=body["top_p"])
        expected = _alone(model, (BYTES.bos, *BYTES.encode(body["prompt"])), sampling,
                          seed=body["seed"])
        assert found["tokens"] == [*map(_name, expected.tokens)], body
        np.testing.assert_allclose(found["token_logprobs"], expected.logps, atol=1e-4)
    assert await_idle(server[1])


def test_metrics_count_what_was_asked(server, client):
    def read():
        text = httpx.get(f"{server[0]}/metrics").text
        return {name: float(value) for name, value in (
            line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))}

    client.chat.completions.create(**GREEDY)
    assert await_idle(server[1])
    before = read()
    client.chat.completions.create(**GREEDY)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**GREEDY | {"temperature": -1})
    assert await_idle(server[1])
    after = read()

    def grown(name):
        return after[name] - before.get(name, 0)

    path = 'heartwood_requests_total{path="/v1/chat/completions",status='
    assert grown(path + '"200"}') == grown(path + '"400"}') == 1
    assert grown('heartwood_generated_tokens_total{model="tiny"}') >= 1
    assert grown('heartwood_prefix_cache_tokens_total{model="tiny"}') > 0, "it was asked before"
    assert grown('heartwood_time_to_first_token_seconds_count{model="tiny"}') == 1
    assert after['heartwood_slots{model="tiny"}'] == NUM_SLOTS
    assert after['heartwood_slots_busy{model="tiny"}'] == 0
