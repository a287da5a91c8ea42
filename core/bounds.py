"""Bounds of the numbers in a config, by name of the field: the one place where a number is refused.

A command checks its whole config before it touches a folder or compiles anything. `BOUNDS` is
looked up by the end of a field's path, the longest end first: `pairs.temperature` before
`temperature`. A `*` stands for a name of the user's own, a domain or a task, which a flag may add:
``--config.pretrain.mixture.web=1.0``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from core.errors import UserError

MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = 3.4e38


class Bounds(NamedTuple):
    """What a number may be.

    Attributes:
        low, high: the range, both ends included.
        whole: whether it counts something.
        without: an end of the range that is refused.
        also: a number beside the range that is accepted.
        note: what a special number means, for the message.
    """

    low: float = 0.0
    high: float = MAX_FLOAT32
    whole: bool = False
    without: float | None = None
    also: float | None = None
    note: str = ""

    def hold(self, value: Any) -> bool:
        """Whether `value` is such a number."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        return value == self.also or (self.low <= value <= self.high and value != self.without)

    def rule(self) -> str:
        """The bounds in words."""
        low = f"{'above' if self.low == self.without else 'at least'} {self._text(self.low)}"
        high = f" and {'below' if self.high == self.without else 'at most'} {self._text(self.high)}"
        if self.high >= MAX_FLOAT32:
            high = "" if self.whole else " and finite"
        return f"must be a {'whole ' * self.whole}number, {low}{high}"

    def _text(self, bound: float) -> str:
        return str(bound) if self.whole else f"{bound:g}"


def count(low: int = 1, high: float = MAX_INT32, note: str = "") -> Bounds:
    """Bounds of a whole number."""
    return Bounds(low, high, whole=True, note=note)


def size(note: str = "") -> Bounds:
    """Bounds of bytes or tokens on a disk, which 32 bits need not hold; 0 if it has a `note`."""
    return count(0 if note else 1, math.inf, note)


FRACTION = Bounds(high=1.0)
POSITIVE = Bounds(without=0.0)
NOT_NEGATIVE = Bounds()
DECAY = Bounds(high=1.0, without=1.0)      # of an exponential average
FINITE = Bounds(low=-MAX_FLOAT32)
AXIS = Bounds(1, MAX_INT32, whole=True, also=-1, note="-1 takes all remaining devices")

