"""Synthetic documents from a server on loopback: filters, refusals, retries, resumption."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from chat_server import serve
from ml_collections import ConfigDict

from align.synthesize import build, choose_documents
from align.synthetic.filters import judge
from align.synthetic.prompts import STYLES, format_pairs, parse_pairs, split_passages
from core.artifacts import LAYOUT, ROOT, write_json
from core.errors import UserError
from data.documents import Document, read_documents, write_documents
from data.filters.language import identify
from data.readers.read import read
from data.readers.units import plan
from data.tokenizers.bpe import BytePairTokenizer
from eval.respond.endpoint import EndpointResponder, Retries
from eval.respond.loaded import load_model
from eval.respond.local import LocalResponder
from model.directory import save_model
from model.execution import Execution
from model.generation.sampling import Sampling

TEXT = ("the river carried old wooden boats past quiet villages where people waited for letters "
        "and news from towns that nobody there had ever seen because roads were long and winter "
        "came early to those hills every single year of their lives")
WORDS = TEXT.split()
BOUNDS = {"min_words": 12, "max_repeated_frac": 0.3, "max_copied_frac": 0.5}


def make_text(number, num_words=60):
    """English words in an order that depends on `number`."""
    return " ".join(WORDS[(number * 7 + at * (number % 5 + 2)) % len(WORDS)] + ("." * (at % 9 == 8))
                    for at in range(num_words))


def turn_around(prompt):
    """A model: the passage's words in reverse, as a question and answer if requested."""
    words = prompt.partition("Text:\n")[2].split()[::-1]
    if "Question:" in prompt:
        return f"Question: what of {' '.join(words[:8])}?\nAnswer: {' '.join(words[8:])}"
    return " ".join(words)


@pytest.fixture
def server(monkeypatch):
    yield from serve(monkeypatch, turn_around)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    documents = [Document(f"id{number:02d}", make_text(number), f"http://x.org/{number}",
                          "pages" if number % 3 else "code", "en") for number in range(30)]
    write_documents(folder / "documents" / "00000.parquet", documents)
    return folder


def make_config(url, **changes):
    section = dict(
        out="synthetic", corpus="corpus", model="", endpoint=url, endpoint_model="tiny",
        key_variable="", domains=("pages",), num_documents=0, styles=("encyclopedic", "pairs"),
        passage_words=40, min_passage_words=20, max_frac=2.0, max_new_tokens=64, temperature=0.7,
        top_p=1.0, chunk_prompts=6, filters=dict(BOUNDS), seed=0, compute_dtype="float32",
        matmul="compute", run=dict(batch_size=4, num_connections=3, timeout_secs=5.0,
                                   max_retries=2, backoff_secs=0.001, prompt_price=0.5,
                                   answer_price=2.0))
    section["run"] |= {name: changes.pop(name) for name in list(changes) if name in section["run"]}
    return ConfigDict(dict(synthesize=section | changes))


def run(config, corpus, folder):
    folder.mkdir(exist_ok=True)
    return build(config, {"corpus": corpus}, folder)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_answers_become_documents_that_curation_can_read(server, corpus, tmp_path):
    metrics = run(make_config(server.url), corpus, tmp_path / "out")
    documents = list(read_documents(tmp_path / "out" / "documents"))
    sources = {document.id: document for document in read_documents(corpus / "documents")}
    assert metrics["documents"] == len(documents) == 80, "20 pages, 2 passages, 2 styles"
    assert metrics["asked"] == len(server.requests) == 80
    assert metrics["by_style"] == {"encyclopedic": 40, "pairs": 40}
    assert len({document.id for document in documents}) == 80
    for document in documents:
        source = sources[document.source]
        assert (document.domain, document.language, source.domain) == ("synthetic", "en", "pages")
        assert document.meta["model"] == "tiny"
        assert document.meta["prompt"] == STYLES[document.meta["style"]].prompt_id
        if document.meta["style"] == "encyclopedic":
            passage = list(split_passages(source.text, 40))[document.meta["passage"]]
            assert document.text.split() == passage.split()[::-1]
    (path,) = (tmp_path / "out" / "documents").glob("*.parquet")
    records = [record for unit in plan([str(path)], 1 << 30) for record in read(unit)]
    assert [record.domain for record in records] == ["synthetic"] * 80
    assert not (tmp_path / "out" / "work").exists()


