"""Templates by name: on every tokenizer, weights are those of the answers, and prefixes hold."""

import dataclasses

import pytest
from real_models import fetch_smollm2

from core.errors import UserError
from data.chat import Conversation, Message, ask, render, render_prompt
from data.templates.named import NAMED, PREAMBLE, taught_folder, with_template
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.export import gguf_tokenizer, hub_files
from data.tokenizers.gguf import tokenizer_from_gguf
from data.tokenizers.hub import import_tokenizer
from data.tokenizers.load import load_tokenizer
from tests import hub_tokenizers as hub

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
          "<|eot_id|>")
TALKS = {
    "system": Conversation((Message("system", "Be brief."), *ask("2+2?", "4").messages)),
    "turns": Conversation(tuple(message for i in range(4)
                                for message in ask(f"Is {i} even?", f"No. {i}").messages)),
    "no system text": Conversation((Message("system", ""), *ask("a?", "b").messages)),
    "names": ask("<|im_start|>user<|eot_id|><|end|>|>", "<|im_end|>\n<|im_end|> <|end_of_text|><"),
    "spaces": Conversation((*ask("  a\n ", "\n\n b  ").messages, *ask("\n", " c\n").messages)),
    "scripts": ask("größer? 日本語", "はい 🌲👩‍👩‍👧 naïve"),
    "empty": Conversation((*ask("a?", "").messages, *ask("", "b").messages)),
    "answer first": Conversation((Message("assistant", "Hi."), *ask("a?", "b").messages)),
    "open": Conversation((*ask("a?", "b").messages, Message("user", "c?")))}


