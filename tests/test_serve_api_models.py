"""What is served under which name: models, their adapters, weights of several kinds, on a mesh;
and in which order requests take turns."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from api_server import BYTES, CAPACITY, GREEDY, make_model, make_worker, serving

from core.artifacts import make_lineage, write_json
from core.errors import UserError
from data.chat import ask, render_prompt
from eval.respond.loaded import only_generating
from eval.respond.local import make_engine
from model.adapters.lora import Lora, abstract_lora, apply_lora, save_lora
from model.directory import save_model
from model.families.registry import forward
from model.generation.requests import Request
from model.generation.sampling import Sampling
from model.heads.language import logits
from model.parallel.sharding import make_mesh, param_shardings
from serve.api.metrics import Metrics
from serve.api.waiting import Waiting
from serve.run import find_adapters, find_kinds, find_mesh

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
LORA, SIZES = Lora(2, 8.0), dict(num_slots=2, capacity=CAPACITY, max_queue=8)


@pytest.fixture(scope="module")
def model(config, execution):
    return make_model(config, execution)


@pytest.fixture(scope="module")
def adapter(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32),
                        abstract_lora(model.config, LORA))


def _answer(model, text="Hello."):
    """The model's own greedy answer to a message."""
    request = Request(tuple(render_prompt(ask(text), BYTES)), Sampling(12, temperature=0),
                      BYTES.stops)
    return make_engine(model, num_slots=1, capacity=CAPACITY).run([request])[0].text


def _logps(model, text):
    """Log-probability of each token of a text but the first, by one forward pass."""
    tokens_1L = jnp.asarray([BYTES.encode(text)])
    places_1L = jnp.arange(tokens_1L.shape[1])[None]
    how = dict(config=model.config, execution=model.execution)
    x_BLD = forward(model.params, tokens_1L, places_1L, jnp.ones_like(tokens_1L), **how)
    logps_LV = jax.nn.log_softmax(logits(model.params, x_BLD, **how)[0])
    return [float(logps_LV[place, token]) for place, token in enumerate(tokens_1L[0, 1:])]


def _ask(url, *names):
    """Answers of models by their names, one after the other, and what tells them apart."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        replies = [client.chat.completions.create(**GREEDY | {"model": name}) for name in names]
        listed = [one.id for one in client.models.list()]
    return [reply.choices[0].message.content for reply in replies], [
        reply.system_fingerprint for reply in replies], listed


def test_an_adapter_is_a_model_with_a_name_of_its_own(model, adapter):
    adapted = dataclasses.replace(model, params=apply_lora(model.params, adapter, LORA))
    expected = [_answer(model), _answer(adapted), _answer(model)]
    assert expected[0] != expected[1]
    metrics = Metrics()
    worker = make_worker(only_generating(model, [(adapter, LORA)]), metrics, "tiny",
                         adapters=["polite"], **SIZES)
    worker.start()
    with serving({"tiny": worker}, {}, metrics) as (url, _):
        found, fingerprints, listed = _ask(url, "tiny", "polite", "tiny")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            echoed = client.completions.create(model="polite", prompt=BYTES.encode("Hello"),
                                               echo=True, logprobs=1, max_tokens=0)
    np.testing.assert_allclose(echoed.choices[0].logprobs.token_logprobs[1:],
                               _logps(adapted, "Hello"), atol=1e-4)
    assert found == expected and listed == ["tiny", "polite"]
    assert fingerprints == ["tiny@0123", "tiny@0123+polite", "tiny@0123"]


@pytest.mark.full
def test_a_sharded_model_answers_as_it_does_on_one_device(model, adapter):
    expected, mesh = _answer(model), make_mesh({"data": 4, "tensor": 2})
    params = jax.device_put(model.params, param_shardings(model.params, mesh))
    with jax.set_mesh(mesh):
        sharded = only_generating(dataclasses.replace(model, params=params), [(adapter, LORA)])
    metrics = Metrics()
    worker = make_worker(sharded, metrics, "tiny", mesh=mesh, adapters=["polite"], **SIZES)
    worker.start()
    with serving({"tiny": worker}, {}, metrics) as (url, _):
        found, _, _ = _ask(url, "tiny", "polite")
    adapted = dataclasses.replace(model, params=apply_lora(model.params, adapter, LORA))
    assert found == [expected, _answer(adapted)]


def test_a_served_model_holds_its_weights_once(model):
    lean = only_generating(model)
    assert lean.weights is lean.params is model.weights


def test_an_adapter_belongs_to_the_model_that_it_was_trained_from(model, adapter, tmp_path):
    folders = {"other": tmp_path / "other", "tiny": tmp_path / "tiny", "copy": tmp_path / "tiny"}
    for name in ("other", "tiny"):
        BYTES.save(tmp_path / "source")
        params = jax.tree.map(lambda leaf, name=name: leaf + (name == "other"), model.params)
        save_model(folders[name], params, model.config, tmp_path / "source", chat=True,
                   context_tokens=40)
        write_json(folders[name] / "lineage.json",
                   make_lineage(stage="sft", config={}, inputs={}, code=""))
    save_lora(tmp_path / "adapter", adapter, LORA, folders["tiny"])
    own = tmp_path / "adapter"
    assert find_adapters([f"polite={own}"], folders) == {
        "other": {}, "tiny": {"polite": own}, "copy": {}}
    for entries, line in (
            ([str(own)], "is not NAME=DIR"), ([f"tiny={own}"], "names tiny a second time"),
            ([f"a={own}", f"a={own}"], "names a a second time"),
            ([f"a={tmp_path}"], "is no adapter")):
        with pytest.raises(UserError, match=line):
            find_adapters(entries, folders)
    with pytest.raises(UserError, match="which no --model has: serve that model too"):
        find_adapters([f"a={own}"], {"other": folders["other"]})


def test_weights_are_of_one_kind_or_of_each_models_own():
    names = ("a", "b")
    assert find_kinds([], names) == {"a": "float32", "b": "float32"}
    assert find_kinds(["int8"], names) == {"a": "int8", "b": "int8"}
    assert find_kinds(["int8", "b=int4"], names) == {"a": "int8", "b": "int4"}
    for entries in (["int3"], ["c=int8"], ["int8", "int4"], ["a=int8", "a=int8"]):
        with pytest.raises(UserError, match=f"--weights={entries[-1]}"):
            find_kinds(entries, names)


def test_a_mesh_has_known_axes_and_all_devices():
    assert find_mesh([]) is None
    assert find_mesh(["data=2", "tensor=-1"]).shape["tensor"] == jax.device_count() // 2
    for entries in (["tensor"], ["tensor=x"], ["width=2"], ["tensor=3"]):
        with pytest.raises(UserError, match="mesh"):
            find_mesh(entries)


def test_requests_take_turns():
    def answers(name, count):
        return [types.SimpleNamespace(name=name, is_over=False) for _ in range(count)]

    waiting = Waiting()
    many, few = answers("many", 4), answers("few", 2)
    for group in (many, few, answers("one", 1)):
        waiting.add(group)
    many[1].is_over = True      # its client is gone
    assert len(waiting) == 7 and waiting.take(0) == []
    assert [one.name for one in waiting.take(4)] == ["many", "few", "one", "few"]
    assert [one.name for one in waiting.take(9)] == ["many", "many"]
    assert not waiting
