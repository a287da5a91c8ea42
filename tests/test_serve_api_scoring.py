"""Echoed prompts with log-probabilities: those of the model itself, however prompts are asked for,
and whatever runs beside them."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
import pytest
from api_server import (
    BYTES,
    GREEDY,
    await_idle,
    make_model,
    make_worker,
    serving,
)

from data.tokenizers.export import hub_files
from eval.measures.continuations import Continuation, score_continuations
from eval.respond.loaded import LoadedModel
from model.families.registry import forward, init
from model.heads.language import logits
from serve.api.metrics import Metrics
from serve.api.scoring import PIECES, Echo, Scorer, _read_piece

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

CAPACITY = 400          # more than a piece
TEXT = "Once upon a time, in a land far away, there lived a very small model. "
LONG = (5 * TEXT)[:PIECES[-1] + 30]
ECHO = {"model": "tiny", "echo": True, "temperature": 0, "max_tokens": 1, "logprobs": 3}


@pytest.fixture(scope="module")
def model(config, execution):
    return dataclasses.replace(make_model(config, execution), context_tokens=CAPACITY)


@pytest.fixture(scope="module")
def server(model):
    metrics = Metrics()
    worker = make_worker(model, metrics, "tiny", num_slots=2, capacity=CAPACITY, max_queue=40)
    worker.start()
    with serving({"tiny": worker}, {}, metrics) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@partial(jax.jit, static_argnames=("config", "execution"))
def _forward_logps(params, tokens_BL, positions_BL, *, config, execution):
    x_BLD = forward(params, tokens_BL, positions_BL, tokens_BL * 0 + 1, config=config,
                    execution=execution)
    return jax.nn.log_softmax(logits(params, x_BLD, config=config, execution=execution))


def _logps(model, tokens):
    """logp_LV of what follows each token, by one forward pass; no token sees the padding."""
    tokens_BL = np.zeros((1, CAPACITY), np.int32)
    tokens_BL[0, :len(tokens)] = tokens
    found_BLV = _forward_logps(model.params, tokens_BL, np.arange(CAPACITY)[None],
                               config=model.config, execution=model.execution)
    return np.asarray(found_BLV)[0, :len(tokens)]


def _check(choice, model, tokens, num_top=3):
    """Of the echoed tokens all numbers are the model's; returns the text that is drawn."""
    expected_LV, found = _logps(model, tokens), choice.logprobs
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    count = len(tokens)
    np.testing.assert_allclose(found.token_logprobs[1:count],
                               expected_LV[np.arange(count - 1), tokens[1:]], atol=1e-4)
    for logp, top, own_V in zip(found.token_logprobs[1:count], found.top_logprobs[1:count],
                                expected_LV):
        np.testing.assert_allclose([*top.values()], np.sort(own_V)[::-1][:num_top], atol=1e-4)
        assert logp <= max(top.values()), "equal numbers where it is the likeliest"
    echoed = BYTES.text_of(tokens)
    assert choice.text.startswith(echoed)
    for name, offset in zip(found.tokens, found.text_offset):
        if not name.startswith(("<|", "bytes:")):
            assert choice.text[offset:].startswith(name)
    assert found.text_offset == sorted(found.text_offset)
    return choice.text[len(echoed):]


@pytest.mark.parametrize("prompt", ["O", TEXT, "🌲é" + TEXT, LONG[:PIECES[0]], LONG], ids=len)
def test_scores_of_prompts_are_the_models_own(client, model, prompt):
    tokens = [BYTES.bos, *BYTES.encode(prompt)]
    [choice] = client.completions.create(prompt=prompt, **ECHO).choices
    drawn = _check(choice, model, tokens)
    [plain] = client.completions.create(prompt=prompt, **ECHO | {"echo": False}).choices
    assert (plain.text, plain.logprobs.tokens) == (drawn, choice.logprobs.tokens[len(tokens):])
    assert plain.logprobs.token_logprobs == choice.logprobs.token_logprobs[len(tokens):]
    [given] = client.completions.create(prompt=tokens, **ECHO).choices
    assert given == choice