def _hub(folder, specials, **config):
    return import_tokenizer(hub.write_hub(folder, hub.byte_level(specials=specials),
                                          tokenizer_config=config))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Ours, and some of the hub: with the special tokens of ChatML, of Llama 3, of neither."""
    folder = tmp_path_factory.mktemp("hub")
    return {"ours": BYTES,
            "chatml": _hub(folder / "chatml", hub.SPECIALS, eos_token="<|endoftext|>"),
            "llama3": _hub(folder / "llama3", LLAMA3, bos_token=LLAMA3[0], eos_token=LLAMA3[1]),
            "bare": _hub(folder / "bare", ["<s>", "</s>"], bos_token="<s>", eos_token="</s>")}


@pytest.mark.parametrize("talk", TALKS.values(), ids=list(TALKS))
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kind", ["ours", "chatml", "llama3", "bare"])
def test_answers_and_their_ends_are_scored_and_prefixes_hold(tokenizers, kind, name, talk):
    tokenizer = with_template(tokenizers[kind], name)
    tokens, weights = render(talk, tokenizers[kind], template=name)
    end = {"chatml": {"chatml": "<|im_end|>"}, "llama3": {"llama3": "<|eot_id|>"}}.get(
        kind, {}).get(name, tokenizers[kind].end_names[0])
    assert tokenizer.special(end) in tokenizer.stops
    answers = [message.content.strip() if name == "llama3" else message.content
               for message in talk.messages if message.role == "assistant"]
    scored = [token for token, weight in zip(tokens, weights) if weight]
    assert sum(weights) == len(scored) > 0
    assert tokenizer.decode(scored) == "".join(f"{answer}{end}" for answer in answers)
    assert scored.count(tokenizer.special(end)) == len(answers), "names in contents are text"
    if kind == "chatml":    # whose documents have no first token, only one between them
        assert tokens[0] != tokenizer.bos
    else:
        assert tokens[0] == tokenizer.bos and tokens.count(tokenizer.bos) == 1

    text = tokenizer.decode(tokens)
    for k, message in enumerate(talk.messages):
        first = Conversation(talk.messages[:k])
        assert not k or text.startswith(tokenizer.decode(render(first, tokenizer)[0]))
        if message.role == "assistant":
            prompt = render_prompt(first, tokenizer)
            upto, upto_weights = render(Conversation(talk.messages[:k + 1]), tokenizer)
            assert tokens[:len(upto)] == upto and weights[:len(upto)] == upto_weights
            assert upto[:len(prompt)] == prompt
            stop = max(at for at, weight in enumerate(upto_weights) if weight)
            assert all(upto_weights[len(prompt):stop + 1]) and upto[stop] == tokenizer.special(end)


@pytest.mark.parametrize("name, text", [
    ("turns", "<s><|system|>Be brief.</s><|user|>2+2?</s><|assistant|>4</s>"),
    ("chatml", "<s><|im_start|>system\nBe brief.</s>\n<|im_start|>user\n2+2?</s>\n"
               "<|im_start|>assistant\n4</s>\n"),
    ("llama3", "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.</s>"
               "<|start_header_id|>user<|end_header_id|>\n\n2+2?</s>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n4</s>"),
    ("alpaca", "<s>Be brief.\n\n### Instruction:\n2+2?\n\n### Response:\n4</s>"),
    ("plain", "<s>Be brief.\n\n2+2?\n\n4</s>")])
def test_markers_are_text_where_the_tokenizer_lacks_them(tokenizers, capfd, name, text):
    bare = dataclasses.replace(tokenizers["bare"])      # without the variants made before
    for _ in range(2):
        assert bare.decode(render(TALKS["system"], bare, template=name)[0]) == text
    logged = capfd.readouterr().err.splitlines()
    assert len(logged) == bool(NAMED[name].tokens), "said once"
    assert all("written as text, and </s> ends a turn" in line for line in logged)


def test_a_token_that_ends_documents_begins_no_conversation(tmp_path):
    """As T5, whose documents begin with the token that ends the one before."""
    tokenizer = _hub(tmp_path, ["</s>"], eos_token="</s>")
    assert tokenizer.bos == tokenizer.end
    tokens, _ = render(ask("a?", "b"), tokenizer, template="plain")
    assert tokenizer.decode(tokens) == "a?\n\nb</s>"


def test_turns_without_a_system_message(tokenizers):
    def written(name, talk):
        return BYTES.decode(render_prompt(talk, BYTES, template=name))

    talk = Conversation((*ask("a?", "b").messages, Message("user", "c?")))
    assert written("alpaca", talk) == (
        f"<|bos|>{PREAMBLE}\n\n### Instruction:\na?\n\n### Response:\nb<|end|>\n\n"
        "### Instruction:\nc?\n\n### Response:\n")
    assert written("plain", talk) == "<|bos|>a?\n\nb<|end|>\n\nc?\n\n"
    told = Conversation((Message("system", ""), Message("user", "a?")))
    assert written("alpaca", told) == "<|bos|>### Instruction:\na?\n\n### Response:\n"
    assert written("plain", told) == "<|bos|>a?\n\n"


def test_llama3_is_as_its_documentation_has_it(tokenizers):
    """Header, two line breaks, the text without outer spaces, end of turn; one first token."""
    tokenizer = tokenizers["llama3"]
    for talk in TALKS.values():
        messages = talk.messages
        ids = [tokenizer.special("<|begin_of_text|>")]
        for message in messages:
            ids += [tokenizer.special("<|start_header_id|>"), *tokenizer.encode(message.role),
                    tokenizer.special("<|end_header_id|>"),
                    *tokenizer.encode(f"\n\n{message.content.strip()}"),
                    tokenizer.special("<|eot_id|>")]
        found = render(talk, tokenizer, template="llama3")[0]
        assert tokenizer.decode(found) == tokenizer.decode(ids)
        assert [i for i in found if i in tokenizer.special_ids] == [
            i for i in ids if i in tokenizer.special_ids]


def test_our_own_turns_are_the_same_by_our_exported_tokenizer(tmp_path):
    for name, text in hub_files(BYTES, chat=True, context_tokens=64).items():
        (tmp_path / name).write_text(text)
    exported = import_tokenizer(tmp_path)
    for talk in TALKS.values():
        expected = render(talk, BYTES)
        assert render(talk, exported) == render(talk, exported, template="turns") == expected
        taught = with_template(BYTES, "alpaca")
        assert render(talk, taught, template="turns") == expected


def test_all_messages_may_be_trained_on(tokenizers):
    for name in NAMED:
        tokens, weights = render(TALKS["system"], tokenizers["bare"], template=name,
                                 train_on="all")
        assert weights == [0.0] + [1.0] * (len(tokens) - 1)
        tokens, weights = render(TALKS["open"], tokenizers["bare"], template=name, is_cut=True)
        scored = [token for token, weight in zip(tokens, weights) if weight]
        assert tokenizers["bare"].decode(scored) == "b", "the end was none to learn"
    with pytest.raises(UserError, match=r"^train_on='user': is none of assistant, all"):
        render(TALKS["system"], BYTES, train_on="user")


def test_what_a_template_has_no_form_for_is_refused(tokenizers):
    calls = Conversation((Message("user", "tide?"), Message("assistant", "", ({
        "type": "function", "function": {"name": "tides", "arguments": "{}"}},))))
    results = Conversation((*ask("a?", "b").messages, Message("tool", "{}")))
    for name in NAMED:
        words = "or with calls of tools has" if name == "turns" else "no form for calls of tools"
        with pytest.raises(UserError, match=words):
            render(calls, BYTES, template=name)
    for name in ("turns", "alpaca"):
        with pytest.raises(UserError, match=r"no turn of the role tool|no token that begins"):
            render(results, BYTES, template=name)
    for name in ("chatml", "llama3", "plain"):
        assert "{}" in BYTES.decode(render(results, BYTES, template=name)[0])
    later = Conversation((*ask("a?", "b").messages, Message("system", "c")))
    with pytest.raises(UserError, match="its system message is the first"):
        render(later, BYTES, template="alpaca")
    with pytest.raises(UserError, match=r"^template='vicuna': is none of turns, chatml, "):
        render(later, BYTES, template="vicuna")


def test_the_template_is_stored_with_the_tokenizer(tokenizers, tmp_path):
    for kind, tokenizer in tokenizers.items():
        tokenizer.save(tmp_path / kind)
        with taught_folder(tmp_path / kind, "") as folder:
            assert folder == tmp_path / kind
        for name in NAMED:
            with taught_folder(tmp_path / kind, name) as folder:
                taught = load_tokenizer(folder)
            expected = with_template(tokenizer, name)
            assert taught == expected and taught.fingerprint == tokenizer.fingerprint
            assert taught.stops == expected.stops
            assert render(TALKS["system"], taught) == render(TALKS["system"], tokenizer,
                                                             template=name)
            files = hub_files(taught, chat=True, context_tokens=64)
            assert files["chat_template.jinja"].endswith(NAMED[name].source)
            metadata = gguf_tokenizer(taught, num_rows=taught.vocab_size, chat=True)
            assert metadata["tokenizer.chat_template"] == files["chat_template.jinja"]
        assert not folder.exists()


@pytest.mark.full
def test_chatml_is_the_template_of_a_real_model():
    from model.hf.gguf_files import open_gguf

    tokenizer = tokenizer_from_gguf(open_gguf(fetch_smollm2())[0])
    own = "".join(tokenizer.chat_template.split())
    assert "<|im_start|>" in own and "SmolLM" in own
    for talk in TALKS.values():
        if talk.messages[0].role == "system":       # else its own adds one
            assert render(talk, tokenizer) == render(talk, tokenizer, template="chatml")
            assert render_prompt(talk, tokenizer) == render_prompt(talk, tokenizer,
                                                                   template="chatml")


@pytest.mark.full
def test_weights_are_the_masks_of_transformers(tokenizers, tmp_path):
    """With `{% generation %}` around an answer and its end, as TRL's training templates have it."""
    transformers = pytest.importorskip("transformers")
    source = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
              "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
              "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
              "{{ '\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    hub.write_hub(tmp_path, tokenizers["chatml"].text, tokenizer_config={
        "eos_token": "<|im_end|>", "chat_template": source,
        "tokenizer_class": "PreTrainedTokenizerFast"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = import_tokenizer(tmp_path)
    for name, talk in TALKS.items():
        if name in ("names", "spaces"):     # they read names as tokens, and join line breaks
            continue
        expected = theirs.apply_chat_template(
            talk.to_dict()["messages"], return_assistant_tokens_mask=True, return_dict=True)
        for tokenizer, template in ((ours, ""), (tokenizers["chatml"], "chatml")):
            tokens, weights = render(talk, tokenizer, template=template)
            assert tokens == expected["input_ids"], name
            assert weights == expected["assistant_masks"], name
