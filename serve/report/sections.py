"""The sections of a report, each from a `Run` to markup."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from core.page import layout
from core.page.charts import Line, Panel, draw_bar, draw_panel
from core.page.markup import Markup, count, decimal, join, percent, size, tag
from core.progress import format_count, format_secs
from data.card import funnel as card_funnel
from eval.statistics import Z_95
from serve.report.charts import draw_lineage, draw_whiskers
from serve.report.run import (
    ARTIFACTS,
    MODELS,
    NUM_QUESTIONS,
    Answers,
    Estimate,
    Run,
    proportion,
)

MODEL_NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "rl": "RL"}


def headline(run: Run) -> Markup:
    """The summary of what was built, and tiles of key numbers."""
    corpus, base, shape = run.corpus.manifest, run.artifacts["base"].metrics, run.shape
    pairs = run.artifacts["pairs"].metrics["pairs"]
    lede = (f"{count(corpus['documents_in'])} raw documents were curated to "
            f"{size(corpus['bytes'])} of text; a {format_count(base['params'])}-parameter decoder "
            f"was pretrained on it, fine-tuned on "
            f"{count(run.artifacts['sft'].metrics['conversations'])} conversations, aligned with "
            f"{count(pairs)} preference pairs, and rewarded for right answers.")
    bpb = run.evals["base"]
    reward = run.artifacts["reward"].metrics
    tiles = [
        ("Corpus", size(corpus["bytes"]), f"{count(corpus['documents'])} documents, "
         f"{format_count(run.artifacts['tokens'].metrics['tokens'])} tokens"),
        ("Model", f"{format_count(base['params'])} parameters",
         f"{shape['N']} layers of width {shape['D']}, vocabulary {count(shape['V'])}"),
        ("Pretraining", f"{format_count(base['tokens'])} tokens",
         f"{count(base['steps'])} steps, {format_count(run.tokens_per_sec('base'))} tokens/s"),
        ("Time", f"{run.secs() / 60:.1f} min", f"{len(ARTIFACTS)} stages together"),
        ("Bits per byte, base", decimal(bpb["bpb"]),
         f"xz -9e {decimal(bpb['xz_bpb'])} · unigram {decimal(bpb['unigram_bpb'])}"),
        ("Multiple choice, %", _climb(run, "documentation_acc"),
         f"chance {percent(bpb['documentation_chance'], 0)}"),
        ("Verifiable tasks, %", _climb(run, "verifiable_acc"), "right by exact match"),
        ("Second question, %", _climb(run, "turns_acc"), "of a conversation, right"),
        ("Reward model", f"{percent(reward.get('accuracy', math.nan))} right",
         f"of held-out pairs; by length alone {percent(_by_length(reward))}"),
        _duel(run, "dpo"),
        ("Reinforcement learning", f"{decimal(_last(run.curve('rl', 'kl')), 2)} nats",
         f"KL of an answer from {MODEL_NAMES['dpo']}, for a reward of "
         f"{decimal(_first(run.curve('rl', 'reward')), 2)} that became "
         f"{decimal(_last(run.curve('rl', 'reward')), 2)}"),
        _duel(run, "rl")]
    return layout.headline("Heartwood · run report", "From raw pages to an assistant", lede, tiles)


def _duel(run: Run, model: str) -> tuple[str, str, str]:
    """The tile of a model's win rate."""
    metrics = run.evals[model]
    low, high = metrics.get("win_rate_ci", (math.nan, math.nan))
    return (f"{MODEL_NAMES[model]} against {_opponent(metrics)}",
            f"{percent(metrics.get('win_rate', math.nan))} won",
            f"95 % interval {percent(low)} to {percent(high)}")


def _first(points: Sequence[tuple[float, float]]) -> float:
    return points[0][1] if points else math.nan


def _last(points: Sequence[tuple[float, float]]) -> float:
    return points[-1][1] if points else math.nan


def _by_length(reward: Mapping[str, Any]) -> float:
    """Accuracy of preferring by length alone, the longer or the shorter answer as data have it."""
    return max(reward.get("longer_accuracy", math.nan), reward.get("shorter_accuracy", math.nan))