def test_the_likeliest_token_has_the_largest_number_exactly(client, model):
    """Programs that look for greedy continuations compare the numbers."""
    tokens = [BYTES.bos, *BYTES.encode("Once")]
    for _ in range(4):
        tokens.append(int(_logps(model, tokens)[-1].argmax()))
    [choice] = client.completions.create(prompt=tokens, **ECHO | {"logprobs": 1}).choices
    found = choice.logprobs
    assert found.token_logprobs[-5:] == [max(top.values()) for top in found.top_logprobs[-5:]]
    assert found.token_logprobs[1:4] != [max(top.values()) for top in found.top_logprobs[1:4]]


def test_a_batch_of_prompts_has_the_scores_of_each(client, model):
    prompts = [[65], [*BYTES.encode(TEXT)], [*BYTES.encode(LONG)], [BYTES.bos, 0xC3]]
    found = client.completions.create(prompt=prompts, **ECHO | {"n": 2})
    assert [choice.index for choice in found.choices] == [*range(8)]
    assert found.usage.prompt_tokens == sum(map(len, prompts))
    for index, choice in enumerate(found.choices):
        _check(choice, model, prompts[index // 2])


def test_nothing_is_drawn_with_a_limit_of_zero(client, model):
    for logprobs, n in ((1, 1), (0, 2), (None, 1)):
        found = client.completions.create(prompt=TEXT, **ECHO | {
            "max_tokens": 0, "logprobs": logprobs, "n": n})
        assert found.usage.completion_tokens == 0
        for choice in found.choices:
            assert (choice.text, choice.finish_reason) == (TEXT, "length")
            if logprobs is None:
                assert choice.logprobs is None
                continue
            assert len(choice.logprobs.tokens) == 1 + len(TEXT)
            assert (choice.logprobs.top_logprobs is None) == (not logprobs)
    whole = [*BYTES.encode((6 * TEXT)[:CAPACITY])]      # all that the context holds
    [choice] = client.completions.create(prompt=whole, **ECHO | {"max_tokens": 0}).choices
    assert _check(choice, model, whole) == ""
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(prompt=whole, **ECHO)
    assert error.value.code == "context_length_exceeded"


def test_a_stream_begins_with_the_prompt_and_its_scores(client):
    asked = ECHO | {"prompt": [TEXT, "x"], "max_tokens": 6, "temperature": 1.3, "seed": 4, "n": 2,
                    "stop": "zz"}
    whole = client.completions.create(**asked)
    chunks = [*client.completions.create(**asked, stream=True,
                                         stream_options={"include_usage": True})]
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[0].text == (TEXT, "x")[choice.index // 2] and len(parts) > 1
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [value for part in parts for value in getattr(part.logprobs, field)
                    ] == getattr(choice.logprobs, field)
        assert parts[-1].finish_reason == choice.finish_reason


def test_nothing_that_runs_beside_it_changes_a_score(client, server):
    prompts = [LONG[n:] for n in (0, 0, 40, 80, 200)]
    alone = [client.completions.create(prompt=one, **ECHO).choices[0] for one in prompts]
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(client.chat.completions.create, **GREEDY | {
            "max_tokens": 40, "temperature": 1, "seed": seed}) for seed in range(6)]
        found = [*pool.map(lambda one: client.completions.create(prompt=one, **ECHO), prompts)]
        assert all(other.result().choices for other in others)
    assert [one.choices[0] for one in found] == alone
    assert await_idle(server[1])


def test_late_and_failed_scores_end_their_answers_alone(client, server, monkeypatch, capfd):
    url, served = server
    body = ECHO | {"prompt": TEXT}
    expected = client.completions.create(**body).choices
    scorer, num_read = served.workers["tiny"]._scorer, []
    read = scorer._read

    def read_slowly(echo):
        if echo.tokens[1:2] == (90,):
            raise ValueError("planted")
        time.sleep(0.3)
        read(echo)
        num_read.append(echo.num_read)

    monkeypatch.setattr(scorer, "_read", read_slowly)
    with ThreadPoolExecutor(4) as pool:
        other = pool.submit(client.completions.create, **body)
        with pytest.raises(openai.InternalServerError) as error:
            client.completions.create(**body | {"prompt": "Zoo"})
        assert error.value.code == "internal_error" and "planted" not in str(error.value)
        with pytest.raises(httpx.ReadTimeout):      # its client leaves
            httpx.post(f"{url}/v1/completions", json=body | {"prompt": LONG}, timeout=0.1)
        assert other.result().choices == expected
    monkeypatch.setattr(served, "request_secs", 0.1)
    with pytest.raises(openai.APIStatusError) as error:
        client.completions.create(**body | {"prompt": LONG})
    assert (error.value.status_code, error.value.code) == (504, "timeout")
    monkeypatch.undo()
    assert await_idle(served) and not scorer.waiting
    assert len(LONG) not in num_read, "nobody waits for the rest"
    assert client.completions.create(**body).choices == expected
    assert "planted" in capfd.readouterr().err


@pytest.mark.parametrize("changes", [
    {"window": 24}, {"family": "lstm", "embed_previous": False}, {"E": 4, "experts_per_token": 2}],
    ids=str)
def test_all_kinds_of_models_are_scored(config, execution, changes):
    config = dataclasses.replace(config, V=BYTES.vocab_size, **changes)
    params = jax.jit(partial(init, config))(jax.random.key(2))
    model = LoadedModel(params, config, execution, BYTES, False, CAPACITY)
    scorer, tokens = Scorer(model, CAPACITY), (BYTES.bos, *BYTES.encode(LONG))
    for prompt in (tokens, tokens[70:]):    # the second one where the first was
        echo = Echo(prompt, 1)
        while not echo.is_over:
            scorer._read(echo)
        expected_LV = _logps(model, prompt)
        np.testing.assert_allclose(
            echo.logps[1:], expected_LV[np.arange(len(prompt) - 1), prompt[1:]], atol=1e-4)


def test_everything_is_compiled_before_the_first_prompt(model):
    scorer = Scorer(model, CAPACITY - 1)
    before = _read_piece._cache_size()
    scorer.warm_up()
    warm = _read_piece._cache_size()
    for tokens in ((1, 2), tuple(BYTES.encode(LONG)), tuple(BYTES.encode(TEXT))):
        echo = Echo(tokens, 1)
        while not echo.is_over:
            scorer._read(echo)
    assert before < warm == _read_piece._cache_size()


@pytest.mark.full
def test_lm_evaluation_harness_measures_what_we_measure(server, model, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("tenacity")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    for name, text in hub_files(BYTES, chat=False, context_tokens=CAPACITY).items():
        (tmp_path / name).write_text(text)
    options = ["red", "blue", "a dark green", "grey"]
    rows = [{"question": f"{TEXT}What is the colour of item {number}? {'Well. ' * (number % 30)}",
             "choices": options, "answer": number % 4} for number in range(20)]
    task = ConfigurableTask(config={
        "task": "colours", "dataset_path": "json", "output_type": "multiple_choice",
        "custom_dataset": lambda **_: datasets.DatasetDict(
            {"test": datasets.Dataset.from_list(rows)}), "test_split": "test",
        "doc_to_text": "{{question}}\nAnswer:", "doc_to_choice": "choices",
        "doc_to_target": "answer", "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]})
    peer = LocalCompletionsAPI(
        base_url=f"{server[0]}/v1/completions", model="tiny", tokenizer_backend="huggingface",
        tokenizer=str(tmp_path), max_length=CAPACITY, batch_size=7, num_concurrent=3)
    found = lm_eval.simple_evaluate(model=peer, tasks=[task], bootstrap_iters=0)
    asked = [[Continuation(tuple(BYTES.encode(row["question"] + "\nAnswer:")),
                           tuple(BYTES.encode(f" {option}"))) for option in options]
             for row in rows]
    scored = score_continuations(model, [one for own in asked for one in own], batch_tokens=4096)
    flat = [resp[0] for sample in sorted(found["samples"]["colours"], key=lambda one: one["doc_id"])
            for resp in sample["resps"]]
    np.testing.assert_allclose([float(logp) for logp, _ in flat],
                               [one.logp_nats for one in scored], atol=1e-3)
    assert [is_greedy in (True, "True") for _, is_greedy in flat] == [
        one.is_greedy for one in scored]
    logps = np.array([one.logp_nats for one in scored]).reshape(len(rows), -1)
    rights = [row["answer"] for row in rows]
    assert found["results"]["colours"]["acc,none"] == np.mean(logps.argmax(1) == rights)
    lengths = np.array([[*map(len, options)]])
    assert found["results"]["colours"]["acc_norm,none"] == np.mean(
        (logps / lengths).argmax(1) == rights)
