"""Our own models and a real one in other programs: tokenizer, chat template, weights, GGUF."""

import dataclasses
import json
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_models import fetch_smollm2

from data.chat import Conversation, Message, render, render_prompt
from data.tokenizers.bpe import train
from data.tokenizers.export import hub_files
from data.tokenizers.gguf import tokenizer_from_gguf
from data.tokenizers.load import load_tokenizer
from data.tokenizers.patterns import SPLITS
from data.tokenizers.recipe import Recipe
from model.config import ModelConfig
from model.directory import load_params, read_description, save_model
from model.execution import Execution
from model.families.registry import forward, init
from model.generation.engine import Engine
from model.generation.requests import Request
from model.generation.sampling import Sampling
from model.generation.weights import unstack
from model.heads.language import logits
from model.hf.export_model import export_model
from model.hf.gguf_files import open_gguf
from model.hf.import_model import import_model

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("default")]   # of the other library

EXECUTION = Execution()
OURS = {"qwen3": {}, "llama": {"qk_norm": False}, "llama tied": {"qk_norm": False, "tied": True},
        "qwen3_moe": {"E": 4}, "mixtral": {"E": 4, "qk_norm": False},
        "llama yarn": {"qk_norm": False, "rope_scaling": "yarn", "rope_factor": 4.0,
                       "rope_context": 16, "rope_high": 32.0},
        "mistral": {"qk_norm": False, "window": 7}}
