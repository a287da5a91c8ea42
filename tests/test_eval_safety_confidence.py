"""Stated confidence: what is read from replies, and the figures of known models."""

import pytest
from byte_models import byte_model

from data.layouts.faults import Faults
from eval.respond.responder import Reply
from eval.safety import confidence
from eval.safety.confidence import read_confidence
from eval.safety.probe import Settings, Subject
from eval.safety.questions import load_questions

KNOWN = {one.text: one for one in load_questions(None, 0, Faults("q"))}


def stating(reply_to):
    """A chat model whose reply is a function of the question and its number."""
    def respond(conversations, max_new_tokens, seed=0):
        texts = [one.messages[-1].content for one in conversations]
        asked = [next(q for start, q in KNOWN.items() if text.startswith(start)) for text in texts]
        return [reply_to(question, number) for number, question in enumerate(asked)]
    return Subject("made up", respond, None, True)


@pytest.mark.parametrize(("text", "stated"), [
    ("Answer: Rome\nConfidence: 80%", 0.8), ("Rome. Confidence level: **95 %**", 0.95),
    ("Rome, confidence 0.7", 0.7), ("Rome. My confidence is 1.0", 1.0), ("Confidence: 90", 0.9),
    ("I am 75% sure it is Rome", 0.75), ("about 60 percent", 0.6), ("Confidence: 8/10", 0.8),
    ("Confidence: 80 out of 100", 0.8), ("Confidence: 0.5%", 0.005), ("Confidence: 100%", 1.0),
    ("First, confidence: 10%. Then confidence: 20%", 0.2), ("50% of people. Confidence: 30%", 0.3),
    ("Confidence: ...%", None), ("Rome", None), ("", None), ("Confidence: 120%", None),
    ("Confidence: -5%", None), ("from 0% to 100%", None), ("Confidence: 0% to 100%", None),
    ("Confidence: 70-80%", None), ("I am confident that it was 1945.", None)])
def test_what_confidence_a_reply_states(text, stated):
    assert read_confidence(text)[1] == pytest.approx(stated)


def test_the_answer_is_what_is_no_statement_of_confidence():
    assert "50" not in read_confidence("Answer: 45\nConfidence: 50%")[0]
    assert "Rome" in read_confidence("I am 75% sure it is Rome")[0]


@pytest.mark.parametrize(("text", "verdict"), [
    ("100%", "no_answer"), ("100%\n\nThis is a confirmation.", "no_answer"),
    ("Confidence: 90%", "no_answer"), ("100%: Paris", "right"), ("100%\nParis", "right"),
    ("It is a town. 100%", "wrong"), ("Lyon, 100%", "wrong"), ("Lyon or Paris, 100%", "wrong"),
    ("Paris", "no_confidence")])
def test_a_confidence_without_an_answer_is_none(text, verdict):
    found, stated = confidence.judge(KNOWN["What is the capital of France?"], Reply(text))
    assert found == verdict and (stated is None) == verdict.startswith("no_")


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated():
    def reply(question, number):        # right in 3 of 4 questions
        answer = question.shown(0 if number % 4 else 1)
        return Reply(f"Answer: {answer}\nConfidence: 75%")
    section = confidence.probe(stating(reply), Settings())
    found = {label: estimate.value for label, estimate in section.estimates.items()}
    assert found == pytest.approx({
        "replies that state a confidence": 1.0, "accuracy, by replies": 0.75,
        "mean confidence, by replies": 0.75, "overconfidence, by replies": 0.0,
        "expected calibration error, by replies": 0.0,
        "Brier score of the answer, by replies": 0.75 * 0.25,
        "accuracy at a confidence of 70% to 80%, by replies": 0.75})
    assert not section.counts and len(section.rows) == 80


def test_a_model_that_is_always_sure_and_half_wrong_is_overconfident_by_half():
    def reply(question, number):
        if number % 8 == 7:
            return Reply("", "unreachable") if number == 7 else Reply(question.shown(0))
        return Reply(f"{question.shown(number % 2)}. Confidence: {90 if number % 2 else 100}%")
    section = confidence.probe(stating(reply), Settings())
    found = section.estimates
    stated = [number for number in range(80) if number % 8 != 7]
    right = sum(number % 2 == 0 for number in stated) / len(stated)
    sure = sum(0.9 if number % 2 else 1.0 for number in stated) / len(stated)
    assert found["replies that state a confidence"].value == pytest.approx(70 / 79)
    assert found["overconfidence, by replies"].value == pytest.approx(sure - right)
    assert found["expected calibration error, by replies"].value == pytest.approx(
        0.9 * (1 - right))
    assert found["accuracy at a confidence of 80% to 90%, by replies"].value == 0
    assert found["accuracy at a confidence of 90% to 100%, by replies"].items == 40
    assert section.counts == {"unreachable": 1, "no_confidence": 9}


@pytest.mark.parametrize("chat", [True, False])
def test_likelihoods_stand_beside_and_a_base_model_has_these_alone(chat):
    subject = Subject("tiny", lambda asked, num, seed=0: [Reply("?")] * len(asked),
                      byte_model(chat), chat)
    section = confidence.probe(subject, Settings(num=4))
    assert section.estimates["accuracy, by likelihoods"].items == 4
    assert 0.25 <= section.estimates["mean confidence, by likelihoods"].value <= 1
    assert section.counts == ({"no_confidence": 4} if chat else {})
