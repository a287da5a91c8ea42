"""Looks into evaluations: single items, what two of them answer differently, a table of all.

    python -m eval.inspect items EVALUATION TASK [--verdict=wrong] [--num=5]
    python -m eval.inspect item EVALUATION TASK ID [--model=DIR]
    python -m eval.inspect diff A B [--task=TASK] [--num=5]
    python -m eval.inspect table EVALUATION... [--baselines=v2]
    python -m eval.inspect page EVALUATION... --html=suite.html

An evaluation is a folder that `eval.run` wrote. `item` shows the literal prompt with a bar between
tokens, every option with its log-probabilities, or the answer, what was extracted of it, and the
verdict; the tokens are those of the evaluated model's tokenizer, or of `--model`. `diff` compares
two models, or two settings of one, on the items that both were asked. `table` prints all scores,
and what sums them up: mean win rate, mean above chance, and CORE of the tasks that are asked in its
form, with a table of its baselines. `page` writes the accuracies with a link to every item.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import parent, read_json, read_jsonl, read_lineage
from core.errors import UserError
from core.page.markup import visible
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from eval.aggregate.core import BASELINES, CenteredMean, centered_mean, core
from eval.aggregate.table import format_table, name_evaluations, read_evaluations
from eval.aggregate.win_rate import mean_win_rates
from eval.benchmarks.registry import core_name
from eval.measures.choices import encode_pairs
from eval.records import METRICS, Record, verdict
from eval.respond.local import begin_text
from eval.statistics import paired_difference, sign_test
from eval.suite_page import write_suite_page

VERDICTS = ("all", "right", "wrong")
BAR = "|"


def tasks_of(folder: Path) -> list[str]:
    """Names of the tasks of an evaluation.

    Raises:
        UserError: the folder holds none.
    """
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    if "tasks" not in metrics:
        raise UserError(str(folder), "holds no evaluation", "name a folder that eval.run wrote")
    return metrics["tasks"]


def records_of(folder: Path, task: str) -> dict[str, Record]:
    """The records of a task by the items' ids.

    Raises:
        UserError: the evaluation has no such task.
    """
    if task not in tasks_of(folder):
        raise UserError(f"task {task!r}", f"is none of those of {folder}",
                        f"choose among {', '.join(tasks_of(folder))}")
    return {record["id"]: record for record in read_jsonl(folder / f"{task}.jsonl")}


def items(folder: Path, task: str, kind: str, num: int) -> dict[str, Any]:
    """Prints a line for each of the first items with a verdict; returns their ids."""
    if kind not in VERDICTS:
        raise UserError(f"--verdict={kind}", f"is none of {', '.join(VERDICTS)}",
                        "choose one of them")
    records = records_of(folder, task)
    picked = [name for name, record in records.items()
              if kind == "all" or (verdict(record) >= 0.5) == (kind == "right")]
    for name in picked[:num]:
        print(f"{name}  {verdict(records[name]):.3g}  {_line(records[name]['question'])}")
    return {"task": task, "verdict": kind, "items": len(picked), "of": len(records),
            "shown": picked[:num]}


def item(folder: Path, task: str, name: str, model: Path | None) -> dict[str, Any]:
    """Prints all of one item; returns its record.

    Raises:
        UserError: there is no such item.
    """
    records = records_of(folder, task)
    if name not in records:
        raise UserError(f"item {name!r}", f"is none of {task}", "choose one of those that `python "
                        f"-m eval.inspect items {folder} {task}` lists")
    record, tokenizer = records[name], open_tokenizer(folder, model)
    lines = describe_choice(record, tokenizer) if "choices" in record else describe_answer(
        record, tokenizer)
    print("\n".join(visible(line) if line else "" for line in lines))
    return dict(record)


def open_tokenizer(folder: Path, model: Path | None) -> Tokenizer:
    """The tokenizer of the evaluated model, or of another folder of a model."""
    if model is None:
        config = read_lineage(folder)["config"]["eval"]
        model, _ = parent(folder.parent, "eval.model", config["model"])
    return load_tokenizer(model / "tokenizer")


def describe_choice(record: Record, tokenizer: Tokenizer) -> Iterator[str]:
    """A multiple-choice question, line by line."""
    yield f"{record['id']}  {record['group']}".rstrip()
    choices, contexts = record["choices"], record["contexts"]
    if record["is_literal"]:
        every = list(contexts) * (len(choices) if len(contexts) == 1 else 1)
        pairs = encode_pairs(tokenizer, list(zip(every, choices)), begin_text(tokenizer))
        shown = [(with_bars(pair.context, tokenizer), with_bars(pair.tokens, tokenizer))
                 for pair in pairs]
    else:
        prompts = [with_bars(tokenizer.encode_rendered(context, "", begins=True), tokenizer)
                   for context in contexts]
        shown = list(zip(prompts * (len(choices) if len(prompts) == 1 else 1), choices))
    contexts_shown = dict.fromkeys(context for context, _ in shown)
    for context in contexts_shown:
        yield from ("", context)
    yield ""
    right = {name: is_right for name, is_right in record["right"].items()}
    for number, (context, option) in enumerate(shown):
        mark = "*" if number in record["answers"] else " "
        before = f"  after {list(contexts_shown).index(context) + 1}" * (len(contexts_shown) > 1)
        baseline = (f"  baseline {record['baseline_nats'][number]:.4f}"
                    if record["baseline_nats"] else "")
        yield (f"{mark} {record['logps_nats'][number]:10.4f} nats  "
               f"{record['num_tokens'][number]:3d} tokens{baseline}{before}  {option}")
    yield ""
    yield "  ".join(f"{METRICS[name]} {'right' if is_right else 'wrong'}"
                    for name, is_right in right.items())
    if record["is_cut"]:
        yield "the context was cut at its beginning: it exceeds the model's"


def describe_answer(record: Record, tokenizer: Tokenizer) -> Iterator[str]:
    """A generated answer, line by line."""
    yield f"{record['id']}  {record['family']}"
    yield from ("", with_bars(tokenizer.encode_rendered(record["prompt"], "", begins=True),
                              tokenizer))
    yield from ("", f"answer ({record['finish']}, {record['num_tokens']} tokens): "
                f"{record['completion']}")
    yield f"extracted: {record['extracted']}"
    yield f"reference: {record['reference']}"
    measures = "".join(f"  {name} {value:.3g}" for name, value in record["measures"].items())
    yield f"score {record['score']:.3g}{measures}"


def with_bars(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Text with a bar between its tokens; line ends are written as such, and followed by one."""
    return BAR.join(tokenizer.decode([token]) for token in tokens)


