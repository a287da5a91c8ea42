"""Generated prompts with instructions that a program can check, in the manner of IFEval.

Each prompt comes with an answer that follows its instructions, so that the same questions teach,
reward and measure. Prompts are split by hash.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.chat import Conversation, ask
from eval.measures.instructions import grade_instructions, judge
from eval.tasks.task import Grade, split_of

MOST_INSTRUCTIONS = 3       # of a prompt
TRIES = 200                 # for one prompt, until an answer follows all of its instructions

TOPICS = ("a garden in autumn", "the first day at a new school", "a train that is late",
          "how bread is made", "a walk along the river", "a library at night", "the moon",
          "why people sing", "an old map", "rain on a tin roof", "learning to swim", "a lost key")
FORMS = ("Write a short text about {}.", "Tell me about {}.", "Describe {}.",
         "Write a few lines about {}.")
# Sentences of the answers: no commas, and no word that is asked for or forbidden.
SENTENCES = ("This is a calm and simple thing to write about.", "Many people remember it well.",
             "It takes a little time and some patience.", "There is always more to see.",
             "The best part of it comes at the end.", "We can learn a great deal from it.",
             "Some of it is new and some of it is old.", "In the end it stays with us.")
WORDS = ("copper", "violet", "harbor", "lantern", "meadow", "thunder", "saddle", "pepper")
PHRASES = ("That is all there is to say.", "Thank you for reading.", "Is there anything else?")

Arguments = dict[str, Any]


class Kind(NamedTuple):
    """How instructions of a kind are drawn, worded, and followed.

    Attributes:
        draw: gives the arguments of `eval.measures.instructions.KINDS`.
        say: words the instruction.
        follow: makes of a text one that follows it; the order of `DRAWN` is that of their use.
    """

    draw: Callable[[random.Random], Arguments]
    say: Callable[[Arguments], str]
    follow: Callable[[str, Arguments], str]


def _fill(text: str, num_words: int) -> str:
    """The text with sentences added until it has so many words."""
    place = 0
    while len(text.split()) < num_words:
        text, place = f"{text} {SENTENCES[place % len(SENTENCES)]}", place + 1
    return text


def _first_sentences(text: str, num: int) -> str:
    return " ".join(f"{part}." for part in text.rstrip(".").split(". ")[:num])


def _bound(noun: str, count: str, relation: str) -> Callable[[Arguments], str]:
    return lambda given: f"Use {given[relation]} {given[count]} {noun}."


DRAWN: dict[str, Kind] = {
    "length_constraints:number_words": Kind(
        lambda rng: {"num_words": 10 * rng.randint(3, 9),
                     "relation": rng.choice(("less than", "at least"))},
        _bound("words", "num_words", "relation"),
        lambda text, given: (_fill(text, given["num_words"]) if given["relation"] == "at least"
                             else _first_sentences(text, 1))),
    "length_constraints:number_sentences": Kind(
        lambda rng: {"num_sentences": rng.randint(2, 6),
                     "relation": rng.choice(("less than", "at least"))},
        _bound("sentences", "num_sentences", "relation"),
        lambda text, given: (" ".join((text, *SENTENCES)) if given["relation"] == "at least"
                             else _first_sentences(text, given["num_sentences"] - 1))),
    "length_constraints:number_paragraphs": Kind(
        lambda rng: {"num_paragraphs": rng.randint(2, 4)},
        lambda given: (f"Write exactly {given['num_paragraphs']} paragraphs, divided by ***."),
        lambda text, given: "\n***\n".join(
            (text, *SENTENCES[:given["num_paragraphs"] - 1]))),
    "keywords:existence": Kind(
        lambda rng: {"keywords": rng.sample(WORDS[:4], 2)},
        lambda given: "Use the words {} and {}.".format(*given["keywords"]),
        lambda text, given: f"{text} It has {' and '.join(given['keywords'])} in it."),
    "keywords:frequency": Kind(
        lambda rng: {"keyword": rng.choice(WORDS[4:6]), "frequency": rng.randint(2, 4),
                     "relation": "at least"},
        lambda given: f"Use the word {given['keyword']} at least {given['frequency']} times.",
        lambda text, given: f"{text} {' '.join([given['keyword']] * given['frequency'])}."),
    "keywords:forbidden_words": Kind(
        lambda rng: {"forbidden_words": rng.sample(WORDS[6:], 2)},
        lambda given: "Do not use the words {} and {}.".format(*given["forbidden_words"]),
        lambda text, given: text),
    "detectable_content:number_placeholders": Kind(
        lambda rng: {"num_placeholders": rng.randint(2, 4)},
        lambda given: (f"Leave at least {given['num_placeholders']} placeholders in square "
                       "brackets, such as [name]."),
        lambda text, given: " ".join([text, *["[name]"] * given["num_placeholders"]])),
    "detectable_format:number_highlighted_sections": Kind(
        lambda rng: {"num_highlights": rng.randint(2, 4)},
        lambda given: (f"Highlight at least {given['num_highlights']} parts with asterisks, such "
                       "as *this part*."),
        lambda text, given: " ".join([text, *["*like this*"] * given["num_highlights"]])),
    "detectable_format:number_bullet_lists": Kind(
        lambda rng: {"num_bullets": rng.randint(2, 4)},
        lambda given: (f"Write exactly {given['num_bullets']} bullet points, lines that begin with "
                       "an asterisk."),
        lambda text, given: "\n".join(
            [text, *(f"* {SENTENCES[n]}" for n in range(given["num_bullets"]))])),
    "detectable_format:title": Kind(
        lambda rng: {}, lambda given: "Give it a title in double angular brackets: <<title>>.",
        lambda text, given: f"<<A Title>>\n{text}"),
    "detectable_content:postscript": Kind(
        lambda rng: {"postscript_marker": rng.choice(("P.S.", "P.P.S"))},
        lambda given: f"Add a postscript, marked as {given['postscript_marker']} at its beginning.",
        lambda text, given: f"{text}\n{given['postscript_marker']} Take care."),
    "startend:end_checker": Kind(
        lambda rng: {"end_phrase": rng.choice(PHRASES)},
        lambda given: f"End with these words and nothing after them: {given['end_phrase']}",
        lambda text, given: f"{text} {given['end_phrase']}"),
    "combination:two_responses": Kind(
        lambda rng: {}, lambda given: "Give two different answers, divided by ******.",
        lambda text, given: f"{SENTENCES[-1]}\n******\n{text}"),
    "change_case:english_lowercase": Kind(
        lambda rng: {}, lambda given: "Write in English, without any capital letter.",
        lambda text, given: text.lower()),
    "change_case:english_capital": Kind(
        lambda rng: {}, lambda given: "Write in English, in capital letters only.",
        lambda text, given: text.upper()),
    "punctuation:no_comma": Kind(
        lambda rng: {}, lambda given: "Do not use any comma.",
        lambda text, given: text.replace(",", "")),
    "detectable_format:json_format": Kind(
        lambda rng: {}, lambda given: "Answer with JSON alone.",
        lambda text, given: json.dumps({"text": text})),
    "startend:quotation": Kind(
        lambda rng: {}, lambda given: "Put the whole answer between double quotation marks.",
        lambda text, given: f'"{text}"'),
}


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Prompts of one to three instructions, each with an answer that follows them; a `Task`."""

    name: str = "instructions"

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """`num` distinct solved prompts of a split."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        made: dict[str, Conversation] = {}
        for _ in range(TRIES * max(num, 0)):
            if len(made) == num:
                break
            prompt, answer, instructions = _draw(rng)
            follows = all(verdict.strict for verdict in judge(answer, instructions))
            if follows and split_of(prompt) == split:
                family = f"{len(instructions)} instruction{'s' * (len(instructions) > 1)}"
                made.setdefault(prompt, ask(prompt, answer, task=self.name, family=family,
                                            instructions=instructions))
        return list(made.values())

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """See `eval.measures.instructions.grade_instructions`."""
        return grade_instructions(conversation, completion)

    def score(self, conversation: Conversation, completion: str) -> float:
        """1 if all instructions are followed strictly, else 0."""
        return self.grade(conversation, completion).score


def _draw(rng: random.Random) -> tuple[str, str, list[list[Any]]]:
    """Prompt, an answer meant to follow it, and its instructions, which may exclude each other."""
    chosen = set(rng.sample(sorted(DRAWN), rng.randint(1, MOST_INSTRUCTIONS)))
    given: Mapping[str, Arguments] = {kind: DRAWN[kind].draw(rng) for kind in DRAWN
                                      if kind in chosen}
    text = " ".join(rng.sample(SENTENCES, 3))
    for kind, arguments in given.items():
        text = DRAWN[kind].follow(text, arguments)
    said = [DRAWN[kind].say(arguments) for kind, arguments in given.items()]
    rng.shuffle(said)
    prompt = " ".join([rng.choice(FORMS).format(rng.choice(TOPICS)), *said])
    return prompt, text, [[kind, arguments] for kind, arguments in given.items()]