TEXTS = [
    "", "a", "Hello world!", "  two  spaces\n\n\tand tabs \r\n windows", "12345 and 3.14159",
    "don't WE'LL they'RE 'tis", "Zürich, 東京, Привет мир, مرحبا",
    "\U0001f469\u200d\U0001f467",
    "\u017f'\u017f'S", "def f(x):\n    return x ** 2  # \u00a0nbsp\u2003em", "a" * 300, "<|user|>",
    "\u0301e\u0301", "x" + " " * 50 + "y\n\n\n   \n z", "the quick brown fox; it's \"quoted\""]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of ours with merges."""
    rng = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "it's", "12", "Zürich", "東京", "return", "  ",
             "hello", "world", "Привет", "\n\n", "tokens", "tokenizer", "ation", "they'll"]
    return train([" ".join(rng.choice(words, 200)) for _ in range(50)] + TEXTS * 5, Recipe(400))


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """Model directories of ours, by the changes to a config, with a padded vocabulary."""
    tokenizer.save(tmp_path_factory.getbasetemp() / "tokenizer")

    def make(folder, **changes):
        config = ModelConfig(V=tokenizer.vocab_size + 8, D=32, N=3, H=4, G=2, K=8, F=64)
        config = dataclasses.replace(config, **changes)
        params = jax.tree.map(lambda w: w + 0.2 * jax.random.normal(jax.random.key(7), w.shape),
                              init(config, jax.random.key(0)))
        save_model(folder, params, config, tmp_path_factory.getbasetemp() / "tokenizer",
                   chat=True, context_tokens=64)
        return config, params
    return make


def _logits(params, config, tokens_BL):
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape)
    x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(positions_BL), config=config,
                    execution=EXECUTION)
    return logits(params, x_BLD, config=config, execution=EXECUTION)


def _theirs(model, tokens_BL):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(tokens_BL)).logits.float().numpy()


@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_gives_its_logits_in_transformers(name, model, tmp_path):
    config, params = model(tmp_path / "model", **OURS[name])
    export_model(tmp_path / "model", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["model_type"] == name.split()[0]
    assert described["max_position_embeddings"] == 64
    tokens_BL = np.random.default_rng(0).integers(0, config.V, (2, 40))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out",
                                                               attn_implementation="eager")
    assert theirs.config.eos_token_id == load_tokenizer(tmp_path / "model").end
    np.testing.assert_allclose(_logits(params, config, tokens_BL), _theirs(theirs, tokens_BL),
                               atol=2e-4)


def test_our_tokenizer_gives_the_same_ids_in_transformers(tokenizer, tmp_path):
    for file, text in hub_files(tokenizer, chat=True, context_tokens=64).items():
        (tmp_path / file).write_text(text)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos, tokenizer.end)
    for text in TEXTS:
        if "<|" in text:    # they read the name of a special token as the token
            continue
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text), text
        assert theirs(text).input_ids == [tokenizer.bos, *tokenizer.encode(text)], text
        assert theirs.decode(tokenizer.encode(text)) == text
    messages = [("system", "Be brief."), ("user", "Who's there?"), ("assistant", "It's me.")]
    conversation = Conversation(tuple(Message(*message) for message in messages))
    plain = [dataclasses.asdict(message) for message in conversation.messages]
    assert theirs.apply_chat_template(plain, return_dict=False) == render(
        conversation, tokenizer)[0]
    assert theirs.apply_chat_template(
        plain[:2], add_generation_prompt=True, return_dict=False) == render_prompt(
        Conversation(conversation.messages[:2]), tokenizer)


def test_our_split_is_that_of_qwen2():
    """It has a name in llama.cpp."""
    import regex

    rng, letters = np.random.default_rng(0), "aé東1 \n\r\t'sSdDlLrReEvVſ.,-\u00a0\u0301"
    for _ in range(3000):
        text = "".join(rng.choice(list(letters), 30))
        assert regex.findall(SPLITS["heartwood"], text) == regex.findall(SPLITS["qwen"], text)


@pytest.mark.parametrize("dtype, atol", [("float32", 2e-4), ("float16", 2e-2), ("q8_0", 0.5)])
@pytest.mark.parametrize("name", ["llama", "llama tied", "qwen3", "qwen3_moe"])
def test_a_gguf_file_gives_our_logits_in_transformers(name, dtype, atol, model, tokenizer,
                                                      tmp_path):
    # Their loader gives every Qwen3 heads of 128 and experts of 768, whatever the file says.
    changes = OURS[name] | ({"K": 128} if "qwen3" in name else {}) | (
        {"F": 768} if "moe" in name else {})
    config, params = model(tmp_path / "model", **changes)
    export_model(tmp_path / "model", tmp_path / "out", dtype=dtype, format="gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", attn_implementation="eager",
        dtype="float32")
    tokens_BL = np.random.default_rng(0).integers(0, config.V, (2, 40))
    theirs_BLV = _theirs(theirs, tokens_BL)
    if not config.E or dtype == "float32":      # a rounded router sends some tokens elsewhere
        np.testing.assert_allclose(_logits(params, config, tokens_BL), theirs_BLV, atol=atol)
    import_model(tmp_path / "out", tmp_path / "again")
    described = read_description(tmp_path / "again")
    assert described.config == config and described.context_tokens == 64
    own_BLV = _logits(load_params(tmp_path / "again", config), config, tokens_BL)
    np.testing.assert_allclose(own_BLV, theirs_BLV, atol=2e-4)
    metadata, _ = open_gguf(tmp_path / "out" / "model.gguf")
    again = tokenizer_from_gguf(metadata)
    for text in TEXTS:      # Qwen2's own files compose letters and accents, and so does our reader
        assert again.encode(text) == tokenizer.encode(unicodedata.normalize("NFC", text)), text


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2: the file, its model directory, and transformers' model of the same file."""
    file, folder = fetch_smollm2(), tmp_path_factory.mktemp("smollm2")
    import_model(file, folder / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, attn_implementation="eager", dtype="float32")
    return file, folder, theirs.eval()