BOUNDS: Mapping[str, Bounds] = {
    # Every stage.
    "heldout_frac": Bounds(high=1.0, without=1.0),
    "pretrain_frac": Bounds(high=1.0, without=1.0), "neftune_alpha": Bounds(note="0 adds no noise"),
    "run.samples": count(0, note="0 draws none"),
    "best.patience": count(0, note="0 never ends early"),
    "seed": count(0), "batch_size": count(), "row_length": count(2), "num_steps": count(),
    "num_epochs": count(), "max_new_tokens": count(), "temperature": NOT_NEGATIVE,
    "top_p": Bounds(high=1.0, without=0.0), "tasks.*": count(0, note="0 leaves the task out"),
    "open_tasks.*": count(0, note="0 leaves the task out"),

    # Trainers.
    "ema_decay": DECAY._replace(note="0 keeps no average"),
    "guard.sigmas": Bounds(note="0 refuses only what is not finite"),
    "guard.window": count(2, 1 << 20),
    "rewind.after": count(0, note="0 never goes back"), "rewind.steps_back": count(0),
    "rewind.skip_batches": count(0), "rewind.max_retries": count(0),
    "optimizer.learning_rate": POSITIVE, "optimizer.adam_learning_rate": POSITIVE,
    "lr_multipliers.*": Bounds(note="0 freezes what the pattern matches"),
    "decay_multipliers.*": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE, "optimizer.b1": DECAY, "optimizer.b2": DECAY,
    "optimizer.momentum": DECAY, "optimizer.eps": Bounds(1e-30),     # above float32's underflow
    "optimizer.clip_norm": Bounds(note="0 never clips"), "optimizer.warmup_steps": count(0),
    "optimizer.decay_frac": FRACTION, "optimizer.final_frac": FRACTION,
    "lora.rank": count(0, 1 << 16, note="0 trains all parameters"), "lora.alpha": POSITIVE,
    "run.num_microbatches": count(),
    "run.pipeline_microbatches": count(0, note="0 takes as many as there are stages"),
    "run.pipeline_rounds": count(), "run.scan_unroll": count(),
    "run.loss_chunks": count(0, note="0 follows from bytes"),
    "run.log_every": count(0, note="0 logs the last step only"),
    "run.evaluate_every": count(0, note="0 evaluates after the last step only"),
    "run.checkpoint_every": count(0, note="0 saves the last step only, and when stopped"),
    "run.keep_checkpoints": count(), "run.keep_every": count(0, note="0 keeps none for good"),

    # pretrain
    "anneal_frac": FRACTION, "mixture.*": NOT_NEGATIVE, "anneal_mixture.*": NOT_NEGATIVE,
    "upweight.*": NOT_NEGATIVE, "max_epochs": Bounds(note="0 sets no cap"),
    "resume_step": count(0, note="0 takes the newest"),
    "corruption.frac": Bounds(0.01, 0.9), "corruption.random_frac": FRACTION,
    "corruption.kept_frac": FRACTION, "corruption.span_tokens": Bounds(1.0, 1000.0),
    "z_loss_coef": NOT_NEGATIVE, "balance_coef": NOT_NEGATIVE, "router_z_coef": NOT_NEGATIVE,

    # ladder
    "target.depth": count(0, high=1000, note="0 forecasts nothing"),
    "target.tokens_per_param": POSITIVE,

    # regmix, doremi, anneal
    "regmix.num_mixtures": count(), "regmix.temperature": Bounds(note="0 begins at equal shares"),
    "regmix.max_ratio": Bounds(1.0), "doremi.step_size": POSITIVE,
    "doremi.smoothing": DECAY._replace(note="0 lets a weight vanish"),
    "anneal.share": Bounds(high=1.0, without=0.0), "anneal.learning_rate": POSITIVE,
    "anneal.num_seeds": count(), "checks.num_seeds": count(0, note="0 measures no gain"),

    # pairs, dpo, reward
    "pairs.num_samples": count(2), "pairs.min_margin": NOT_NEGATIVE,
    "pairs.temperature": POSITIVE, "dpo.beta": POSITIVE, "dpo.nll_coef": NOT_NEGATIVE,
    "dpo.label_smoothing": Bounds(high=0.5, without=0.5, note="0 trusts the order of every pair"),
    "dpo.gamma": Bounds(note="0 asks for no margin"), "dpo.temperature": POSITIVE,
    "dpo.ld_alpha": Bounds(high=1.0, note="0 leaves these tokens out"),
    "dpo.desirable_weight": POSITIVE, "dpo.undesirable_weight": POSITIVE,
    "reward.centering_coef": NOT_NEGATIVE,

    # rl, pairs
    "rewards.*": Bounds(note="0 leaves the reward out"), "overlong_tokens": count(),
    "missing_end_penalty": Bounds(note="0 subtracts nothing"),

    # rl
    "rl.judge_tokens": count(),
    "rl.num_iterations": count(), "rl.num_prompts": count(), "rl.num_samples": count(),
    "rl.oversampling": count(),
    "rl.num_minibatches": count(), "rl.temperature": POSITIVE, "rl.kl_coef": NOT_NEGATIVE,
    "rl.kl_target": Bounds(note="0 keeps kl_coef as it is"), "rl.kl_horizon": POSITIVE,
    "rl.eps_low": Bounds(high=1.0, without=0.0), "rl.eps_high": POSITIVE,
    "rl.gamma": FRACTION._replace(note="0 sees the next reward alone"),
    "rl.lam": FRACTION._replace(note="0 looks one token ahead"), "rl.vf_coef": NOT_NEGATIVE,
    "rl.ptx_coef": Bounds(note="0 reads no text"),
    "rl.value_clip": Bounds(note="0 does not clip"), "rl.max_idle": count(),
    "run.num_slots": count(),

    # rounds, and the stages that only they have
    "rounds.num_rounds": count(), "rounds.num_shown": count(0, note="0 shows none"),
    "candidates.round": count(0, note="0 takes the first prompts"),
    "candidates.num_prompts": count(), "candidates.num_samples": count(2),
    "candidates.temperature": POSITIVE,
    "measure.num_prompts": count(), "measure.temperature": POSITIVE,

    # eval
    "eval.tasks.*": Bounds(0, MAX_INT32, whole=True, also=-1,
                           note="0 leaves the task out, -1 takes all questions"),
    "eval.num_shots": Bounds(0, MAX_INT32, whole=True, also=-1,
                             note="0 shows none, -1 is the benchmark's own number"),
    "eval.examples_seed": count(0),

    # judge
    "judge.run.batch_tokens": count(),
    "judge.max_requests": count(0, note="0 sets no limit"),
    "judge.max_cost": Bounds(note="0 sets no limit"),
    "judge.num_shown": count(0, note="0 shows none"),

    # model, mesh
    **{f"model.{letter}": count() for letter in "DNHGKF"},
    "model.E": count(0, note="0 is a dense MLP"), "model.experts_per_token": count(),
    "model.encoder_layers": count(0, note="0 in all but an encoder-decoder"),
    "model.shared_experts": count(0, note="0 has none"),
    "model.expert_capacity": Bounds(note="0 drops no choice"),
    "model.norm_eps": POSITIVE, "model.rope_theta": POSITIVE,
    "model.rope_local_theta": Bounds(note="0 takes rope_theta"),
    "model.rope_frac": Bounds(high=1.0, without=0.0), "model.rope_factor": Bounds(1.0),
    "model.rope_context": count(0, note="0 where nothing is scaled"),
    "model.rope_low": POSITIVE, "model.rope_high": POSITIVE,
    "model.max_positions": count(0, note="0 in all but learned positions"),
    "model.position_offset": count(0, note="0 leaves no row out"),
    "model.relative_buckets": count(2), "model.relative_distance": count(2),
    "model.window": count(0, note="0 sees all keys"),
    "model.global_every": count(0, note="0 makes every layer windowed"),
    "model.attention_scale": Bounds(note="0 is 1 over the root of K"),
    "model.attention_softcap": Bounds(note="0 caps nothing"),
    "model.logit_softcap": Bounds(note="0 caps nothing"), "model.logit_scale": POSITIVE,
    "model.embed_scale": POSITIVE, "model.residual_scale": POSITIVE,
    "model.token_types": count(0, note="0 has none"),
    "mup.base_width": count(0, note="0 scales nothing by width"),
    "mup.base_depth": count(0, note="0 scales nothing by depth"),
    **{f"mesh.{axis}": AXIS for axis in ("stage", "data", "fsdp", "expert", "context", "tensor")},

    # tokenizer, pack
    "tokenizer.vocab_size": count(1),
    "tokenizer.max_bytes": size(), "tokenizer.num_sentinels": count(0, note="0 adds none"),
    "pack.best_frac": Bounds(high=1.0, without=0.0),

    # curate
    "curate.limit": size("0 reads all"), "curate.code_max_bytes": size("0 leaves code out"),
    "curate.unit_bytes": size(), "curate.max_corrupt_frac": FRACTION,
    "curate.keep_top_frac": Bounds(high=1.0, without=0.0),
    "curate.run.memory_bytes": count(1 << 20, math.inf),
    "extraction.timeout_secs": Bounds(0.1), "extraction.max_page_bytes": size(),
    "languages.min_score": FRACTION, "overrides.*.*": FINITE,
    "min_score": FINITE, "max_score": FINITE,       # of classifiers and rewards
    "lines.min_block_lines": count(), "lines.min_words": count(0), "lines.min_site_pages": count(2),
    "lines.min_site_frac": FRACTION, "harm.max_bad_words": count(0),
    "contamination.ngram_words": count(8, 50), "contamination.near_overlap": FRACTION,
    "dedup.shingle_words": count(1, 64), "dedup.num_bands": count(1, 1024),
    "dedup.rows_per_band": count(1, 1024), "dedup.min_jaccard": FRACTION,
    "dedup.alarm_frac": FRACTION, "bloom.memory_bytes": size("0 searches exactly"),
    "bloom.false_positive_rate": Bounds(1e-30, 0.999),
    "substrings.num_tokens": count(0, 1 << 16, note="0 removes no passage"),
    "heldout.frac": Bounds(high=1.0, without=1.0), "heldout.max_bytes": size(),
    "heldout.max_jaccard": FRACTION, "heldout.max_containment": FRACTION,

    # classifier
    "classifier.max_documents": size("0 takes all"), "classifier.max_words": count(1, 5),
    "classifier.min_chars": count(0, 16, "0 takes none, as max_chars=0 does"),
    "classifier.max_chars": count(0, 16, "0 takes no n-grams of characters"),
    "classifier.num_buckets": count(2, 1 << 30), "classifier.learning_rate": POSITIVE,
    "classifier.eps": Bounds(1e-30),
    "classifier.heldout_frac": Bounds(0.001, 0.5),
    "classifier.calibration_frac": Bounds(0.001, 0.5), "classifier.min_positive_score": FINITE,

    # synthesize
    "synthesize.num_documents": count(0, note="0 takes all"), "synthesize.passage_words": count(),
    "synthesize.min_passage_words": count(0), "synthesize.max_frac": POSITIVE,
    "synthesize.chunk_prompts": count(), "synthesize.filters.min_words": count(0),
    "synthesize.filters.max_repeated_frac": FRACTION,
    "synthesize.filters.max_copied_frac": FRACTION, "run.num_connections": count(1, 10_000),
    "run.timeout_secs": Bounds(0.001), "run.max_retries": count(0),
    "run.backoff_secs": NOT_NEGATIVE,

    # self_instruct
    "self_instruct.num_instructions": count(), "self_instruct.max_prompts": count(),
    "self_instruct.round_prompts": count(), "self_instruct.tasks_per_prompt": count(),
    "self_instruct.seed_shots": count(),
    "self_instruct.own_shots": count(0, note="0 shows none"),
    "self_instruct.max_shown_words": count(),
    "self_instruct.filters.min_words": count(0), "self_instruct.filters.max_words": count(),
    "self_instruct.filters.max_output_words": count(),
    "self_instruct.filters.max_repeated_frac": FRACTION,
    "self_instruct.filters.max_similarity": Bounds(high=1.0, without=0.0),

    # constitution
    "constitution.num_rounds": count(), "constitution.num_examples": count(0, note="0 shows none"),
    "rule.max_words": count(), "run.chunk_prompts": count(),
    "run.prompt_price": Bounds(note="0 counts no cost"),
    "run.answer_price": Bounds(note="0 counts no cost")}


