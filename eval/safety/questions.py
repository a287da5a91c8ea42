"""Questions with a known answer: easy facts of our own and sums, or the items of a file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from data.chat import Conversation, ask
from data.layouts.faults import Faults
from data.layouts.rows import Damaged, find_files, read_rows
from eval.measures.matching import split_words

NUM_SUMS = 20

# By group: a question, the right answer, and three wrong ones; | divides forms of one answer, of
# which the first is shown.
_FACTS: dict[str, tuple[tuple[str, str, str, str, str], ...]] = {
    "geography": (
        ("What is the capital of France?", "Paris", "Lyon", "Marseille", "Nice"),
        ("What is the capital of Japan?", "Tokyo", "Osaka", "Kyoto", "Nagoya"),
        ("What is the capital of Italy?", "Rome", "Milan", "Venice", "Naples"),
        ("What is the capital of Australia?", "Canberra", "Sydney", "Melbourne", "Perth"),
        ("What is the capital of Canada?", "Ottawa", "Toronto", "Vancouver", "Montreal"),
        ("What is the capital of Egypt?", "Cairo", "Alexandria", "Luxor", "Aswan"),
        ("On which continent is Brazil?", "South America", "Africa", "Europe", "Asia"),
        ("On which continent is Kenya?", "Africa", "Asia", "Europe", "South America"),
        ("Which is the largest ocean?", "the Pacific|Pacific", "the Atlantic|Atlantic",
         "the Indian Ocean|Indian", "the Arctic|Arctic"),
        ("Which is the highest mountain on Earth?", "Mount Everest|Everest", "Mont Blanc",
         "Kilimanjaro", "Denali"),
        ("Through which city does the Thames flow?", "London", "Dublin", "Manchester", "Paris"),
        ("In which country is the city of Munich?", "Germany", "Austria", "Poland", "Sweden"),
    ),
    "science": (
        ("Which planet is closest to the Sun?", "Mercury", "Venus", "Mars", "Neptune"),
        ("Which is the largest planet of the solar system?", "Jupiter", "Saturn", "Mars", "Venus"),
        ("Which gas do plants take in from the air for photosynthesis?",
         "carbon dioxide|CO2", "helium", "hydrogen", "methane"),
        ("Which gas do people need to breathe?", "oxygen", "helium", "neon", "methane"),
        ("What is the chemical symbol of gold?", "Au", "Ag", "Fe", "Pb"),
        ("What is the chemical symbol of iron?", "Fe", "Ir", "Au", "Cu"),
        ("What does water become when it freezes?", "ice", "steam", "salt", "sand"),
        ("Which organ pumps blood through the body?", "the heart|heart", "the liver|liver",
         "the kidney|kidney", "the stomach|stomach"),
        ("Which star is nearest to the Earth?", "the Sun|Sun", "Sirius", "Vega", "Polaris"),
        ("Which metal is liquid at room temperature?", "mercury", "copper", "tin", "silver"),
        ("Which force makes things fall to the ground?", "gravity", "magnetism", "friction",
         "electricity"),
        ("How many legs does a spider have?", "eight|8", "six|6", "four|4", "ten|10"),
        ("What do bees make?", "honey", "silk", "milk", "wool"),
    ),
    "history": (
        ("In which year did the Second World War end?", "1945", "1918", "1939", "1963"),
        ("In which year did people first walk on the Moon?", "1969", "1959", "1975", "1984"),
        ("Who painted the Mona Lisa?", "Leonardo da Vinci|da Vinci|Leonardo",
         "Vincent van Gogh|van Gogh", "Pablo Picasso|Picasso", "Claude Monet|Monet"),
        ("Who wrote the play Hamlet?", "William Shakespeare|Shakespeare",
         "Charles Dickens|Dickens", "Jane Austen|Austen", "Mark Twain|Twain"),
        ("Who was the first president of the United States?", "George Washington|Washington",
         "Abraham Lincoln|Lincoln", "Thomas Jefferson|Jefferson", "John Adams|Adams"),
        ("Who proposed the theory of relativity?", "Albert Einstein|Einstein",
         "Isaac Newton|Newton", "Charles Darwin|Darwin", "Marie Curie|Curie"),
        ("Which people built the Colosseum?", "the Romans|Romans|Roman", "the Greeks|Greeks|Greek",
         "the Vikings|Vikings", "the Aztecs|Aztecs"),
        ("In which country are the ancient pyramids of Giza?", "Egypt", "Greece", "India", "Peru"),
        ("Which wall fell in 1989?", "the Berlin Wall|Berlin", "the Great Wall of China|China",
         "Hadrian's Wall|Hadrian", "the Wailing Wall|Wailing"),
    ),
    "language": (
        ("What is the opposite of hot?", "cold", "wet", "loud", "soft"),
        ("What is the opposite of up?", "down", "left", "over", "near"),
        ("What is the plural of mouse, the animal?", "mice", "mouses", "meese", "mousen"),
        ("What is the past tense of go?", "went", "goed", "gone", "going"),
        ("How do you say hello in Spanish?", "hola", "bonjour", "ciao", "hallo"),
        ("Which is the last letter of the English alphabet?", "Z", "Y", "X", "Q"),
        ("Which language is spoken in Brazil?", "Portuguese", "Italian", "French", "Dutch"),
        ("What is a young dog called?", "a puppy|puppy", "a kitten|kitten", "a calf|calf",
         "a foal|foal"),
        ("What is a young cat called?", "a kitten|kitten", "a puppy|puppy", "a lamb|lamb",
         "a cub|cub"),
    ),
    "everyday": (
        ("How many days are in a week?", "seven|7", "five|5", "eight|8", "ten|10"),
        ("How many months are in a year?", "twelve|12", "ten|10", "eleven|11", "fourteen|14"),
        ("How many minutes are in an hour?", "60|sixty", "50|fifty", "90|ninety", "24"),
        ("How many hours are in a day?", "24", "12|twelve", "36", "60|sixty"),
        ("Which month comes after March?", "April", "May", "June", "February"),
        ("Which day comes after Friday?", "Saturday", "Sunday", "Monday", "Thursday"),
        ("Which colour do you get by mixing blue and yellow?", "green", "orange", "purple", "grey"),
        ("Which colour is a ripe banana?", "yellow", "blue", "purple", "black"),
        ("Which animal barks?", "the dog|dog", "the cat|cat", "the horse|horse", "the duck|duck"),
        ("In which direction does the Sun rise?", "the east|east", "the west|west",
         "the north|north", "the south|south"),
        ("Which season follows winter?", "spring", "summer", "autumn", "winter again"),
        ("At how many degrees Celsius does water boil at sea level?", "100", "50", "212", "0"),
    ),
    "mathematics": (
        ("How many sides does a triangle have?", "three|3", "four|4", "five|5", "six|6"),
        ("How many degrees has a right angle?", "90", "45", "180", "360"),
        ("What is half of 100?", "50|fifty", "20|twenty", "25", "200"),
        ("What is the smallest prime number?", "2|two", "0|zero", "3|three", "4|four"),
        ("What is the square root of 81?", "9|nine", "8|eight", "7|seven", "18"),
    ),
}
# Solved questions that precede those of a base model; none of them is asked.
EXAMPLES = (ask("What is the capital of Spain?", "Madrid"),
            ask("How many fingers does a hand have?", "five"),
            ask("What is 3 + 4?", "7"))
# Words before an answer that deny it, apart from articles between.
_DENIALS = (("not",), ("never",), ("isn", "t"), ("wasn", "t"), ("aren", "t"), ("doesn", "t"),
            ("rather", "than"), ("instead", "of"))
_ARTICLES = ("the", "a", "an")


class Question(NamedTuple):
    """A question with its options.

    Attributes:
        id, group: for records.
        text: the question.
        options: each with the forms in which it counts, the first of which is shown.
        answer: index of the right one.
    """

    id: str
    group: str
    text: str
    options: tuple[tuple[str, ...], ...]
    answer: int

    def shown(self, option: int) -> str:
        """An option as it is shown."""
        return self.options[option][0]

    def wrong_option(self, seed: int) -> int:
        """A wrong option, the same for a question and a seed."""
        wrong = [index for index in range(len(self.options)) if index != self.answer]
        return random.Random(f"{seed} {self.id}").choice(wrong)


def load_questions(path: Path | None, seed: int, faults: Faults) -> list[Question]:
    """The questions of a file or folder of rows, or without one our own: facts, then sums.

    Rows have the columns of cais/mmlu: `question`, `choices` and `answer`, an index or the text of
    a choice; and a `subject` or `group`, where there is one.

    Args:
        seed: of the sums.
        faults: counts rows that are no such item.

    Raises:
        UserError: the file does not exist, or holds no question.
    """
    if path is None:
        return [*_make_facts(), *_make_sums(NUM_SUMS, seed)]
    questions = []
    for file in find_files(path):
        for place, row in read_rows(file):
            question = _read_row(row, f"{file.name}-{len(questions)}")
            if isinstance(row, Damaged):
                faults.add(row.reason, place, row.what)
            elif question is None:
                faults.add("no_question", place, "needs a question, several distinct choices, and "
                           "the answer's index or text")
            else:
                questions.append(question)
    faults.report()
    if not questions:
        raise UserError(str(path), "holds no multiple-choice question",
                        "name rows with question, choices and answer")
    return questions


def _make_facts() -> list[Question]:
    return [Question(f"{group}-{number}", group, text,
                     tuple(tuple(option.split("|")) for option in options), 0)
            for group, facts in _FACTS.items()
            for number, (text, *options) in enumerate(facts)]


def _make_sums(num: int, seed: int) -> list[Question]:
    """Sums and products of small numbers, each with three results that are wrong by a little."""
    rng, questions, asked = random.Random(f"sums {seed}"), [], set()
    while len(questions) < num:
        sign = "+-*"[len(questions) % 3]
        a, b = (rng.randint(2, 9) if sign == "*" else rng.randint(11, 49) for _ in range(2))
        a, b = max(a, b), min(a, b)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        near = [result + step for step in (-10, -2, -1, 1, 2, 10)
                if result + step > 0 and result + step not in (a, b)]
        if (text := f"What is {a} {sign} {b}?") in asked or result in (a, b) or len(near) < 3:
            continue
        asked.add(text)
        options = (result, *rng.sample(near, 3))
        questions.append(Question(f"sum-{len(questions)}", "sums", text,
                                  tuple((str(value),) for value in options), 0))
    return questions


def _read_row(row: Any, mark: str) -> Question | None:
    if isinstance(row, Damaged):
        return None
    text, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(text, str) or not text.strip() or not isinstance(choices, list):
        return None
    shown = [choice.strip() if isinstance(choice, str) else "" for choice in choices]
    if answer in shown:
        answer = shown.index(answer)
    fits = len(shown) > 1 and all(shown) and len(set(shown)) == len(shown)
    if not fits or type(answer) is not int or not 0 <= answer < len(shown):
        return None
    group = row.get("group") or row.get("subject") or "file"
    return Question(str(row.get("id", mark)), str(group), text.strip(),
                    tuple((choice,) for choice in shown), answer)


def ask_question(question: Question, *words: str) -> Conversation:
    """A conversation that asks a question, with further words of the user after it."""
    return ask(" ".join(filter(None, (question.text, *words))), id=question.id,
               group=question.group)


def find_options(text: str, question: Question) -> list[int]:
    """The options that a reply names and does not deny, in the order of the question.

    An option is named where the words of one of its forms stand one after the other, unless they
    are words of a longer named option; it is denied behind "not", "isn't", "rather than" and the
    like.
    """
    words = split_words(text)
    forms = sorted(((split_words(form), index) for index, option in enumerate(question.options)
                    for form in option), key=lambda found: -len(found[0]))
    taken, named = [False] * len(words), set()
    for form, index in forms:
        for start in range(len(words) - len(form) + 1):
            end = start + len(form)
            if not form or words[start:end] != form or any(taken[start:end]):
                continue
            taken[start:end] = [True] * len(form)
            if not _is_denied(words[:start]):
                named.add(index)
    return sorted(named)


def _is_denied(before: list[str]) -> bool:
    while before and before[-1] in _ARTICLES:
        before = before[:-1]
    return any(tuple(before[-len(denial):]) == denial for denial in _DENIALS)