@pytest.fixture
def optimised():
    """Programs are optimised, which other tests do without, as their models are tiny."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


QUESTIONS = ["What is gravity? Answer in one sentence.", "Name three primary colours.",
             "Write a haiku about the sea.", "Who wrote Hamlet?",
             "Explain in two sentences how bread is made."]


def test_a_real_model_has_the_logits_and_answers_of_transformers(smollm2, optimised):
    import torch

    _, folder, theirs = smollm2
    described, own = read_description(folder / "model"), load_tokenizer(folder / "model")
    assert described.chat and described.context_tokens == 8192
    config, params = described.config, load_params(folder / "model", described.config)
    prompts = [render_prompt(Conversation((Message("user", question),)), own)
               for question in QUESTIONS]
    lengths_B = np.array([len(prompt) for prompt in prompts])
    tokens_BL = np.zeros((len(prompts), max(lengths_B)), int)
    for row, prompt in zip(tokens_BL, prompts):
        row[:len(prompt)] = prompt
    ours_BLV = jax.jit(_logits, static_argnums=1)(params, config, tokens_BL)
    engine = Engine(unstack(params, EXECUTION), config, EXECUTION, num_slots=len(prompts),
                    capacity=256)
    greedy = Sampling(max_new_tokens=64, temperature=0)
    done = engine.run([Request(tuple(prompt), greedy, own.stops) for prompt in prompts])
    for i, prompt in enumerate(prompts):
        theirs_BLV = _theirs(theirs, np.array([prompt]))
        difference = np.abs(ours_BLV[i, :len(prompt)] - theirs_BLV[0]).max()
        print(f"{QUESTIONS[i]}: {difference:.1e} of {np.abs(theirs_BLV).max():.0f}")
        assert difference <= 1e-3
        with torch.no_grad():
            answer = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones((1, len(prompt)), dtype=int),
                do_sample=False, max_new_tokens=64, eos_token_id=list(own.stops), pad_token_id=0)
        np.testing.assert_array_equal(done[i].tokens, answer[0, len(prompt):].numpy())


def test_twenty_prompts_in_one_batch_have_the_greedy_tokens_of_transformers(smollm2, optimised):
    """Each token of an answer is transformers' most likely one after those before it."""
    _, folder, theirs = smollm2
    own, config = load_tokenizer(folder / "model"), read_description(folder / "model").config
    text = "\n\n".join(filter(None, [*QUESTIONS, *TEXTS])) * 3
    prompts = [tuple(own.encode(text)[7 * i:][:5 + 13 * i]) for i in range(20)]
    engine = Engine(unstack(load_params(folder / "model", config), EXECUTION), config, EXECUTION,
                    num_slots=len(prompts), capacity=384)
    answers = engine.run([Request(prompt, Sampling(64, temperature=0)) for prompt in prompts])
    assert engine.counts["drawn"] == 20 * 64 and len(set(map(len, prompts))) == 20
    for prompt, answer in zip(prompts, answers):
        logits_BLV = _theirs(theirs, np.array([[*prompt, *answer.tokens[:-1]]]))
        np.testing.assert_array_equal(answer.tokens,
                                      logits_BLV[0, len(prompt) - 1:].argmax(axis=-1))


def test_a_real_model_goes_out_as_it_came(smollm2):
    file, folder, theirs = smollm2
    export_model(folder / "model", folder / "hub")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "hub",
                                                              attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hub")
    own = load_tokenizer(folder / "model")
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == own.encode(text) or "<|" in text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": QUESTIONS[0]}],
                                           add_generation_prompt=True, return_dict=False)
    assert prompt == render_prompt(Conversation((Message("user", QUESTIONS[0]),)), own)
    np.testing.assert_allclose(_theirs(again, np.array([prompt])),
                               _theirs(theirs, np.array([prompt])), atol=1e-5)
    export_model(folder / "model", folder / "gguf", dtype="float16", format="gguf")
    before, after = open_gguf(file)[0], open_gguf(folder / "gguf" / "model.gguf")[0]
    for key in ("tokens", "merges", "pre", "token_type", "bos_token_id", "eos_token_id"):
        assert after[f"tokenizer.ggml.{key}"] == before[f"tokenizer.ggml.{key}"], key
    for key in ("embedding_length", "rope.freq_base", "attention.layer_norm_rms_epsilon"):
        assert after[f"llama.{key}"] == before[f"llama.{key}"], key
    assert after["tokenizer.chat_template"] == before["tokenizer.chat_template"]