def _opponent(metrics: Mapping[str, Any]) -> str:
    """The model that an evaluation's win rate is against."""
    against = metrics.get("against", "none")
    return MODEL_NAMES.get(against.removeprefix("eval_"), against)


def _climb(run: Run, metric: str) -> list[Markup]:
    return [tag("span", percent(run.evals[model].get(metric, math.nan), 0).removesuffix(" %"),
                tag("small", MODEL_NAMES[model]), class_=f"step {model}") for model in MODELS]


def curation(run: Run) -> Markup:
    """The funnel by stage and domain, losses of each domain, and removal reasons."""
    manifest = run.corpus.manifest
    return layout.section(
        "The funnel", f"{percent(manifest['documents'] / max(manifest['documents_in'], 1), 0)} of "
        f"the documents and {percent(manifest['bytes'] / max(manifest['bytes_in'], 1), 0)} of the "
        "bytes are left to train on. Bars count documents, tints are domains, hatched is what the "
        "stage removed; the thin line below is the text that is left.",
        card_funnel.draw_funnel(run.corpus), card_funnel.domain_table(run.corpus),
        tag("p", card_funnel.trim_note(run.corpus), class_="note"),
        tag("h3", "Why documents were removed"),
        tag("p", f"Open a reason to read up to {card_funnel.NUM_SAMPLES} of its documents, those "
            "of the smallest content hash. The corpus' own page, report.html in its folder, shows "
            "the rest: signals, duplicates, languages, speed.", class_="note"),
        card_funnel.reasons(run.corpus))


def training(run: Run) -> Markup:
    """Curves of all trainings."""
    base, evaluation = run.artifacts["base"], run.evals["base"]
    section = base.lineage["config"]["pretrain"]
    annealed = round(section["anneal_frac"] * section["num_steps"])
    phase = ((section["num_steps"] - annealed, section["num_steps"], "annealing")
             if annealed else None)
    panels = [
        Panel("Pretraining loss", "nats per token",
              [Line("training", run.curve("base", "loss"), "base")], phase=phase),
        Panel("Held-out bits per byte", "during pretraining, lower is better",
              [Line("base", run.curve("base", "heldout_bpb"), "base")],
              [("xz -9e", evaluation["xz_bpb"]), ("unigram", evaluation["unigram_bpb"])], phase),
        Panel("SFT loss", "nats per assistant token",
              [Line("training", run.curve("sft", "loss"), "sft")]),
        Panel("Reward model", "share of training pairs ranked right",
              [Line("training", run.curve("reward", "accuracy"), "quiet")], [("coin", 0.5)]),
        Panel("DPO loss", "nats per pair", [Line("training", run.curve("dpo", "loss"), "dpo")],
              [("ln 2", math.log(2))], digits=3),
        Panel("DPO implicit rewards", "β · log-probability ratio to SFT, nats",
              [Line("margin", run.curve("dpo", "margin"), "dpo"),
               Line("chosen", run.curve("dpo", "chosen_reward"), "quiet"),
               Line("rejected", run.curve("dpo", "rejected_reward"), "quiet dashed")]),
        Panel("DPO accuracy", "share of pairs ranked right",
              [Line("training", run.curve("dpo", "accuracy"), "dpo")], [("coin", 0.5)]),
        Panel("RL reward", "share of sampled answers to new questions that are right",
              [Line("mean", run.curve("rl", "reward"), "rl")]),
        Panel("RL divergence", "KL of an answer from DPO, nats",
              [Line("estimate", run.curve("rl", "kl"), "rl")])]
    return layout.section(
        "Learning", (f"Pretraining ends with {percent(section['anneal_frac'], 0)} of its steps on "
                     "the best data (shaded). " if annealed else "")
        + f"{percent(base.metrics['goodput_frac'], 0)} of pretraining's time was spent on steps. "
        "Long curves: every logged value faint, their running mean bold and its last value "
        "printed.",
        tag("div", [draw_panel(panel) for panel in panels], class_="panels"))