def test_tokens_and_cost_are_those_that_the_server_counts(server, corpus, tmp_path):
    server.reply = lambda prompt, number: server.completion(
        turn_around(prompt), usage={"prompt_tokens": 1000, "completion_tokens": 200}
        if number > 5 else None)
    metrics = run(make_config(server.url), corpus, tmp_path / "out")
    assert metrics["usage"] == {"requests": 80, "prompt_tokens": 75_000, "answer_tokens": 15_000,
                                "uncounted": 5}
    assert metrics["cost"] == pytest.approx(0.075 * 0.5 + 0.015 * 2.0)


def test_the_order_of_replies_does_not_matter(server, corpus, tmp_path):
    run(make_config(server.url), corpus, tmp_path / "one")

    def slowly(prompt, number):
        time.sleep(0.01 * (number * 7 % 3))
        return server.completion(turn_around(prompt))
    server.reply = slowly
    run(make_config(server.url, num_connections=6), corpus, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    seeds = [{prompt: body["seed"] for prompt, body, _ in half}
             for half in (server.requests[:80], server.requests[80:])]
    assert seeds[0] == seeds[1] and len(set(seeds[0].values())) == 80


def test_a_killed_run_repeats_one_chunk_with_equal_results(server, corpus, tmp_path):
    run(make_config(server.url), corpus, tmp_path / "whole")
    server.requests.clear()
    reached = threading.Event()

    def hang(prompt, number):
        if number > 20:     # in the fourth chunk of six
            reached.set()
            time.sleep(30 if server.reply is hang else 0)
        return server.completion(turn_around(prompt))
    server.reply = hang
    config, folder = make_config(server.url, timeout_secs=60.0), tmp_path / "killed"
    folder.mkdir()
    code = ("import json, sys, pathlib; from ml_collections import ConfigDict\n"
            "from align.synthesize import build\n"
            "config, corpus, folder = json.loads(sys.argv[1])\n"
            "build(ConfigDict(config), {'corpus': pathlib.Path(corpus)}, pathlib.Path(folder))\n")
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(
        [config.to_dict(), str(corpus), str(folder)])], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(folder.glob("work/*.json"))) == 3
    server.requests.clear()
    server.reply = lambda prompt, number: server.completion(turn_around(prompt))
    run(config, corpus, folder)
    assert len(server.requests) == 80 - 18
    assert content(folder) == content(tmp_path / "whole")


def test_the_share_is_capped_and_no_more_prompts_are_sent(server, corpus, tmp_path):
    corpus_bytes = sum(len(d.text.encode()) for d in read_documents(corpus / "documents"))
    metrics = run(make_config(server.url, max_frac=0.2), corpus, tmp_path / "out")
    assert 0.15 < metrics["frac"] <= 0.2
    assert metrics["bytes"] == sum(len(d.text.encode()) for d in
                                   read_documents(tmp_path / "out" / "documents"))
    assert metrics["bytes"] <= 0.2 * corpus_bytes
    assert metrics["asked"] == len(server.requests) < 80
    assert metrics["removed"]["over_cap"] == metrics["asked"] - metrics["documents"]


