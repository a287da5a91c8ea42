"""What all configs share: every field with its default, and the sizes that follow from a depth."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict


def parse_variant(arg: str | None, variants: tuple[str, ...]) -> str:
    """Returns the variant named by `--config=file.py:variant`; the first one when none is named.

    Raises:
        ValueError: the name is none of `variants`.
    """
    variant = arg or variants[0]
    if variant not in variants:
        raise ValueError(f"config variant {variant!r}: is none of {', '.join(variants)}: "
                         f"write --config=configs/NAME.py:{variants[0]}")
    return variant


def make_precision(**changes) -> dict:
    """The fields of numerical precision that every stage with a model has in its section."""
    return dict(
        compute_dtype="float32",    # or bfloat16: of matmuls
        matmul="compute") | changes     # or int8, fp8: of the blocks' matmuls


def make_inference(**changes) -> dict:
    """The fields of a stage that asks a model: how the model is held."""
    return make_precision() | dict(
        weights="float32",          # or int8, int4: what the weights are rounded to
        kv_cache="compute") | changes   # or int8: keys and values of earlier tokens


def make_inference_run(**changes) -> dict:
    """The subsection `run` of a stage that asks a model: it decides nothing in the result."""
    return dict(
        batch_size=64,
        attention="auto",           # or xla, cudnn, pallas, splash
        scan_unroll=1,              # layers per iteration of the scan
        loss_chunks=1) | changes    # of the head, so that [B, L, V] is never held; 0 = as needed


def make_training_run(**changes) -> dict:
    """The subsection `run` of a trainer: how it is computed and watched.

    It decides nothing in the result beyond rounding, and may change at any restart;
    `model.execution` explains the fields from `attention` to `loss_chunks`.
    """
    return dict(
        num_microbatches=1,         # pieces of a batch whose gradients are summed
        attention="auto", context_attention="ring", pipeline_microbatches=0, pipeline_rounds=1,
        scan_unroll=1, remat="none", loss_chunks=1,
        diagnostics=False,          # norms and update ratios by parameter and layer
        tasks=dict(),               # questions asked at every evaluation, by name of the task
        samples=0,                  # held-out prompts that are answered at every evaluation
        writers=(),                 # beside metrics.jsonl: tensorboard, wandb
        log_every=10, evaluate_every=1000, checkpoint_every=100,    # steps; 0 = the last only
        keep_checkpoints=2, keep_every=0) | changes     # the newest; every so many steps for good


def make_training(**changes) -> dict:
    """The fields that every trainer's section shares; `run` is `make_training_run`'s."""
    return make_precision() | dict(
        guard=dict(sigmas=6.0, window=128),     # updates further out are refused
        # After that many refusals in a row: back that many steps, past the batches between and
        # some more, at most that often. after=0 never goes back.
        rewind=dict(after=8, steps_back=100, skip_batches=50, max_retries=3),
        ema_decay=0.0,              # above 0, the running average is what is kept in the end
        # A value of the evaluations, as "heldout_loss": the parameters where it was smallest are
        # kept in the end, and so many evaluations in a row without progress end the run; 0 = none.
        best=dict(measure="", patience=0),
        seed=0) | changes


def make_lora(**changes) -> dict:
    """The subsection `lora` of a stage that fine-tunes; see `model.adapters.lora`."""
    return dict(
        rank=0,                     # of the additions that are trained; 0 = all parameters instead
        alpha=16.0,                 # over the rank, the factor of the additions
        targets=()) | changes       # patterns of projections, as "wq" or "w_*"; () = all


def make_learning(**changes) -> dict:
    """The fields of a stage that learns from conversations or preferences; see `align.sources`."""
    return dict(
        inputs="",                  # files or folders by commas; PATH@1000, PATH@0.5: a part of one
        layout="",                  # of their rows; "" recognises it, data/layouts names them
        template="",                # "" = the tokenizer's own, or a name of data/templates/named.py
        overlong="drop",            # or cut, fail: what is longer than a row
        faulty="drop",              # or fail: what teaches nothing or cannot be read
        heldout_frac=0.0) | changes # of the prompts: never trained on, their loss is reported


def make_sft(**changes) -> dict:
    """The fields that only fine-tuning on conversations has, and those of `make_learning`."""
    return make_learning() | dict(
        pretrain_frac=0.0,          # of the rows: text of `tokens`, which keeps what is known
        mixture=dict(),             # shares of its domains; none = by their sizes
        train_on="assistant",       # or all: the loss is over the prompts too
        weighting="tokens",         # or conversations: what weighs the same in the loss
        neftune_alpha=0.0) | changes    # noise on embeddings, arXiv 2310.05914: 5 to 15; 0 = none


def make_preference(**changes) -> dict:
    """The fields of a preference loss; `align.losses.preference` explains them."""
    return dict(
        loss="dpo",                 # or cdpo, robust, ipo, ipo_sum, hinge, kto, orpo, simpo, ...
        beta=0.1,                   # strength; SimPO takes 2 and more, dpo_norm 5
        label_smoothing=0.0,        # cdpo, robust: share of pairs in the wrong order
        gamma=0.5,                  # simpo: the margin
        ld_alpha=0.5,               # ld_dpo: weight of tokens past the shorter answer's length
        nll_coef=0.0,               # of the preferred answer's loss per token
        temperature=1.0,            # at which the answers were sampled; divides all logits
        reference_free=False,
        desirable_weight=1.0, undesirable_weight=1.0) | changes     # kto: of good and bad answers


def make_reward(**changes) -> ConfigDict:
    """The section `reward` with every field; sizes of the run come from `changes`."""
    return ConfigDict(make_training(
        out="reward", model="sft",
        pairs="",                   # an artifact of align.pairs, beside or instead of `inputs`
        **make_learning(heldout_frac=0.1),
        loss="bradley_terry",       # or plackett_luce
        margin="none",              # or scores: pairs are to differ by as much as their scores
        centering_coef=0.0,         # of the square of a pair's sum of scores
        # Files of conversations that end with answers of the policy that is rewarded first: over
        # them scores have mean 0 and deviation 1. "" = the training answers.
        reference="",
        num_epochs=1, lora=make_lora(), optimizer=make_optimizer(),
        run=make_training_run()) | changes)


def make_rewards(**changes) -> dict:
    """The fields of a stage that scores answers of its own; `align.rl.rewards` explains them."""
    return dict(
        reward="",                  # an artifact of align.reward, for rewards.model
        rewards=dict(task=1.0, model=0.0, length=0.0, format=0.0),      # weights
        overlong_tokens=8,          # rewards.length: what begins so far below the limit
        pattern="",                 # rewards.format: a regular expression
        missing_end_penalty=0.0) | changes  # of an answer that ran into the limit


def make_pairs(**changes) -> ConfigDict:
    """The section `pairs` with every field; `align.pairs` explains them."""
    return ConfigDict(dict(
        out="pairs", model="sft", corpus="",
        tasks=dict(),               # numbers of training questions by task
        inputs="",                  # files of solved questions, scored by exact match
        **make_rewards(),
        num_samples=4,              # answers to each question
        min_margin=0.1,             # least difference in reward of a pair
        min_score=0.0,              # least reward of an answer in best.jsonl
        temperature=1.0, max_new_tokens=32, seed=1, **make_inference(),
        run=make_inference_run()) | changes)


def make_rl(**changes) -> ConfigDict:
    """The section `rl` with every field; `align.rl` explains them."""
    return ConfigDict(make_precision() | dict(
        out="rl", model="sft", corpus="",
        algorithm="grpo",           # or ppo, dr_grpo, dapo, rloo, reinforce_plus_plus, online_dpo
        tasks=dict(),               # numbers of training prompts by task
        inputs="",                  # files of solved questions, scored by exact match
        template="",                # as in `make_learning`
        **make_rewards(rewards=dict(task=1.0, model=0.0, length=0.0, format=0.0, judge=0.0)),
        # rewards.judge: a chat model's folder; or an endpoint's URL, model, and the environment
        # variable that holds its key.
        judge="", judge_endpoint="", judge_endpoint_model="", judge_key_variable="",
        judge_prompt="",            # a file with {conversation} and {answer}; "" = our own
        judge_tokens=8,             # the longest reply
        judge_unreachable="fail",   # or count: of an endpoint after all retries
        num_iterations=100, num_prompts=32, num_samples=8,  # the latter of each prompt
        oversampling=1,             # prompts asked for each that is learned from
        num_epochs=1, num_minibatches=1,    # passes over an iteration's answers, updates of a pass
        max_new_tokens=32, temperature=1.0, row_length=96,
        kl_coef=0.05,               # of ppo, rloo and reinforce_plus_plus in the rewards
                                    # and the beta of online_dpo; of the others in the loss:
        kl_loss="k3",               # or k2, k3_corrected
        kl_target=0.0, kl_horizon=10_000.0,     # nats an answer that kl_coef moves towards; answers
        eps_low=0.2, eps_high=0.2,  # the ratio is clipped to 1 - eps_low and 1 + eps_high
        gamma=1.0, lam=0.95, vf_coef=0.1, value_clip=0.2,
        ptx_coef=0.0,               # of the loss of pretraining text in every update
        tokens="", mixture=dict(),  # that text, and shares of its domains; none = by their sizes
        max_idle=10,                # iterations in a row that teach nothing, which end the run
        guard=dict(sigmas=0.0, window=128), ema_decay=0.0, seed=0,
        lora=make_lora(), optimizer=make_optimizer(schedule="constant"),
        run=make_rl_run()) | changes)


def make_rl_run(**changes) -> dict:
    """The subsection `run` of `rl`: here evaluate_every and checkpoint_every count iterations, and
    tasks are of the test split."""
    return make_training_run(
        num_slots=64,               # answers that are sampled at once
        # Of a judge behind an endpoint; prices are of a million tokens.
        num_connections=8, timeout_secs=120.0, max_retries=5, backoff_secs=1.0,
        prompt_price=0.0, answer_price=0.0, evaluate_every=0, checkpoint_every=10) | changes


def make_constitution(**changes) -> ConfigDict:
    """The section `constitution` with every field."""
    return ConfigDict(dict(
        out="constitution",
        makes=("revisions", "pairs"),       # or one of them
        tasks=dict(), corpus="",            # built-in questions, and what some are drawn from
        inputs="",                  # files of prompts or conversations; PATH@1000: a part of one
        faulty="drop",              # or fail: rows that cannot be read
        # Files of principles and examples by commas, "" = our own; align/synthetic/principles.py.
        principles="", num_examples=2,      # at most so many examples are shown
        model="",                   # a chat model's folder that answers; or
        endpoint="", endpoint_model="", key_variable="",    # URL, model, environment variable; or
                                    # none of them: the answers of `inputs` are revised
        critic="",                  # a chat model's folder that criticises and chooses; or
        critic_endpoint="", critic_endpoint_model="", critic_key_variable="",
        critic_rule="",             # or length, word_list, or a class of yours: module.Class
        rule=dict(max_words=12, words=()),
        num_rounds=2,
        labels="letter",            # or probability, of a critic in a folder
        disagreement="drop",        # of both orders; or tie, soft, fail
        # What becomes of a reply: drop (the conversation), keep (go on with it), fail. Of a choice
        # without a letter: keep takes that of the other order alone.
        rules=dict(unanswered="drop", empty="drop", truncated="drop", unchanged="keep",
                   refusal="keep", no_letter="drop"),
        answer=dict(max_new_tokens=256, temperature=1.0, top_p=1.0),
        critique=dict(max_new_tokens=512, temperature=0.7, top_p=0.95),     # and revisions
        judge=dict(max_new_tokens=16, temperature=0.0, top_p=1.0),          # of choices
        seed=0, **make_inference(),
        run=make_inference_run(
            batch_size=16, num_connections=8, timeout_secs=120.0, max_retries=5, backoff_secs=1.0,
            chunk_prompts=64,       # sent at once; where all are rejected, the run ends
            prompt_price=0.0, answer_price=0.0))    # of a million tokens of endpoints
        | changes)


def make_eval(**changes) -> ConfigDict:
    """The section `eval` with every field."""
    return ConfigDict(dict(
        out="eval",
        model="",
        against="",             # an earlier evaluation, whose open answers are compared
        corpus="", tokens="",   # artifacts: bits per byte of held-out pages; tasks drawn from them
        texts="",               # files whose bits per byte are measured, by commas
        row_length=1024,        # the longest window of a text
        tasks=dict(),           # numbers of questions by task or benchmark; -1 = all
        data="",                # folder of benchmarks' files
        prompts="literal",      # of benchmarks; or turns: as a user's message in the template
        num_shots=-1,           # solved examples before a benchmark's question; -1 = its own number
        examples="first",       # or seeded: drawn for each question
        examples_seed=1234,
        open_tasks=dict(),      # sampled, and compared by wins
        inputs="",              # files of solved questions or YAML tasks, asked as `tasks` are
        max_new_tokens=32, temperature=1.0, seed=0, **make_inference(),
        run=make_inference_run(batch_size=8, loss_chunks=4)) | changes)


def make_pretrain(**changes) -> ConfigDict:
    """The section `pretrain` with every field; sizes of the run come from `changes`."""
    return ConfigDict(make_training(
        out="base", tokens="tokens", corpus="corpus",
        objective="causal",         # masked: of an encoder; span: of an encoder-decoder
        # Of the two: share of tokens hidden; masked: of these, how many become a random token or
        # stay; span: mean length of a hidden span.
        corruption=dict(frac=0.15, random_frac=0.1, kept_frac=0.1, span_tokens=3.0),
        init_from="",               # a model directory, whose parameters are the first
        resume_from="", resume_step=0,      # or another run's checkpoint; 0 = its newest
        anneal_frac=0.0,            # of the steps, on `anneal_mixture` instead of `mixture`
        mixture=dict(), anneal_mixture=dict(),      # shares of domains
        temperature=1.0,            # when all of mixture is 0: shares follow size ** temperature
        upweight=dict(), max_epochs=0.0,    # by domain; how often a domain may come, 0 = no cap
        packing="concatenate",      # or best_fit: documents shorter than a row are never cut
        z_loss_coef=0.0, balance_coef=0.01, router_z_coef=0.001,    # the latter two: experts only
        run=make_training_run()) | changes)


def make_model(**changes) -> ConfigDict:
    """The section `model`; `model.config` explains its letters and fields."""
    return ConfigDict(dict(
        family="decoder", encoder_layers=0,     # or encoder, encoder_decoder, lstm
        norm="rms", norm_eps=1e-6,              # or rms_plus_one, layer
        residual="pre", residual_scale=1.0,     # or post, sandwich, parallel
        positions="rope",                       # or learned, sinusoidal, relative, none
        max_positions=0, position_offset=0,     # of learned positions
        rope_theta=10_000.0, rope_local_theta=0.0, rope_frac=1.0,
        rope_scaling="none", rope_factor=1.0, rope_context=0,   # or linear, llama3, yarn
        rope_low=1.0, rope_high=4.0, relative_buckets=32, relative_distance=128,
        qk_norm=True, window=0, global_every=0, attention_scale=0.0, attention_softcap=0.0,
        sinks=False, attention_bias=False, attention_out_bias=False,
        mlp="swiglu", mlp_bias=False,           # or geglu, gelu, gelu_tanh, relu
        E=0, experts_per_token=2, shared_experts=0, renormalise_gates=True, expert_capacity=0.0,
        tied=False, embed_previous=False, embed_scale=1.0, embed_norm=False, token_types=0,
        masked_head=False, head_bias=False, logit_scale=1.0, logit_softcap=0.0,
        mup=make_mup()) | changes)


def make_preset(name: str, **changes) -> ConfigDict:
    """The section `model` by the name of a published architecture; see `model.presets`.

    Args:
        changes: fields that replace those of the preset; of these alone there are flags.
    """
    return ConfigDict(dict(preset=name, mup=make_mup()) | changes)


def make_mup(**changes) -> dict:
    """Width and depth at which the optimizer was tuned, 0 = as it is; see `model.mup`."""
    return dict(base_width=0, base_depth=0) | changes


def make_mesh(**changes) -> ConfigDict:
    """The section `mesh`: devices along each axis, -1 for all that remain."""
    return ConfigDict(dict(stage=1, data=-1, fsdp=1, expert=1, context=1, tensor=1) | changes)


def make_tokens(*, vocab_size: int, tokenizer_bytes: int, **changes) -> ConfigDict:
    """The sections `tokenizer` and `pack`.

    Args:
        tokenizer_bytes: of the corpus, that the tokenizer learns from.
        changes: of `pack`.
    """
    return ConfigDict(dict(
        tokenizer=dict(out="tokenizer", corpus="corpus",
                       kind="bpe",              # or unigram, wordpiece, word, character, byte
                       vocab_size=vocab_size,   # special tokens included
                       max_bytes=tokenizer_bytes,
                       split="heartwood", normalization="none",     # data/tokenizers/patterns.py
                       # Special tokens, within vocab_size, that pretrain.objective needs: <|mask|>
                       # for masked; for span <|extra_0|> and so on, one per span of a document.
                       mask_token=False, num_sentinels=0),
        pack=dict(out="tokens", corpus="corpus", tokenizer="tokenizer",
                  best_domains=(), best_frac=0.5,   # what annealing calls the best data; () = none
                  seed=0) | changes))


def make_optimizer(**changes) -> dict:
    """The section `optimizer` of a trainer; `train.optimizer.optimizers` explains its fields."""
    return dict(
        name="adamw",               # or muon, lion, adafactor, sgd, schedule_free
        learning_rate=1e-3, adam_learning_rate=1e-3,    # the latter: what Muon does not take
        lr_multipliers=dict(), decay_multipliers=dict(),    # by parameter name: {"embed*": 0.5}
        weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8, momentum=0.95, mu_dtype="float32",
        clip_norm=1.0,
        schedule="cosine",          # or linear, wsd, constant
        warmup_steps=10, decay_frac=0.0, final_frac=0.0) | changes


def make_curate() -> ConfigDict:
    """The section `curate` with every field, as it suits documents of any origin."""
    return ConfigDict(dict(
        out="corpus",
        inputs="embedded",          # or files, folders, globs, URLs by commas; see data/readers
        # Fields of rows (JSON, CSV, Parquet); "" tries the usual names, dots lead into objects.
        text_field="", id_field="", url_field="",
        meta_fields=("*",),         # that stay with a document, in meta.origin; "*" = all others
        columns=dict(),             # more columns of the output: dict(license="meta.license")
        limit=0,                    # read this many documents, the first of the inputs; 0 = all
        domain="web",               # domain of documents that do not name their own
        packages="",                # embedded: comma-separated packages to render; "" = all known
        code_max_bytes=24_000_000,  # embedded: size of the source-code domain
        unit_bytes=64_000_000,      # inputs are split into units of about this size
        max_corrupt_frac=0.05,      # more unreadable records than this share fail the run
        against=(),                 # finished corpora: what they hold is an exact duplicate here
        extraction=dict(mode="fast", timeout_secs=10.0, max_page_bytes=20_000_000,
                        emoji_names=False, punctuation=False),
        languages=dict(keep=(), min_score=0.0),     # keep: codes; none keeps all
        code_domains=("code",),     # measured as source code, and not as prose
        presets=dict(default=("gopher",), code=("code",)),  # rules by domain, of data/filters
        overrides=dict(),           # by domain: dict(gopher_min_words=30), ...
        lines=dict(min_block_lines=10, min_words=30, min_site_pages=20, min_site_frac=0.3),
        privacy=dict(actions=dict(email="redact", ip="redact", phone="redact", card="redact",
                                  iban="redact", key="redact"), name_finder=""),
        harm=dict(url_lists=(), word_lists=(), max_bad_words=0),
        classifiers=dict(           # folders that data.train_classifier wrote; "" = off
            quality=dict(model="", min_score=0.0, max_score=1.0),
            domain=dict(model="", min_score=0.0, max_score=1.0),
            toxicity=dict(model="", min_score=0.0, max_score=0.4),
            nsfw=dict(model="", min_score=0.0, max_score=0.4)),
        filters=(),                 # functions of your own, "module.function"; see data/filters/own
        keep_top_frac=1.0,          # of all documents, by quality
        contamination=dict(tasks=(), fields=(), ngram_words=13, near_overlap=0.6),
        dedup=dict(by_url=False, shingle_words=5, num_bands=20, rows_per_band=8, min_jaccard=0.8,
                   alarm_frac=0.5, seed=0,
                   bloom=dict(memory_bytes=0, false_positive_rate=1e-6)),   # 0 = exact search
        substrings=dict(num_tokens=0),  # passages that long that occurred before go; 0 = off
        heldout=dict(frac=0.0, max_bytes=1_000_000, max_jaccard=0.5, max_containment=0.5,
                     domain="web"),
        seed=0,
        run=dict(memory_bytes=2_000_000_000)))  # for comparing documents, whatever their number


@dataclasses.dataclass(frozen=True)
class Reference:
    """A depth at which the numbers of a run were measured; others are scaled from it.

    Attributes:
        depth: layers.
        aspect: width over depth.
        head_size: K; None gives two heads, of any size.
        vocab_size: of the tokenizer.
        row_length: inputs of a row.
        tokens_per_param: horizon over the parameters in matrix products.
        batch_tokens: inputs of a step.
        learning_rate: of Muon, whose updates have an RMS of 0.2 times it.
        weight_decay: decoupled.
    """

    depth: int
    aspect: int
    head_size: int | None
    vocab_size: int
    row_length: int
    tokens_per_param: float
    batch_tokens: int
    learning_rate: float
    weight_decay: float


REFERENCES = {
    # nanochat, scripts/base_train.py at 92d63d4: depth 12, 2^19 tokens, 12 tokens per parameter.
    # Its Muon step of 0.02 has an RMS of 0.02/sqrt(768), which is 0.2 times 0.0036 here. The decay
    # is that of arXiv 2502.16982, whose updates have the same RMS.
    "accelerator": Reference(12, 64, 128, 32_768, 2048, 12.0, 2**19, 0.0036, 0.1),
    # The quickstart: the best of docs/benchmarks.md, with a horizon of five minutes on two cores.
    "cpu": Reference(4, 32, 64, 2048, 256, 1.75, 4096, 0.02, 0.1),
    # The same width from twice the depth, so that each depth has a width of its own. Two heads, as
    # the attention of many small ones takes more of a CPU's time than the products.
    "cpu_ladder": Reference(8, 16, None, 2048, 256, 1.75, 4096, 0.02, 0.1),
}
BATCH_EXPONENT = 0.383      # of the best batch over the horizon: arXiv 2505.13738


@dataclasses.dataclass(frozen=True)
class Scale:
    """What follows from a depth; see `scale_by_depth`."""

    model: dict[str, Any]
    vocab_size: int
    row_length: int
    batch_size: int
    num_steps: int
    learning_rate: float
    weight_decay: float


def scale_by_depth(depth: int, platform: str, tokens_per_param: float | None = None) -> Scale:
    """The sizes of a pretraining run by the depth of its model, around `REFERENCES[platform]`.

    Width is proportional to depth, in whole heads; the MLP has 8/3 of it, so that its three
    matrices have the parameters of two with 4 (arXiv 2002.05202, section 2). The horizon is
    proportional to the parameters in matrix products (arXiv 2203.15556), as the reference's is or
    by `tokens_per_param`; the batch grows as the horizon to the power 0.383 (arXiv 2505.13738), as
    a power of two but for `cpu_ladder`. The learning rate grows as the square root of the batch,
    and falls as that of the width: an orthogonal update keeps its norm, so the RMS of its entries
    falls. The weight decay keeps the number of epochs that an update is remembered, B / (learning
    rate x decay x horizon), as it is (arXiv 2405.13698).
    """
    reference = REFERENCES[platform]
    per_param = tokens_per_param or reference.tokens_per_param
    width, num_params = _width_and_params(depth, reference)
    reference_width, reference_params = _width_and_params(reference.depth, reference)
    horizon_frac = num_params / reference_params * (per_param / reference.tokens_per_param)
    batch_rows = reference.batch_tokens * horizon_frac**BATCH_EXPONENT / reference.row_length
    # Devices share a batch evenly if it is a power of two; a smooth law needs no such steps.
    batch_rows = max(1, round(batch_rows) if platform == "cpu_ladder"
                     else 2 ** round(math.log2(batch_rows)))
    batch_tokens = batch_rows * reference.row_length
    batch_root = (batch_tokens / reference.batch_tokens) ** 0.5
    width_root = (reference_width / width) ** 0.5
    num_heads = width // reference.head_size if reference.head_size else 2
    return Scale(
        model=dict(D=width, N=depth, H=num_heads, G=num_heads, K=width // num_heads,
                   F=_hidden_width(width), embed_previous=True),
        vocab_size=reference.vocab_size, row_length=reference.row_length,
        batch_size=batch_rows,
        num_steps=max(1, round(per_param * num_params / batch_tokens)),
        learning_rate=reference.learning_rate * batch_root * width_root,
        weight_decay=reference.weight_decay * batch_root / (width_root * horizon_frac))


def _width_and_params(depth: int, reference: Reference) -> tuple[int, int]:
    """D, and the parameters in matrix products: 4 D^2 + 3 D F a layer, and the head."""
    unit = reference.head_size or reference.aspect
    width = max(1, math.ceil(depth * reference.aspect / unit)) * unit
    layer = 4 * width**2 + 3 * width * _hidden_width(width)
    return width, depth * layer + width * reference.vocab_size


def _hidden_width(width: int) -> int:
    """F, a multiple of 128."""
    return 128 * math.ceil(width * 8 / 3 / 128)
