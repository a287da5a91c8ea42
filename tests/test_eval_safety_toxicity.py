"""Toxic continuations: the measures of models whose continuations are known."""

import json

import numpy as np
import pytest

from core.errors import UserError
from data.classify.classifier import Classifier, Grams, featurise
from data.filters.harm import load_word_list
from data.layouts.faults import Faults
from eval.respond.responder import Reply
from eval.safety import toxicity
from eval.safety.beginnings import Beginning, load_beginnings
from eval.safety.probe import Settings, Subject

OWN = load_beginnings(None, Faults("toxicity"))
K = toxicity.NUM_CONTINUATIONS


def model_of(continue_text, chat=True):
    """A model whose continuation is a function of a prompt and of the number of the draw."""
    def respond(conversations, max_new_tokens, seed=0, temperature=0.0, top_p=1.0):
        assert (max_new_tokens, temperature, top_p) == (20, 1.0, 0.9)
        texts = [one.messages[-1].content for one in conversations]
        asked = [next(one for one in OWN if text.endswith(one.text)) for text in texts]
        return [continue_text(one, seed) for one in asked]
    return Subject("made up", respond, None, chat)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier for which each "vile" adds 4 to the logit, and nothing else counts."""
    bucket = featurise(["vile"], 1 << 16, Grams(1)).buckets[0]
    weights = np.zeros((1, 1 << 16), np.float32)
    weights[0, bucket] = 8.0
    path = tmp_path_factory.mktemp("classifier")
    Classifier("classes", ("harmless", "toxic"), "toxic", Grams(1), weights,
               np.array([-4.0], np.float32), limits="Knows one word.").save(path)
    return path


# --- prompts and words -----------------------------------------------------------------------

def test_our_own_prompts_are_free_of_listed_words_and_of_two_groups():
    assert len(OWN) == len({one.text for one in OWN}) == 40
    assert sorted({one.group for one in OWN}) == ["inviting", "neutral"]
    words = load_word_list(toxicity.OWN_WORDS)
    listed = [one for one in OWN if words.count(one.text)]
    assert {one.group for one in listed} <= {"inviting"}
    assert words.count("You IDIOT, go to hell!") == 2 and not words.count("a jerky train of foals")


def test_prompts_of_a_file(tmp_path):
    rows = [{"text": "a"}, {"prompt": "b", "group": "own"}, {"other": 1}, {"text": " "},
            {"prompt": {"text": "c", "toxicity": 0.7}}, {"prompt": {"text": "d", "toxicity": 0.1}}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\nno json\n")
    faults = Faults("toxicity")
    found = load_beginnings(path, faults)
    assert [(one.text, one.group) for one in found] == [
        ("a", "prompts"), ("b", "own"), ("c", "toxic"), ("d", "not toxic")]
    assert faults.counts == {"no_prompt": 2, "broken_line": 1}
    path.write_text("{}")
    with pytest.raises(UserError, match="holds no prompt"):
        load_beginnings(path, Faults("toxicity"))


# --- the probe -------------------------------------------------------------------------------

def values(section):
    return {label: found.value for label, found in section.estimates.items()}


def test_a_model_that_insults_once_in_ten_when_it_is_invited(folder):
    section = toxicity.probe(model_of(lambda one, number: Reply(
        "vile" if one.group == "inviting" and number == 3 else "kind")), Settings(
        files={"toxicity_classifier": folder}))
    low, high = (1 / (1 + np.exp(-logit)) for logit in (-4.0, 4.0))
    found = values(section)
    assert found == pytest.approx({
        "expected maximum toxicity": (low + high) / 2, "prompts with a toxic continuation": 0.5,
        "toxic continuations": 0.05, "continuations with a listed word": 0.0,
        "expected maximum toxicity, neutral": low, "prompts with a toxic continuation, neutral": 0,
        "toxic continuations, neutral": 0, "continuations with a listed word, neutral": 0,
        "expected maximum toxicity, inviting": high,
        "prompts with a toxic continuation, inviting": 1, "toxic continuations, inviting": 0.1,
        "continuations with a listed word, inviting": 0,
        "prompts called toxic themselves, neutral": 0,
        "prompts called toxic themselves, inviting": 0})
    shares = section.estimates["toxic continuations"]
    assert shares.items == 40 * K and shares.groups == 40
    assert section.estimates["expected maximum toxicity"].items == 40
    assert "Knows one word." in section.about and len(section.rows) == 40 * K
    assert sum(row["verdict"] == "toxic" for row in section.rows) == 20


def test_prompts_that_the_classifier_calls_toxic_themselves(folder):
    classifier = toxicity.load_judge(folder)
    texts = {"kind": "a", "vile": "a", "so vile": "b", "vile vile": "b"}
    found = toxicity.estimate_prompts([Beginning(text, group, text)
                                       for text, group in texts.items()], classifier)
    assert {label: one.value for label, one in found.items()} == {
        "prompts called toxic themselves, a": 0.5, "prompts called toxic themselves, b": 1.0}
    assert not toxicity.estimate_prompts([Beginning("x", "a", "x")], None)


def test_without_a_classifier_words_alone_are_judged_and_it_is_said(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("vile\n")
    section = toxicity.probe(model_of(lambda one, number: Reply("so vile" if number else "")),
                             Settings(num=4, files={"toxicity_words": words}))
    assert set(values(section)) == {"continuations with a listed word" + group
                                    for group in ("", ", neutral", ", inviting")}
    assert set(values(section).values()) == {1.0}
    assert section.counts == {"empty": 4} and "No classifier" in section.about
    assert {row["verdict"] for row in section.rows} == {"empty", "listed_word"}


def test_failures_are_no_part_of_a_maximum():
    judged = toxicity.judge([Beginning("a", "g", "a"), Beginning("a", "g", "a"),
                             Beginning("b", "g", "b")],
                            [Reply("x"), Reply("x", "unreachable"), Reply("", "unreachable")],
                            load_word_list(toxicity.OWN_WORDS), None)
    judged = [one._replace(toxicity=score) for one, score in zip(judged, (0.2, 0.9, 0.9))]
    found = toxicity.estimate(judged)
    assert found["expected maximum toxicity"].value == 0.2
    assert found["prompts with a toxic continuation"].items == 1


def test_a_base_model_continues_the_text_itself_and_a_chat_model_is_asked_to():
    asked = []

    def respond(conversations, *rest, **drawn):
        asked.append(conversations[0])
        return [Reply("x")] * len(conversations)
    for chat in (False, True):
        toxicity.probe(Subject("m", respond, None, chat), Settings(num=1))
    base, chat = asked[0], asked[-1]
    assert base.meta["prompt"] == base.messages[0].content
    assert "prompt" not in chat.meta and chat.messages[0].content.startswith("Continue this text.")


def test_a_score_that_is_no_probability_of_a_class_is_refused(tmp_path):
    Classifier("regression", (), "", Grams(1), np.zeros((1, 4), np.float32),
               np.zeros(1, np.float32)).save(tmp_path)
    with pytest.raises(UserError, match="is not the probability of a class"):
        toxicity.load_judge(tmp_path)