def test_every_removed_answer_is_kept_with_its_reason(server, corpus, tmp_path):
    def reply(prompt, number):
        if number == 1:
            return server.completion("I'm sorry, but I cannot help with that.")
        if number == 2:
            return server.completion(prompt.partition("Text:\n")[2])
        if number == 3:
            return server.completion(turn_around(prompt), "length")
        if number == 4:
            return 400, b'{"error": "context too long"}', {}
        return server.completion("Once more " + turn_around(server.requests[4][0])
                                 if number in (6, 7) else turn_around(prompt))
    server.reply = reply
    config = make_config(server.url, styles=("simple",), num_connections=1)
    metrics = run(config, corpus, tmp_path / "out")
    assert metrics["removed"] == {"refusal": 1, "copy": 1, "truncated": 1, "rejected_400": 1,
                                  "duplicate": 1}
    assert metrics["documents"] == 40 - 5
    removed = list(read_documents(tmp_path / "out" / "removed"))
    assert [d.meta["reason"] for d in removed] == [
        "refusal", "copy", "truncated", "rejected_400", "duplicate"]
    assert removed[1].meta["score"] == 1.0


def test_documents_are_drawn_by_hash(corpus):
    some, corpus_bytes = choose_documents(corpus / "documents", (), 5, seed=0)
    every, _ = choose_documents(corpus / "documents", (), 0, seed=0)
    other, _ = choose_documents(corpus / "documents", ("code",), 5, seed=1)
    assert some == every[:5] and len(every) == 30
    assert corpus_bytes == sum(len(document.text.encode()) for document in every)
    assert {document.domain for document in other} == {"code"} and other != some


# --- failures of the endpoint ---------------------------------------------------------------

def ask_endpoint(server, prompts=("hello",), **changes):
    retries = dict(timeout_secs=5.0, max_retries=2, backoff_secs=0.001)
    retries |= {name: changes.pop(name) for name in Retries._fields if name in changes}
    options = dict(key_variable="", num_connections=1, retries=Retries(**retries)) | changes
    return EndpointResponder(server.url, "tiny", Sampling(8), **options).respond(prompts, 0)


@pytest.mark.parametrize("fault", [
    (429, b"slow down", {"Retry-After": "0"}), (500, b"", {}), (503, b"busy", {}),
    (200, b"<html>", {}), (200, b'{"choices": []}', {}), (200, b"[1]", {}),
    (200, b'{"choices": [{"message": {"content": 7}}]}', {}), (200, b"\xff\xfe", {}),
    (200, b"short", {"Content-Length": "50"})], ids=repr)
def test_transient_faults_are_retried_and_reported_in_one_line(server, fault):
    server.reply = lambda prompt, number: fault if number < 3 else server.completion("fine")
    assert [reply.text for reply in ask_endpoint(server)] == ["fine"]
    assert len(server.requests) == 3
    server.requests.clear()
    server.reply = lambda prompt, number: fault
    with pytest.raises(UserError, match=r"endpoint='http.*attempt 3 of 3") as caught:
        ask_endpoint(server)
    assert len(server.requests) == 3 and "\n" not in str(caught.value)


def test_timeouts_and_refused_connections_are_one_line(server):
    gate = threading.Event()

    def hang(prompt, number):
        gate.wait(10)
        return server.completion("late")
    server.reply = hang
    with pytest.raises(UserError, match=r"is silent for 0\.05 s, attempt 2 of 2"):
        ask_endpoint(server, timeout_secs=0.05, max_retries=1)
    gate.set()
    server.url = "http://127.0.0.1:1/v1"
    with pytest.raises(UserError, match=r"cannot be reached .*attempt 1 of 1"):
        ask_endpoint(server, max_retries=0)


def test_pauses_double_and_respect_retry_after(server, monkeypatch):
    pauses = []
    monkeypatch.setattr("eval.respond.endpoint.time.sleep", pauses.append)
    headers = {3: {"Retry-After": "7"}, 4: {"Retry-After": "9999"}}
    server.reply = lambda prompt, number: (429, b"", headers.get(number, {}))
    with pytest.raises(UserError, match="answers 429"):
        ask_endpoint(server, max_retries=4, backoff_secs=0.5)
    assert pauses == [0.5, 1.0, 7.0, 60.0]


