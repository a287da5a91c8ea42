"""GSM8K (arXiv 2110.14168): word problems whose answer is a number."""

from __future__ import annotations

import dataclasses

from core.errors import UserError
from data.chat import Conversation, ask
from eval.benchmarks.shots import pick_shots
from eval.benchmarks.source import Source
from eval.measures.extraction import equal_numbers, flexible_number, strict_number
from eval.tasks.task import SPLITS, Grade, answer_of

FILES = {"train": ("train", "train-00000-of-00001"), "test": ("test", "test-00000-of-00001")}
DELIMITER = "#### "     # before the number of the file's solutions

# Of arXiv 2201.11903, table 20, with the answer's sentence of its examples.
CHAIN_OF_THOUGHT = (
    ("There are 15 trees in the grove. Grove workers will plant trees in the grove today. After "
     "they are done, there will be 21 trees. How many trees did the grove workers plant today?",
     "There are 15 trees originally. Then there were 21 trees after some more were planted. So "
     "there must have been 21 - 15 = 6. The answer is 6."),
    ("If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the "
     "parking lot?",
     "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5."),
    ("Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have "
     "left in total?",
     "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. "
     "After eating 35, they had 74 - 35 = 39. The answer is 39."),
    ("Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many "
     "lollipops did Jason give to Denny?",
     "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny "
     "20 - 12 = 8. The answer is 8."),
    ("Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys "
     "does he have now?",
     "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more "
     "toys. 5 + 4 = 9. The answer is 9."),
    ("There were nine computers in the server room. Five more computers were installed each day, "
     "from monday to thursday. How many computers are now in the server room?",
     "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 "
     "= 20 computers were added. 9 + 20 is 29. The answer is 29."),
    ("Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. "
     "How many golf balls did he have at the end of wednesday?",
     "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After "
     "losing 2 more, he had 35 - 2 = 33 golf balls. The answer is 33."),
    ("Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
     "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 "
     "- 15 dollars left. 23 - 15 is 8. The answer is 8."))


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of prompts.

    Attributes:
        name: of the task in this form.
        question: template of a question.
        num_shots: of the published form.
        delimiter: what precedes the number of an answer, for strict extraction.
        score: the rule of extraction by which an answer is scored.
        stops: see `AnswerTask`.
        examples: of the form's own, (question, answer); where there are none, those of training.
    """

    name: str
    question: str
    num_shots: int
    delimiter: str
    score: str
    stops: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()


# Prompts, shots and stops of EleutherAI/lm-evaluation-harness@4e7e0d4, tasks gsm8k and gsm8k_cot.
# Its strict expression of the latter, "The answer is (-?[0-9.,]+).", needs one more character
# after the number, and so reads 1 in "The answer is 18"; here it does not.
FORMS = {
    "base": Form("gsm8k", "Question: {}\nAnswer:", 5, DELIMITER, "strict",
                 ("Question:", "</s>", "<|im_end|>")),
    "cot": Form("gsm8k_cot", "Q: {}\nA:", len(CHAIN_OF_THOUGHT), "The answer is ", "strict",
                ("Q:", "</s>", "<|im_end|>"), CHAIN_OF_THOUGHT)}


@dataclasses.dataclass(frozen=True)
class Gsm8k:
    """The problems of a folder, with their solutions as in the file; an `AnswerTask`.

    A prompt's examples are those of the form, or the training file's. Answers are compared as
    numbers: 18, 18.0, 18. and $18 are one, 1,234 is 1234.
    """

    source: Source
    form: Form
    max_new_tokens: int = 256       # lm-eval's default

    @property
    def name(self) -> str:
        """The name of the form's task."""
        return self.form.name

    @property
    def stops(self) -> tuple[str, ...]:
        """Of the form."""
        return self.form.stops

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """The first `num` problems of a split, all of them if `num` is 0 or less.

        Raises:
            UserError: a file is missing, or a row lacks its question or its solution.
        """
        del seed
        rows = self._read(split)
        picked = list(enumerate(rows if num <= 0 else rows[:num]))
        num_shots = self._num_shots
        pool = self.form.examples
        if num_shots and not pool:
            pool = rows if split == "train" else self._read("train")
        return [ask(question, answer, task=self.name, family=self.name,
                    id=f"{self.name}/{'' if split == 'test' else 'train/'}{number}",
                    prompt=self._prompt(pick_shots(self.source, pool, num_shots, _question_of,
                                                   question), question))
                for number, (question, answer) in picked]

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """Judges an answer by strict and by flexible extraction.

        Its measures are 1 or 0: `strict`, `flexible`, and `unparsed`, of an answer in which the
        form's own rule finds no number. Such an answer scores 0.
        """
        expected = strict_number(answer_of(conversation), DELIMITER) or ""
        found = {"strict": strict_number(completion, self.form.delimiter),
                 "flexible": flexible_number(completion)}
        measures = {name: float(equal_numbers(number, expected)) for name, number in found.items()}
        extracted = found[self.form.score]
        return Grade(measures[self.form.score], extracted,
                     measures | {"unparsed": float(extracted is None)})

    def score(self, conversation: Conversation, completion: str) -> float:
        """1 for the right number, found by the form's rule; else 0."""
        return self.grade(conversation, completion).score

    @property
    def _num_shots(self) -> int:
        num = self.source.num_shots
        return self.form.num_shots if num < 0 else num

    def _prompt(self, shots: list[tuple[str, str]], question: str) -> str:
        solved = [f"{self.form.question.format(asked)} {answer}\n\n" for asked, answer in shots]
        return "".join(solved) + self.form.question.format(question)

    def _read(self, split: str) -> list[tuple[str, str]]:
        """(question, solution) of each row."""
        if split not in SPLITS:
            raise UserError(f"split={split!r}", f"is none of {', '.join(SPLITS)}", "choose one")
        path, rows = self.source.find(*FILES[split]), self.source.rows(*FILES[split])
        for number, row in enumerate(rows, start=1):
            if not (isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)
                    and strict_number(row["answer"], DELIMITER)):
                raise UserError(f"{path}, row {number}", "lacks a question, or an answer that ends "
                                f"in {DELIMITER!r} and a number", "correct this row, or remove it")
        return [(row["question"], row["answer"]) for row in rows]


def open_gsm8k(source: Source) -> Gsm8k:
    """Opens GSM8K: files `train` and `test`, with the fields `question` and `answer`.

    Forms: "base" (Question/Answer, 5 shots of the training file) and "cot" (Q/A, the 8 examples of
    arXiv 2201.11903, answers that end in "The answer is N.").

    Raises:
        UserError: there is no such form, or no test file.
    """
    name = source.form or next(iter(FORMS))
    if name not in FORMS:
        raise UserError(f"form={name!r}", f"is none of {', '.join(FORMS)}", "choose one of them")
    source.find(*FILES["test"])
    return Gsm8k(source, FORMS[name])


def _question_of(example: tuple[str, str]) -> str:
    return example[0]