def compression(run: Run) -> Markup:
    """Bits per byte of the models against xz and the unigram model."""
    base, corpus = run.evals["base"], run.corpus.manifest
    if run.artifacts["eval_base"].metrics["bpb"] is None:
        return layout.section("Bits per byte", "Not measured: the corpus holds no page out.")
    rows = [("unigram model", base["unigram_bpb"], "quiet"),
            ("xz -9e", base["xz_bpb"], "quiet"),
            *((MODEL_NAMES[model], run.evals[model]["bpb"], model) for model in MODELS)]
    longest = max((value for _, value, _ in rows if math.isfinite(value)), default=1.0)
    return layout.section(
        "Bits per byte", f"On {count(corpus['heldout_documents'])} held-out pages "
        f"({size(corpus['heldout_bytes'])}) that nothing in training resembles. Lower is better. "
        f"The base model needs {_fewer(base['bpb'], base['xz_bpb'])} than xz -9e and "
        f"{_fewer(base['bpb'], base['unigram_bpb'])} than the frequencies of single tokens. "
        f"Fine-tuning costs {decimal(run.evals['sft']['bpb'] - base['bpb'])} bits per byte, "
        f"DPO {decimal(run.evals['dpo']['bpb'] - base['bpb'])} and reinforcement learning "
        f"{decimal(run.evals['rl']['bpb'] - base['bpb'])}: the alignment tax.",
        tag("div", [tag("div", tag("span", name, class_=f"what {style}"),
                        draw_bar(value, longest, decimal(value), style), class_="bar-row")
                    for name, value, style in rows], class_="bars"))


def _fewer(ours: float, theirs: float) -> str:
    share = 1 - ours / theirs if theirs > 0 else math.nan
    return f"{percent(abs(share), 0)} {'fewer' if share >= 0 else 'more'} bits"


def evaluation(run: Run) -> Markup:
    """The table of the models, with intervals drawn."""
    evals = run.evals

    def shares(value: str, items: str) -> dict[str, Estimate]:
        return {model: proportion(evals[model][value], evals[model][items]) for model in MODELS}

    base = evals["base"]
    duels = [model for model in MODELS if "win_rate" in evals[model]]
    rows = []
    for task in base["tasks"]:
        chance, items = base.get(f"{task}_chance"), count(base[f"{task}_items"])
        note = (f"{items} answers, exact match" if chance is None else
                f"{items} multiple-choice questions; line: chance, {percent(chance, 0)}")
        rows.append(_estimate_row(task.capitalize(), note,
                                  shares(f"{task}_acc", f"{task}_items"), chance))
    rows += [_estimate_row(family, "", estimates, style="family")
             for family, estimates in run.families().items()]
    rows += [
        _estimate_row("Open answers", f"{count(base['open_items'])} sampled answers, mean score",
                      {model: _normal(evals[model]["open_score"], evals[model]["open_stderr"])
                       for model in MODELS}),
        _estimate_row("Win rate", "on the open answers, " + ", ".join(
                          f"{MODEL_NAMES[model]} over {_opponent(evals[model])}"
                          for model in duels) + "; line: a draw",
                      {model: Estimate(evals[model]["win_rate"], *evals[model]["win_rate_ci"])
                       for model in duels}, 0.5)]
    bpb = tag("div", tag("span", tag("b", "Bits per byte"), tag("small", "lower is better"),
                         class_="what"), tag("span", class_="no-plot"),
              [tag("span", decimal(evals[model]["bpb"]), class_=f"num {model}")
               for model in MODELS], class_="estimate")
    return layout.section(
        "Base, SFT, DPO, RL", "Dots are means, whiskers 95 % intervals (Wilson for shares of right "
        "answers, normal for the others). The base model is shown solved examples, the others "
        "are asked directly.", tag("div", _estimate_head(), rows, bpb, class_="estimates"))


def _estimate_head() -> Markup:
    axis = tag("span", [tag("span", f"{tick} %", style=f"left:{tick}%") for tick in (0, 50, 100)],
               class_="axis")
    keys = [tag("span", MODEL_NAMES[model], class_=f"num key {model}") for model in MODELS]
    return tag("div", tag("span"), axis, keys, class_="estimate head")


def _normal(mean: float, stderr: float) -> Estimate:
    return Estimate(mean, max(mean - Z_95 * stderr, 0.0), min(mean + Z_95 * stderr, 1.0))