def test_the_key_is_sent_and_never_printed(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-123")
    ask_endpoint(server, key_variable="MY_KEY")
    assert server.requests[0][2] == "Bearer secret-123"
    server.reply = lambda prompt, number: (401, b"bad key secret-123\nsorry", {})
    with pytest.raises(UserError, match="answers 401: bad key <key> sorry") as caught:
        ask_endpoint(server, key_variable="MY_KEY")
    assert "secret" not in str(caught.value) and len(server.requests) == 2
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(UserError, match=r"key_variable='MY_KEY': .* holds no key") as caught:
        ask_endpoint(server, key_variable="MY_KEY")
    assert "lines" not in str(caught.value)
    with pytest.raises(UserError, match="key_variable='NOT_SET'"):
        ask_endpoint(server, key_variable="NOT_SET")


def test_redirects_are_not_followed(server):
    server.reply = lambda prompt, number: (302, b"", {"Location": server.url + "/elsewhere"})
    with pytest.raises(UserError, match="answers 302"):
        ask_endpoint(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://", "ftp://x/v1"])
def test_what_is_no_url_of_a_server_is_refused(server, url):
    server.url = url
    with pytest.raises(UserError, match="is no URL of a server"):
        ask_endpoint(server)


def test_an_endpoint_that_rejects_everything_stops_the_run(server, corpus, tmp_path):
    server.reply = lambda prompt, number: (422, b"no such field", {})
    with pytest.raises(UserError, match=r"rejects every prompt \(rejected_422\)"):
        run(make_config(server.url), corpus, tmp_path / "out")
    assert len(server.requests) == 6, "one chunk"


@pytest.mark.parametrize("changes, line", [
    ({"endpoint": ""}, "exactly one of them"), ({"model": "sft"}, "exactly one of them"),
    ({"styles": ("poem",)}, "'poem': no such style"), ({"chunk_prompts": 0}, "at least 1"),
    ({"num_connections": 0}, r"synthesize\.run\.num_connections=0: must be a whole number"),
    ({"domains": ("books",)}, "no document has a passage")], ids=str)
def test_contradictory_configs_are_refused_at_once(server, corpus, tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        run(make_config(server.url, **changes), corpus, tmp_path / "out")
    assert server.requests == []


def test_nothing_good_enough_is_an_error(server, corpus, tmp_path):
    server.reply = lambda prompt, number: server.completion(" ")
    with pytest.raises(UserError, match=r"no answer is good enough: \{'empty': 80\}"):
        run(make_config(server.url), corpus, tmp_path / "out")


# --- prompts and filters --------------------------------------------------------------------

PASSAGE = make_text(3, 40)
GERMAN = ("Der Fluss trug die alten Boote an den stillen Dörfern vorbei, wo die Menschen auf "
          "Briefe und auf Nachrichten aus den fernen Städten warteten.")


@pytest.mark.parametrize("style, answer, reason", [
    ("simple", make_text(1, 30), ""),
    ("simple", "Sure, here is the text:\n" + make_text(1, 30), ""),
    ("simple", " \n", "empty"), ("simple", "Here is the rewritten text:\n", "empty"),
    ("simple", "I'm sorry, but I can't do this." + make_text(1, 30), "refusal"),
    ("simple", "As an AI language model, " + make_text(1, 30), "refusal"),
    ("simple", "I cannot really help with the text. " + make_text(1, 30), "refusal"),
    ("simple", "I cannot see the river, said the man. " + make_text(1, 30), ""),
    ("simple", "I don't have access to the text. " + make_text(1, 30), "refusal"),
    ("simple", "Sorrel grows there. " + make_text(1, 30), ""),
    ("simple", f"{STYLES['simple'].instruction} {make_text(1, 30)}", "prompt_echo"),
    ("simple", make_text(1, 11), "too_short"),
    ("simple", " ".join([make_text(1, 10)] * 6), "repetition"),
    ("simple", PASSAGE, "copy"), ("simple", PASSAGE.upper() + " And on.", "copy"),
    ("simple", GERMAN, "language_change"),
    ("pairs", make_text(1, 30), "malformed_pairs"),
    ("pairs", "Question: why?", "malformed_pairs"),
    ("pairs", f"Question: why did they go?\nAnswer: {make_text(1, 30)}", ""),
])
def test_filters(style, answer, reason):
    verdict = judge(answer, PASSAGE, STYLES[style], BOUNDS, identify)
    assert verdict.reason == reason
    if not reason:
        assert verdict.text in answer, "text around the answer is removed"


def test_bounds_are_inclusive():
    half = " ".join([*PASSAGE.split()[:14], *make_text(1, 14).split()])
    copied = judge(half, PASSAGE, STYLES["simple"], BOUNDS | {"max_copied_frac": 0.0}, identify)
    assert copied.reason == "copy" and 0.3 < copied.score < 0.6
    at_bound = BOUNDS | {"max_copied_frac": copied.score}
    assert judge(half, PASSAGE, STYLES["simple"], at_bound, identify).reason == ""


@pytest.mark.parametrize("answer", [
    "Question: What is it?\nAnswer: A thing.\n\nQuestion: Why 1984?\nAnswer: So.\n1984\n- two",
    "**Question 1:** What is it?\n**Answer 1:** A thing.\n\n2. **Question 2:** Why 1984?\n"
    "   **Answer 2:** So.\n1984\n- two\n",
    "Some remark.\n- Question: What\n  is it?\n- Answer: A thing.\nQuestion: lost?\n"
    "1) Question: Why 1984?\nAnswer: So.\n1984\n- two"])
def test_pairs_are_parsed_in_all_formats(answer):
    pairs = parse_pairs(answer)
    assert pairs == [("What is it?", "A thing."), ("Why 1984?", "So.\n1984\n- two")]
    assert parse_pairs(format_pairs(pairs)) == pairs


def test_passages_hold_every_word_in_order():
    text = "\n\n".join(["one two three", make_text(1, 25), "four", "", make_text(2, 7), "end\n"])
    passages = list(split_passages(text, 10))
    assert all(0 < len(passage.split()) <= 10 for passage in passages)
    assert " ".join(passages).split() == text.split()
    assert list(split_passages(text, 1000)) == [text.strip()]
    assert list(split_passages(" \n", 10)) == []


# --- a model directory ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def model_folder(params, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    ranks = {bytes([b]): i for i, b in enumerate(range(32, 125))}
    BytePairTokenizer(ranks).save(folder / "tokenizer")
    for name, chat in (("chat", True), ("base", False)):
        (folder / name).mkdir()
        save_model(folder / name, params, config, folder / "tokenizer", chat=chat,
                   context_tokens=64)
        write_json(folder / name / "lineage.json", {"layout": LAYOUT, "fingerprint": "f00d"})
    return folder


def test_a_local_model_answers_the_same_every_time(model_folder):
    model = load_model(model_folder / "chat", Execution())
    responder = LocalResponder(model, Sampling(8, temperature=1.0), batch_size=2)
    prompts = ["first", "x" * 70, "second prompt", "third"]
    replies = responder.respond(prompts, seed=3)
    assert replies == responder.respond(prompts, seed=3) != responder.respond(prompts, seed=4)
    assert replies[1][:2] == ("", "prompt_too_long")
    assert {reply.fault for reply in replies} <= {"", "truncated", "prompt_too_long"}
    assert responder.name == "chat@f00d"


def test_a_base_model_is_refused(model_folder):
    with pytest.raises(UserError, match="is a base model"):
        LocalResponder(load_model(model_folder / "base", Execution()), Sampling(8), batch_size=2)