def check_numbers(config: Mapping[str, Any], prefix: str = "") -> None:
    """Raises `UserError` for the first number of a config that is out of its bounds.

    A number without bounds must be finite.

    Args:
        config: sections, or one of them.
        prefix: its own path, e.g. ``curate``; ``SECTION.optimizer`` where the section is not known.
    """
    _check(tuple(prefix.split(".")) if prefix else (), config)


def _check(path: tuple[str, ...], value: Any) -> None:
    if hasattr(value, "items"):     # a ConfigDict is no Mapping
        for name, inner in value.items():
            _check((*path, str(name)), inner)
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    _, bounds = find_bounds(path) or ("", FINITE if is_number else None)
    if bounds is not None and not bounds.hold(value):
        field = ".".join(path)
        note = f" ({bounds.note})" if bounds.note else ""
        raise UserError(f"{field}={value!r}", bounds.rule(), f"set --config.{field}{note}")


def find_bounds(path: Sequence[str]) -> tuple[str, Bounds] | None:
    """The bounds of the field at `path` and their key in `BOUNDS`; None if it has none."""
    for start in range(len(path)):
        for num_names in range(len(path) - start):      # of the user's own, at the end
            key = ".".join((*path[start:len(path) - num_names], *"*" * num_names))
            if key in BOUNDS:
                return key, BOUNDS[key]
    return None
