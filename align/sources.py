"""What a stage of alignment learns from: files in any layout, and built-in tasks.

`inputs` names files or folders by commas. `PATH@1000` takes 1,000 of a file's rows, drawn by the
seed; `PATH@0.5` half of them, `PATH@2.0` each of them twice: a number with a point is a share.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from ml_collections import ConfigDict

from core.artifacts import digest
from core.errors import UserError
from data.chat import Conversation
from data.layouts.faults import Faults
from data.layouts.instructions import Instruction, read_instructions
from data.layouts.prompts import read_prompts
from data.layouts.read import read_examples
from data.preferences import Labelled, Preference
from eval.tasks.registry import open_tasks


class Source(NamedTuple):
    """A file or folder of inputs.

    Attributes:
        path: of the file or folder.
        count: rows that are taken; None where `share` decides.
        share: passes over its rows.
    """

    path: Path
    count: int | None = None
    share: float = 1.0


def parse_inputs(inputs: str, stage: str) -> list[Source]:
    """The sources that a stage's `inputs` names.

    Raises:
        UserError: a path does not exist, or its amount is no positive number.
    """
    sources = []
    for part in filter(None, (part.strip() for part in inputs.split(","))):
        path, _, amount = part.rpartition("@") if re.search(r"@[-\d.]+$", part) else (part, "", "")
        if not Path(path).exists():
            raise UserError(f"{stage}.inputs={part!r}", "there is no such file or folder",
                            "correct the path")
        count = int(amount) if amount.isdigit() else None
        try:
            share = float(amount or 1) if count is None else 1.0
        except ValueError:
            share = 0.0
        if count == 0 or not 0 < share < 1e6:
            raise UserError(f"{stage}.inputs={part!r}", "takes no row",
                            "write PATH@1000 for a number of rows, PATH@0.5 for a share")
        sources.append(Source(Path(path), count, share))
    return sources


def fingerprint_inputs(section: ConfigDict) -> dict[str, str]:
    """Digests of the contents of all files that a section's `inputs` names, for the lineage."""
    found = {}
    for path, _, _ in parse_inputs(section.inputs, section.out):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() \
            else [path]
        found[str(path)] = digest([digest_file(file) for file in files])
    return found


def digest_file(path: Path) -> str:
    """Digest of a file's content."""
    hasher = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            hasher.update(part)
    return hasher.hexdigest()


def open_conversations(section: ConfigDict, corpus: Path | None,
                       faults: Faults) -> Iterator[Conversation]:
    """The training questions of all tasks, then the conversations of all inputs."""
    for task, count in open_tasks(section.tasks, corpus):
        for conversation in task.conversations("train", count, section.seed):
            meta = {"source": task.name, "place": f"task {task.name}", **conversation.meta}
            yield Conversation(conversation.messages, meta)
    yield from _open_files(section, "conversations", faults)


def open_preferences(section: ConfigDict, faults: Faults,
                     kind: str = "preferences") -> Iterator[Preference | Labelled]:
    """The preferences, or with `kind` "labels" the labels, of all inputs."""
    return _open_files(section, kind, faults)


def open_prompts(section: ConfigDict, corpus: Path | None,
                 faults: Faults) -> Iterator[Conversation]:
    """The training questions of all tasks without their answers, then the prompts of all inputs.

    Of inputs see `data.layouts.prompts.read_prompts`.
    """
    for task, count in open_tasks(section.tasks, corpus):
        for conversation in task.conversations("train", count, section.seed):
            meta = {"source": task.name, "place": f"task {task.name}"}
            yield Conversation(conversation.messages[:-1], meta)
    for source in parse_inputs(section.inputs, section.out):
        def read(path: Path = source.path, counted: Faults = faults) -> Iterator[Conversation]:
            return read_prompts(path, counted)

        yield from _take(read, source, section)


def open_seeds(section: ConfigDict, faults: Faults) -> Iterator[Instruction]:
    """The instructions with input and output of all inputs; see `read_instructions`."""
    for source in parse_inputs(section.inputs, section.out):
        def read(path: Path = source.path, counted: Faults = faults) -> Iterator[Instruction]:
            return read_instructions(path, counted)

        yield from _take(read, source, section)


def prompt_of(item: Conversation | Preference | Labelled) -> tuple[tuple[str, str], ...]:
    """Roles and contents of what was asked: messages up to the first answer, or the prompt."""
    if not isinstance(item, Conversation):
        return tuple((message.role, message.content) for message in item.prompt.messages)
    asked = itertools.takewhile(lambda message: message.role != "assistant", item.messages)
    return tuple((message.role, message.content) for message in asked)


def is_heldout(item: Conversation | Preference | Labelled, frac: float) -> bool:
    """Whether an item belongs to the held-out share; all with the same prompt are on one side."""
    prompt = "\n".join(f"{role}: {content}" for role, content in prompt_of(item))
    return xxhash.xxh3_64_intdigest(prompt.encode()) < frac * 2**64


def _open_files(section: ConfigDict, kind: str, faults: Faults) -> Iterator[Any]:
    for source in parse_inputs(section.inputs, section.out):
        def read(path: Path = source.path, counted: Faults = faults) -> Iterator[Any]:
            return read_examples(path, kind, layout=section.layout, faults=counted)

        yield from _take(read, source, section)


def _take(read: Any, source: Source, section: ConfigDict) -> Iterable[Any]:
    """As many of a source's rows as are wanted, in their order; some of them are drawn."""
    rng = random.Random(f"{section.seed}/{source.path.name}")
    if source.count is None:
        passes, rest = divmod(source.share, 1)
        for _ in range(int(passes)):
            yield from read()
        if rest:
            yield from (item for item in read() if rng.random() < rest)
        return
    # Rows are counted by a first pass, whose faults are those of the second.
    num_rows = sum(1 for _ in read(counted=Faults(section.out)))
    if num_rows < source.count:
        raise UserError(f"{section.out}.inputs: {source.path}@{source.count}",
                        f"holds {num_rows} rows", "take fewer, or a share such as @2.0")
    picked = set(rng.sample(range(num_rows), source.count))
    yield from (item for number, item in enumerate(read()) if number in picked)
