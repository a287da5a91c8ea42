"""Task files of lm-evaluation-harness, read as they are as far as they are data.

A file may include others. What runs code (``!function``, `process_docs`), reaches a hub or needs
what is not computed here is refused by name; nothing is passed over silently but fields that
decide neither prompts nor scores.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError, first_line

LOCAL = "dataset_path: json, dataset_kwargs: {data_files: {test: FILE}}"
OUTPUT_TYPES = ("multiple_choice", "generate_until", "loglikelihood")
CHOICE_FIELD = "doc_to_choice"
DATASETS = ("json", "csv", "parquet")       # builders of the library `datasets` that read files
FIELDS = frozenset((
    "task", "output_type", "dataset_path", "dataset_kwargs", "training_split", "validation_split",
    "test_split", "fewshot_split", "fewshot_config", "num_fewshot", "description", "doc_to_text",
    "doc_to_target", "doc_to_choice", "target_delimiter", "fewshot_delimiter", "generation_kwargs",
    "filter_list", "metric_list"))
# What decides neither a prompt nor a score.
PASSED_OVER = frozenset(("task_alias", "tag", "group", "metadata", "dataset_name",
                         "should_decontaminate", "doc_to_decontamination_query"))
# Fields that change nothing while they have these values.
HARMLESS = {"repeats": (1,), "unsafe_code": (False,), "process_docs": (None,),
            "process_results": (None,), "gen_prefix": (None,), "use_prompt": (None,)}
OF_SHOTS = ("sampler", "split", "samples", "doc_to_text", "doc_to_target", "doc_to_choice",
            "target_delimiter", "fewshot_delimiter")
OF_GENERATION = ("until", "do_sample", "temperature", "max_gen_toks")


def read_task_file(path: Path) -> dict[str, Any]:
    """The fields of a task file and of those that it includes; its own ones count.

    Raises:
        UserError: PyYAML is missing; the file is no task of a simple kind; it runs code, samples
            its answers, or has a field that is not known.
    """
    config = _read(Path(path), ())
    for name, value in config.items():
        if name in FIELDS | PASSED_OVER or value in HARMLESS.get(name, ()):
            continue
        raise UserError(str(path), f"has the field {name}, which is not supported",
                        "remove it, or write the task in Python")
    config.setdefault("output_type", "generate_until")
    if config["output_type"] not in OUTPUT_TYPES:
        raise UserError(str(path), f"asks for the output type {config['output_type']!r}",
                        f"choose among {', '.join(OUTPUT_TYPES)}")
    needed = ["doc_to_text", "doc_to_target"]
    if config["output_type"] == "multiple_choice":
        needed.append(CHOICE_FIELD)
    for name in needed:
        if config.get(name) in (None, ""):
            raise UserError(str(path), f"lacks {name}", "add it")
    _check_names(path, "fewshot_config", config.get("fewshot_config") or {}, OF_SHOTS)
    _check_names(path, "generation_kwargs", config.get("generation_kwargs") or {}, OF_GENERATION)
    generation = config.get("generation_kwargs") or {}
    if generation.get("do_sample") or float(generation.get("temperature", 0)) > 0:
        raise UserError(str(path), "samples its answers",
                        "let it take the likeliest: temperature 0")
    return config


def data_files(path: Path, config: Mapping[str, Any], split: str) -> list[Path]:
    """The local files of a split; relative names are found beside the task file, or where we run.

    Raises:
        UserError: the rows are on a hub, or a file is missing.
    """
    if config.get("dataset_path") not in DATASETS:
        raise UserError(str(path), f"reads the dataset {config.get('dataset_path')!r} of a hub",
                        f"name local files, as in {LOCAL}")
    given = (config.get("dataset_kwargs") or {}).get("data_files") or {}
    by_split = given if isinstance(given, Mapping) else {"train": given}
    if split not in by_split:
        raise UserError(str(path), f"names no files of its split {split}",
                        f"name them, or choose among {', '.join(by_split) or 'none'}")
    names = by_split[split] if isinstance(by_split[split], list) else [by_split[split]]
    return [_find(path, str(name)) for name in names]


def _find(path: Path, name: str) -> Path:
    for place in (path.parent / name, Path(name)):
        if place.is_file():
            return place
    raise UserError(str(path), f"names the file {name}, which does not exist", "correct the name")


def _check_names(path: Path, field: str, held: object, known: tuple[str, ...]) -> None:
    if not isinstance(held, Mapping):
        raise UserError(str(path), f"has a {field} that is no mapping", "correct it")
    if unknown := [name for name in held if name not in known]:
        raise UserError(str(path), f"has {field}.{unknown[0]}, which is not supported",
                        f"choose among {', '.join(known)}")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(str(path), "includes itself", "remove the include")
    if importlib.util.find_spec("yaml") is None:
        raise UserError(str(path), "needs the package pyyaml", "pip install -e '.[hf]'")
    import yaml  # an optional package

    class Loader(yaml.SafeLoader):
        """Plain data alone."""

    def refuse(loader: yaml.Loader, node: yaml.Node) -> None:
        del loader
        raise UserError(f"{path}, line {node.start_mark.line + 1}",
                        f"calls !function {getattr(node, 'value', '')}, and no code of a task file "
                        "is run", "write it as a Jinja template, or the task in Python")

    Loader.add_constructor("!function", refuse)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})",
                        "correct the name") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"is no YAML ({first_line(error)})", "correct it") from None
    if not isinstance(config, dict):
        raise UserError(str(path), "is no mapping of fields", "write one task a file")
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / str(name), (*seen, path.resolve()))
    return merged | config