def _estimate_row(name: str, note: str, estimates: Mapping[str, Estimate],
                  level: float | None = None, style: str = "") -> Markup:
    def cell(model: str) -> Markup:
        if model not in estimates:
            return tag("span", "–", class_="num quiet")
        value, low, high = dataclasses.astuple(estimates[model])
        ends = f"{100 * low:.1f} – {100 * high:.1f}" if math.isfinite(high - low) else None
        return tag("span", percent(value), tag("small", ends), class_=f"num {model}")

    return tag("div", tag("span", tag("b", name), tag("small", note), class_="what"),
               draw_whiskers(estimates, level), [cell(model) for model in MODELS],
               class_=f"estimate {style}")


def answers(run: Run) -> Markup:
    """The same questions answered by every model."""
    shown = run.answers()
    how = (f"Not picked by hand: {NUM_QUESTIONS['verifiable']} verifiable questions (greedy "
           f"answers) and {NUM_QUESTIONS['open']} documentation questions (sampled answers, scored "
           "by the task), those whose text has the smallest SHA-256.")
    return layout.section("The same questions to each", how, [_answers(one) for one in shown])


def _answers(one: Answers) -> Markup:
    prompts: dict[str, list[str]] = defaultdict(list)
    for model in MODELS:
        prompts[one.rows[model]["prompt"]].append(MODEL_NAMES[model])
    columns = [tag("div", tag("h4", MODEL_NAMES[model], _verdict(one, one.rows[model]["score"]),
                              class_=f"key {model}"),
                   tag("pre", one.rows[model]["completion"] or "(nothing)")) for model in MODELS]
    return tag("article", tag("h3", one.question),
               tag("p", "Reference: ", tag("q", one.reference), class_="reference"),
               tag("div", columns, class_="columns"),
               tag("details", tag("summary", "Literal prompts"),
                   [join(tag("p", " and ".join(models)), tag("pre", prompt))
                    for prompt, models in prompts.items()]), class_="question")


def _verdict(one: Answers, score: float) -> Markup:
    if one.source == "open":
        return tag("span", f"score {decimal(score, 2)}", class_="verdict")
    right = score >= 1
    return tag("span", "✓ right" if right else "✗ wrong",
               class_=f"verdict {'right' if right else 'wrong'}")


def lineage(run: Run) -> Markup:
    """The graph of artifacts, and command, time, memory and code of every stage."""
    artifacts = [run.artifacts[name] for name in ARTIFACTS]
    rows = [[tag("b", artifact.name), tag("code", artifact.lineage["fingerprint"][:8]),
             format_secs(artifact.metrics["secs"]), size(artifact.metrics["peak_memory_bytes"]),
             layout.commit(artifact.lineage), layout.command(artifact.lineage["command"])]
            for artifact in artifacts]
    warnings = [tag("p", f"Warning: {name} was built from another {field} than the one shown "
                     "here.", class_="warning") for name, field in run.foreign_parents()]
    return layout.section(
        "Where everything comes from", "Each artifact names its parents by fingerprint. A click "
        "selects a whole command; time and memory are those of the process that finished it.",
        warnings,
        tag("div", draw_lineage({a.name: a.lineage["fingerprint"] for a in artifacts},
                                run.edges()), class_="scroll"),
        layout.table(["artifact", "fingerprint", "time", "peak memory", "commit", "command"], rows,
               "commands"),
        _versions(run), tag("h3", "Configs"), [
            tag("details", tag("summary", artifact.name),
                tag("pre", json.dumps(artifact.lineage["config"], indent=2)), class_="config")
            for artifact in artifacts])


def _versions(run: Run) -> Markup:
    """Interpreter, platform and library versions, grouped by stages with equal ones."""
    stages: dict[str, list[str]] = defaultdict(list)
    for artifact in run.artifacts.values():
        stages[layout.versions(artifact.lineage)].append(artifact.name)
    started = min(artifact.lineage["started"] for artifact in run.artifacts.values())
    dirty = any(artifact.lineage["uncommitted_changes"] for artifact in run.artifacts.values())
    return tag("div", [tag("p", tag("b", "All stages" if len(stages) == 1 else ", ".join(names)),
                           ": ", text) for text, names in stages.items()],
               tag("p", f"First stage started {started}.",
                   " + marks a commit with uncommitted changes." if dirty else ""), class_="note")