def diff(first: Path, second: Path, task: str | None, num: int) -> dict[str, Any]:
    """Prints the items that two evaluations judge differently, and the paired differences.

    Returns:
        By task the number of shared items, of those that only one of them answers right, the mean
        difference, first less second, with its 95 % interval and the p-value of a sign test.

    Raises:
        UserError: they share no task, or no item of one.
    """
    shared = [name for name in tasks_of(first) if name in tasks_of(second)
              and task in (None, name)]
    if not shared:
        raise UserError(f"{first}, {second}", "have no task in common" if task is None else
                        f"have not both the task {task!r}", "name evaluations of the same tasks")
    found = {}
    for name in shared:
        ours, theirs = records_of(first, name), records_of(second, name)
        ids = [one for one in ours if one in theirs
               and _prompt(ours[one]) == _prompt(theirs[one])]
        if not ids:
            raise UserError(f"task {name!r}", "was asked with other prompts in one of them",
                            "evaluate both with the same settings")
        scores = [[verdict(records[one]) for one in ids] for records in (ours, theirs)]
        estimate = paired_difference(*scores, name=name)
        found[name] = {
            "items": len(ids), "first_only": sum(a > b for a, b in zip(*scores)),
            "second_only": sum(a < b for a, b in zip(*scores)), "difference": estimate.value,
            "low": estimate.low, "high": estimate.high, "p_value": sign_test(*scores, name=name),
            "other_prompts": len({*ours, *theirs}) - len(ids)}
        print(f"{name}: {estimate.value:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f}) on "
              f"{len(ids):,} items")
        differing = [one for one, a, b in zip(ids, *scores) if a != b]
        for one in itertools.islice(differing, num):
            print(f"  {one}  {verdict(ours[one]):.3g} / {verdict(theirs[one]):.3g}  "
                  f"{_line(ours[one]['question'])}")
    return {"first": str(first), "second": str(second), "tasks": found}


