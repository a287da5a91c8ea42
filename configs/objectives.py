"""Other objectives and families than the quickstart's, minutes each on two cores.

    config=configs/objectives.py:masked     # or span, lstm, experts
    for stage in data.curate data.train_tokenizer data.pack train.pretrain; do
      python -m $stage --config=$config --workdir=runs/masked
    done

Rows and batch are the quickstart's, with more steps and twice as many held-out pages.

masked: an encoder that restores 15 % of the tokens (BERT, arXiv 1810.04805). span: an
encoder-decoder that writes hidden spans (T5, arXiv 1910.10683); a row of 256 inputs takes 285
tokens of text. lstm: a causal language model without attention. experts: the quickstart's decoder
with 4 experts a layer, 2 for each token. masked and span end with `heldout_loss_nats` beside the
`heldout_unigram_nats` that it must fall below, the others with `heldout_bpb`.

On two cores beside other work: masked 15.6 minutes, 2.80 nats (unigram 6.54); span 10.1 minutes,
4.95 nats (6.55); lstm 9.7 minutes, 1.629 bits per byte; experts 15.5 minutes, 1.529 (3.59).
"""

from ml_collections import ConfigDict

from configs.common import (
    make_curate,
    make_mesh,
    make_model,
    make_optimizer,
    make_pretrain,
    make_tokens,
    make_training_run,
    parse_variant,
    scale_by_depth,
)

VARIANTS = ("masked", "span", "lstm", "experts")
NUM_STEPS = 775


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, VARIANTS)
    c = ConfigDict()
    c.curate = make_curate()
    c.curate.unit_bytes = 16_000_000
    c.curate.presets.default = ("technical",)
    c.curate.heldout.update(frac=0.04, domain="pages")

    scale = scale_by_depth(4, "cpu")
    c.update(make_tokens(vocab_size=scale.vocab_size, tokenizer_bytes=20_000_000))
    c.mesh = make_mesh()
    c.model = make_model(**scale.model | dict(embed_previous=False))
    c.pretrain = make_pretrain(
        row_length=scale.row_length, batch_size=scale.batch_size, num_steps=NUM_STEPS,
        mixture=dict(pages=1.0, code=0.0),
        optimizer=make_optimizer(
            name="muon", learning_rate=scale.learning_rate,
            adam_learning_rate=scale.learning_rate, weight_decay=scale.weight_decay,
            schedule="wsd", warmup_steps=20, decay_frac=0.8),
        run=make_training_run(loss_chunks=4, evaluate_every=NUM_STEPS // 2))

    {"masked": _masked, "span": _span, "lstm": _lstm, "experts": _experts}[variant](c)
    return c


def _masked(c: ConfigDict) -> None:
    """An encoder: every token sees all of its document."""
    c.tokenizer.mask_token = True
    c.model.update(family="encoder")
    c.pretrain.objective = "masked"


def _span(c: ConfigDict) -> None:
    """An encoder and a decoder of three layers each."""
    c.tokenizer.num_sentinels = 14      # as many as a row of 256 inputs has spans
    c.model.update(family="encoder_decoder", N=3, encoder_layers=3)
    c.pretrain.objective = "span"


def _lstm(c: ConfigDict) -> None:
    """Two LSTM layers; its matrices are not those that Muon was made for."""
    c.model.update(family="lstm", D=256, N=2)
    c.pretrain.optimizer.update(name="adamw", learning_rate=3e-3, weight_decay=0.01)


def _experts(c: ConfigDict) -> None:
    """A mixture of experts, each with half the quickstart's hidden width: as many FLOPs a token."""
    c.model.update(E=4, experts_per_token=2, F=c.model.F // 2)
