"""What all configs share: a strict parser of the part behind the colon."""

from __future__ import annotations

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
        writers=(),                 # beside metrics.jsonl: tensorboard, wandb
        log_every=10, evaluate_every=1000, checkpoint_every=100,
        keep_checkpoints=2, keep_every=0) | changes     # the newest; every so many steps for good


def make_training(**changes) -> dict:
    """The fields that every trainer's section shares; `run` is `make_training_run`'s."""
    return make_precision() | dict(
        guard=dict(sigmas=6.0, window=128),     # updates further out are refused
        # After that many refusals in a row: back that many steps, past the batches between and
        # some more, at most that often. after=0 never goes back.
        rewind=dict(after=8, steps_back=100, skip_batches=50, max_retries=3),
        ema_decay=0.0,              # above 0, the running average is what is kept in the end
        seed=0) | changes


def make_optimizer(**changes) -> dict:
    """The section `optimizer` of a trainer; `train.optimizer.optimizers` explains its fields."""
    return dict(
        name="adamw",               # or muon, lion, adafactor, sgd, schedule_free
        learning_rate=1e-3, adam_learning_rate=1e-3,    # the latter: what Muon does not take
        lr_multipliers=dict(),      # by parameter name: {"embed*": 0.5}
        weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8, momentum=0.95, mu_dtype="float32",
        clip_norm=1.0,
        schedule="cosine",          # or linear, wsd, constant
        warmup_steps=10, decay_frac=0.0, final_frac=0.0) | changes


def make_curate() -> ConfigDict:
    """The section `curate` with every field, as it suits documents of any origin."""
    return ConfigDict(dict(
        out="corpus",
        inputs="embedded",          # or files, folders, globs, URLs by commas; see data/readers
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