def table(folders: Sequence[Path], baselines: str) -> dict[str, Any]:
    """Prints the scores of evaluations, and their aggregates.

    Returns:
        By model the mean win rate over accuracies and bits per byte (None of one model alone), the
        mean of accuracies centred by chance, and CORE, each with the number of its tasks; None
        without a task.

    Raises:
        UserError: a folder holds no evaluation, two have one name, or there is no such table.
    """
    scores = read_evaluations(name_evaluations(folders))
    print("\n".join(format_table(scores)))
    judged = scores.of_metrics(("acc", "bpb"))
    win_rates = mean_win_rates(judged).rates
    found: dict[str, Any] = {}
    for model in scores.models:
        accuracies = {task: cell for (name, (task, metric)), cell in scores.cells.items()
                      if name == model and metric == "acc"}
        chances = {task: cell.chance for task, cell in accuracies.items() if cell.chance}
        asked_as_core = {name: cell for task, cell in accuracies.items()
                         if (name := core_name(task)) in BASELINES}
        means = [mean for mean in (
            centered_mean(accuracies, chances, "chance") if chances else None,
            core(asked_as_core, baselines) if asked_as_core else None) if mean]
        found[model] = {"win_rate": win_rates[model], "centered": {
            mean.table: {"value": mean.value, "stderr": mean.stderr, "tasks": mean.coverage}
            for mean in means}}
        rate = "" if win_rates[model] is None else f"mean win rate {win_rates[model]:.4f}"
        print(f"{model}: " + "  ".join(filter(None, [rate, *map(_describe_mean, means)])))
    return {"models": found}


def _describe_mean(mean: CenteredMean) -> str:
    error = "" if mean.stderr is None else f" +- {mean.stderr:.4f}"
    name = "above chance" if mean.table == "chance" else f"CORE by {mean.table}"
    return f"{name} {mean.value:.4f}{error} ({mean.coverage} tasks)"


def _prompt(record: Record) -> Any:
    """What the two models must have been asked alike; chat templates may differ."""
    return record["contexts"] if record.get("is_literal") else record["question"]


def _line(text: str) -> str:
    line = " ".join(text.split())
    return visible(line if len(line) <= 80 else f"{line[:79]}…")


def main(words: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the command given by `words`."""
    match words:
        case ["items", folder, task]:
            return items(Path(folder), task, values["verdict"], values["num"])
        case ["item", folder, task, name]:
            return item(Path(folder), task, name, values["model"] and Path(values["model"]))
        case ["diff", first, second]:
            return diff(Path(first), Path(second), values["task"], values["num"])
        case ["table", *folders] if folders:
            return table(list(map(Path, folders)), values["baselines"])
        case ["page", *folders] if folders:
            if values["html"] is None:
                raise UserError("--html", "is missing", "try --html=suite.html")
            return write_suite_page(list(map(Path, folders)), Path(values["html"]))
    raise UserError(" ".join(words) or "no command", "is not a command of eval.inspect",
                    "write `items EVALUATION TASK`, `item EVALUATION TASK ID`, `diff A B`, "
                    "`table EVALUATION...` or `page EVALUATION...`")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "item: directory of a model with the tokenizer to show.")
    flags.DEFINE_string("task", None, "diff: the only task to compare.")
    flags.DEFINE_string("verdict", "wrong", "items: all, right or wrong.")
    flags.DEFINE_integer("num", 5, "items, diff: how many to print.", lower_bound=0)
    flags.DEFINE_string("baselines", "v2", "table: of CORE, v0, v1 or v2.")
    flags.DEFINE_string("html", None, "page: the file to write.")
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional, flags.FLAGS.flag_values_dict()))
