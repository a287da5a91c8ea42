"""Tasks of lm-evaluation-harness' YAML files: multiple_choice, generate_until, loglikelihood.

Prompts are those of lm-evaluation-harness@4e7e0d4, byte for byte, but for one thing: an example
never is the item itself, where that harness excludes it from the split `test_split` alone.
Templates are rendered by Jinja in a sandbox.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import itertools
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError, first_line
from data.chat import Conversation, ask
from data.layouts.rows import Damaged, read_rows
from eval.benchmarks.multiple_choice import Faulty
from eval.benchmarks.source import Source
from eval.benchmarks.yaml_file import CHOICE_FIELD, data_files, read_task_file
from eval.tasks.task import Choice, Grade

Row = Mapping[str, Any]
SAMPLERS = ("default", "first_n")
METRICS = {"multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score"),
           "loglikelihood": ("acc", "perplexity"), "generate_until": ("exact_match",)}
FILTERS = ("regex", "take_first", "remove_whitespace", "lowercase", "uppercase")
ASKED_SPLITS = ("test_split", "validation_split")
MAX_NEW_TOKENS = 256        # lm-evaluation-harness' own number


def open_yaml(source: Source) -> YamlChoices | YamlAnswers:
    """Opens the task file that `source.folder` names.

    Raises:
        UserError: see `read_task_file`; a template fails; a file of rows is missing or damaged; or
            no row is left.
    """
    path = Path(source.folder)
    if source.form:
        raise UserError(f"form={source.form!r}", "a task file has one form", "leave it out")
    config = read_task_file(path)
    kind = config["output_type"]
    for metric in config.get("metric_list") or ():
        if metric.get("metric") not in METRICS[kind]:
            raise UserError(str(path), f"asks for the metric {metric.get('metric')!r}",
                            f"choose among {', '.join(METRICS[kind])}")
    task = _open_rows(path, config, source)
    return YamlAnswers(task) if kind == "generate_until" else YamlChoices(task)


@dataclasses.dataclass(frozen=True)
class _Fields:
    """A task file's templates, applied to rows.

    Attributes:
        config: the fields.
        place: of the file, for messages.
    """

    config: Mapping[str, Any]
    place: str

    def text(self, row: Row) -> str | int:
        """`doc_to_text`; a number where the options are contexts of one continuation."""
        text = self._apply(self.config["doc_to_text"], row)
        is_index = isinstance(text, str) and text.isdigit() and not self._is_column("doc_to_text",
                                                                                    row)
        return int(text) if is_index and self.config.get("doc_to_choice") else text

    def target(self, row: Row) -> Any:
        """`doc_to_target`: a text, the index of an option, or a list of either."""
        target = self._apply(self.config["doc_to_target"], row)
        if self._is_column("doc_to_target", row) or not isinstance(target, str):
            return target
        if target.isdigit() and self.config.get("doc_to_choice"):
            return int(target)
        is_list = len(target) >= 2 and target[0] == "[" and target[-1] == "]"
        return _literal(target) if is_list else target

    def options(self, row: Row) -> list[str]:
        """`doc_to_choice`; empty where there is none."""
        given = self.config.get("doc_to_choice")
        if given is None:
            return []
        if isinstance(given, Mapping):
            given = list(given.values())
        options = self._apply(given, row)
        if isinstance(options, str):
            options = _literal(options)
        if not isinstance(options, list) or not all(isinstance(one, str) for one in options):
            raise UserError(self.place, f"{CHOICE_FIELD} gives {options!r}, which is no list of "
                            "texts", "correct it")
        return options

    def description(self, row: Row) -> str:
        """`description`."""
        given = self.config.get("description") or ""
        return str(self._apply(given, row)) if given else ""

    def solved(self, row: Row) -> str:
        """The row as an example, with what divides it from the next text."""
        text, options, target = self.text(row), self.options(row), self.target(row)
        if isinstance(text, int):
            text = options[text]
        target = target[0] if isinstance(target, list) else target
        answer = options[target] if options and isinstance(target, int) else str(target)
        return text + self.delimiter("target") + answer + self.delimiter("fewshot")

    def delimiter(self, of: str) -> str:
        """`target_delimiter` or `fewshot_delimiter`."""
        return self.config.get(f"{of}_delimiter", {"target": " ", "fewshot": "\n\n"}[of])

    def _is_column(self, field: str, row: Row) -> bool:
        return isinstance(self.config[field], str) and self.config[field] in row

    def _apply(self, given: Any, row: Row) -> Any:
        if not isinstance(given, str):
            return given
        return row[given] if given in row else _render(given, row, self.place)


@dataclasses.dataclass(frozen=True)
class _YamlRows:
    """The rows of a task file, with their literal prompts."""

    name: str
    source: Source
    fields: _Fields
    rows: Mapping[str, Row]         # by place
    pool: Sequence[Row]
    num_shots: int

    def asked(self, num: int) -> Iterator[tuple[int, str, Row, str]]:
        """(number, place, row, text before the row's own) of the first `num` rows, or of all."""
        config = self.fields.config
        shots = _Fields({**config, **(config.get("fewshot_config") or {})}, self.fields.place)
        rng = random.Random(self.source.seed)
        for number, (place, row) in enumerate(self.rows.items()):
            if 0 < num <= number:
                return
            picked = self._pick(row, rng) if self.num_shots else []
            yield (number, place, row,
                   self.fields.description(row) + "".join(shots.solved(one) for one in picked))

    @functools.cached_property
    def _pool_texts(self) -> frozenset[str]:
        return frozenset(map(repr, self.pool))

    def _pick(self, row: Row, rng: random.Random) -> list[Row]:
        wanted, is_own = self.num_shots, repr(row) in self._pool_texts
        sampler = (self.fields.config.get("fewshot_config") or {}).get("sampler", "default")
        drawn = self.pool
        if sampler == "default" and len(drawn) >= wanted + is_own:
            drawn = rng.sample(drawn, wanted + is_own)
        found = list(itertools.islice((one for one in drawn if one != row), wanted))
        if len(found) < wanted:
            raise UserError(f"num_shots={wanted}", f"{self.name} has only {len(found)} examples "
                            "besides the question", "ask for fewer examples")
        return found

    def meta(self, number: int, **more: object) -> dict[str, object]:
        """What a question's records say about it."""
        return {"task": self.name, "family": self.name, "id": f"{self.name}/{number}", **more}


@dataclasses.dataclass(frozen=True)
class _YamlTask:
    """A task that asks the rows of a task file."""

    task: _YamlRows

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def source(self) -> Source:
        """With what it was opened."""
        return self.task.source


@dataclasses.dataclass(frozen=True)
class YamlChoices(_YamlTask):
    """A task file's questions with options; a `ChoiceTask`."""

    def choices(self, split: str, num: int, seed: int) -> list[Choice]:
        """The first `num` questions, or all, but for those that are left out, which are logged.

        Raises:
            UserError: a template fails, examples are too few, or no question is left.
        """
        del split, seed
        faults = Faulty(self.name)
        found = [self._choice(*asked, faults) for asked in self.task.asked(num)]
        faults.report()
        if not any(found):
            raise UserError(self.task.fields.place, "leaves no question", "correct its rows")
        return [choice for choice in found if choice]

    def _choice(self, number: int, place: str, row: Row, before: str,
                faults: Faulty) -> Choice | None:
        fields, delimiter = self.task.fields, self.task.fields.delimiter("target")
        text, target = fields.text(row), fields.target(row)
        if fields.config["output_type"] == "loglikelihood":
            contexts, options, answers = (str(text),), (str(target),), (0,)
        elif isinstance(text, int):
            contexts = tuple(fields.options(row))
            options, answers = (delimiter + str(target),) * len(contexts), (text,)
        else:
            texts = fields.options(row)
            contexts, options = (text,), tuple(delimiter + option for option in texts)
            answers = _indices(target, texts)
        if faults.refuses(options, answers, place, may_repeat=isinstance(text, int)):
            return None
        return Choice(ask("\n".join(contexts), **self.task.meta(number)), options, answers[0],
                      tuple(before + context for context in contexts),
                      answers=answers if len(answers) > 1 else ())


@dataclasses.dataclass(frozen=True)
class YamlAnswers(_YamlTask):
    """A task file's questions whose answers are generated; an `AnswerTask`."""

    @property
    def stops(self) -> tuple[str, ...]:
        """`generation_kwargs.until`; what divides examples where it is not given."""
        until = self._generation.get("until", self.task.fields.delimiter("fewshot"))
        return (until,) if isinstance(until, str) else tuple(until)

    @property
    def max_new_tokens(self) -> int:
        """`generation_kwargs.max_gen_toks`, or lm-evaluation-harness' 256."""
        return int(self._generation.get("max_gen_toks", MAX_NEW_TOKENS))

    @property
    def _generation(self) -> Mapping[str, Any]:
        return self.task.fields.config.get("generation_kwargs") or {}

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """The first `num` questions, or all, with their first right answer.

        Raises:
            UserError: a template fails, or examples are too few.
        """
        del split, seed
        found, fields = [], self.task.fields
        for number, _, row, before in self.task.asked(num):
            target, options = fields.target(row), fields.options(row)
            targets = target if isinstance(target, list) else [target]
            answers = [options[one] if options and isinstance(one, int) else str(one)
                       for one in targets]
            text = str(fields.text(row))
            found.append(ask(text, answers[0], **self.task.meta(
                number, prompt=before + text, answers=answers)))
        return found

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """Exact match behind each filter; the score is that of the first."""
        config = self.task.fields.config
        options = next((metric for metric in config.get("metric_list") or ()
                        if metric["metric"] == "exact_match"), {})
        right = {_normalise(answer, options) for answer in conversation.meta["answers"]}
        lists = config.get("filter_list") or [{"name": "none", "filter": []}]
        extracted = {one["name"]: _filter(completion, one["filter"], self.task.fields.place)
                     for one in lists}
        scores = {name: float(text is not None and _normalise(text, options) in right)
                  for name, text in extracted.items()}
        first = lists[0]["name"]
        return Grade(scores[first], extracted[first], scores)

    def score(self, conversation: Conversation, completion: str) -> float:
        """The score of `grade`."""
        return self.grade(conversation, completion).score


def _open_rows(path: Path, config: Mapping[str, Any], source: Source) -> _YamlRows:
    asked = next((config[name] for name in ASKED_SPLITS if config.get(name)), None)
    if not asked:
        raise UserError(str(path), f"names none of {', '.join(ASKED_SPLITS)}", "name one")
    shots = config.get("fewshot_config") or {}
    num_shots = source.num_shots if source.num_shots >= 0 else config.get("num_fewshot") or 0
    if shots.get("sampler", "default") not in SAMPLERS:
        raise UserError(str(path), f"asks for the sampler {shots['sampler']!r}",
                        f"choose among {', '.join(SAMPLERS)}")
    rows = _read_split(path, config, asked)
    pool: Sequence[Row] = ()
    if num_shots and "samples" in shots:
        pool = shots["samples"]
    elif num_shots:
        split = (config.get("fewshot_split") or shots.get("split") or config.get("training_split")
                 or config.get("validation_split") or asked)
        pool = list((rows if split == asked else _read_split(path, config, split)).values())
    return _YamlRows(config.get("task") or path.stem, source, _Fields(config, str(path)), rows,
                     pool, num_shots)


def _read_split(path: Path, config: Mapping[str, Any], split: str) -> dict[str, Row]:
    rows = {}
    for file in data_files(path, config, split):
        for place, row in read_rows(file):
            if isinstance(row, Damaged):
                raise UserError(place, row.what, "correct this row, or remove it")
            rows[place] = row
    if not rows:
        raise UserError(str(path), f"has no row in its split {split}", "name another file")
    return rows


def _indices(target: Any, texts: Sequence[str]) -> tuple[int, ...]:
    """Indices of the right options; one that is none of them is out of range."""
    targets = target if isinstance(target, list) else [target]
    return tuple(one if isinstance(one, int) else
                 texts.index(one) if one in texts else len(texts) for one in targets)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _filter(completion: str, steps: Sequence[Mapping[str, Any]], place: str) -> str | None:
    """What the filters leave of a completion; None where a regex finds nothing."""
    text = completion
    for step in steps:
        match step.get("function"):
            case "take_first":
                pass
            case "remove_whitespace":
                text = text.strip()
            case "lowercase":
                text = text.lower()
            case "uppercase":
                text = text.upper()
            case "regex":
                text = _extract(text, step)
                if text is None:
                    return None
            case other:
                raise UserError(place, f"asks for the filter {other!r}",
                                f"choose among {', '.join(FILTERS)}")
    return text


def _extract(text: str, step: Mapping[str, Any]) -> str | None:
    pattern = step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)")
    found = re.findall(pattern, text)
    if not found:
        return None
    match = found[step.get("group_select", 0)]
    if isinstance(match, tuple):
        match = next((part for part in match if part), None)
    return match.strip() if match is not None else None


def _normalise(text: str, options: Mapping[str, Any]) -> str:
    """As the metric `exact_match` compares texts."""
    for pattern in options.get("regexes_to_ignore") or ():
        text = re.sub(pattern, "", text)
    if options.get("ignore_case"):
        text = text.lower()
    for name, letters in (("ignore_punctuation", string.punctuation),
                          ("ignore_numbers", string.digits)):
        if options.get(name):
            text = text.translate(str.maketrans("", "", letters))
    return text


@functools.cache
def _compile(template: str, place: str) -> Any:
    if importlib.util.find_spec("jinja2") is None:
        raise UserError(place, "needs the package jinja2", "pip install -e '.[hf]'")
    import jinja2  # an optional package
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _replace
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(place, f"has a template that is no Jinja ({first_line(error)})",
                        "correct it") from None


def _render(template: str, row: Row, place: str) -> str:
    compiled = _compile(template, place)
    try:
        return compiled.render(**row)
    except Exception as error:      # of a template, which may call what it likes
        raise UserError(place, f"its template {template[:60]!r} fails on a row "
                        f"({first_line(error)})", "correct it, or the row") from None


def _replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)
