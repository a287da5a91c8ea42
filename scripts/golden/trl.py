"""Golden values of preference losses and their gradients: closed formulas in float64, and TRL's.

    .venv-peers/bin/python -m scripts.golden.trl

Writes `tests/golden/preference/losses.npz`: the weights of two tiny random Llamas (policy and
reference), token ids of pairs, and of each loss its value and its gradient by two parameters. The
formulas stand here in torch, apart from ours. Of each loss that TRL has they are compared with the
value and the gradient of its own trainer, in float32, and its value is in the file as well. The
weights follow from torch's random numbers: what holds is the file, not the seeds.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import numpy as np

from core.artifacts import ROOT
from core.entry import run
from core.errors import UserError
from core.progress import log

OUT = ROOT / "tests" / "golden" / "preference" / "losses.npz"
PAD, BOS, EOS, V = 0, 1, 2, 97      # that of padding is not that of the end, on purpose
CONFIG = dict(vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
              rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=False,
              attention_dropout=0.0, initializer_range=0.3, pad_token_id=PAD, bos_token_id=BOS,
              eos_token_id=EOS)
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
CHOSEN = [[20, 21, 22, 23], [24], [25, 26], [27, 28, 29, 30, 31]]
REJECTED = [[40, 41], [42, 43, 44], [45, 46, 47, 48, 49, 50], [51]]
GRADIENTS = ("lm_head.weight", "model.layers.0.self_attn.q_proj.weight")
NUM_ROWS = 32       # of them, the first, which hold all tokens of preferred answers and the end
# By name, that of a loss and what tells two of it apart: its settings.
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": dict(beta=0.1), "dpo/0.5": dict(beta=0.5),
    "cdpo": dict(beta=0.1, label_smoothing=0.1), "robust": dict(beta=0.1, label_smoothing=0.1),
    "ipo": dict(beta=0.1), "ipo_sum": dict(beta=0.1), "hinge": dict(beta=0.1),
    "dpo_norm": dict(beta=5.0), "ld_dpo": dict(beta=0.1, ld_alpha=0.5),
    "apo_zero": dict(beta=0.1), "apo_down": dict(beta=0.1),
    "simpo": dict(beta=2.0, gamma=0.5), "orpo": dict(beta=0.1), "kto": dict(beta=0.1),
    # With policy and reference exchanged, so that the reference point is above 0.
    "kto/swapped": dict(beta=0.1, undesirable_weight=1.5)}
NOT_IN_TRL = ("cdpo", "ipo_sum")
# TRL's trainers of these join texts without a space, so that the word between is unknown, and put
# <bos> before: prompts lose their last token, and answers begin with the unknown one, PAD.
JOINED = ("simpo", "orpo")
TOLERANCE = 2e-5                        # between float32 and float64


def main() -> dict[str, Any]:
    """Computes all values, compares them and writes the file."""
    import torch

    torch.set_num_threads(1)
    policy, reference = make_model(0), make_model(1)
    weights = {f"{name}/{key}": tensor.numpy().copy()
               for name, model in (("policy", policy), ("reference", reference))
               for key, tensor in model.state_dict().items()}
    found = {}
    for name in LOSSES:
        models = (reference, policy) if name == "kto/swapped" else (policy, reference)
        value, gradients = differentiate(lambda a, b, name=name: formula(name, a, b), *models)
        found |= {f"{name}/value": np.float64(value),
                  **{f"{name}/{key}": gradient.astype(np.float32)
                     for key, gradient in gradients.items()}}
    found |= run_trl(found)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, config=json.dumps(CONFIG | {"model_type": "llama"}), **weights,
                        **found)
    return {"losses": len(LOSSES), "bytes": OUT.stat().st_size}


def make_model(seed: int) -> Any:
    """A random Llama in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="eager")).float().eval()


def differentiate(function: Any, policy: Any, reference: Any) -> tuple[float, dict[str, Any]]:
    """The value of a loss in float64, and its gradients by `GRADIENTS` of the policy."""
    policy, reference = policy.double(), reference.double()
    policy.zero_grad()
    loss = function(policy, reference)
    loss.backward()
    gradients = {name: parameter.grad[:NUM_ROWS].numpy().copy()
                 for name, parameter in policy.named_parameters() if name in GRADIENTS}
    policy.float()
    reference.float()
    return float(loss.detach()), gradients


def compare(name: str, value: Any, trained: Any) -> None:
    """Raises `UserError` where the numbers of TRL's trainer are others than those of a formula."""
    value, trained = np.asarray(value), np.asarray(trained)
    distance = np.max(np.abs(value - trained)) / np.max(np.abs(value))
    log(f"{name}: TRL differs by {distance:.1e}")
    if distance > TOLERANCE:
        raise UserError(name, f"is {value} by its formula and {trained} by TRL",
                        "correct the formula, or install another version of TRL")


def answer_logps(model: Any, prompt: list[int], answer: list[int], joined: bool) -> Any:
    """Log-probabilities of the tokens of an answer, the last <eos>, and those of the whole row."""
    import torch

    if joined:
        prompt, answer = [BOS, *prompt[:-1]], [PAD, *answer[1:]]
    tokens = [*prompt, *answer, EOS]
    logits = model(torch.tensor([tokens])).logits[0, :-1]
    logps = torch.log_softmax(logits, -1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    return logps[-len(answer) - 1:], logps


def formula(name: str, policy: Any, reference: Any) -> Any:
    """A loss by its formula, the mean over the pairs."""
    import torch

    loss, settings = name.partition("/")[0], LOSSES[name]
    if loss == "kto":
        return kto(policy, reference, **settings)
    joined, beta = loss in JOINED, settings["beta"]
    logsig = torch.nn.functional.logsigmoid
    rows = {(model, side): [answer_logps(model, p, a, joined) for p, a in zip(PROMPTS, answers)]
            for model in (policy, reference) for side, answers in enumerate((CHOSEN, REJECTED))}

    def total(weigh: Any) -> tuple[Any, Any]:
        """Sums over answers with a weight per token, of policy minus reference, by side."""
        return tuple(torch.stack([
            ((a := rows[policy, side][i][0]) * weigh(i, a)).sum()
            - ((b := rows[reference, side][i][0]) * weigh(i, b)).sum().detach()
            for i in range(len(PROMPTS))]) for side in (0, 1))

    shorter = [1 + min(len(c), len(r)) for c, r in zip(CHOSEN, REJECTED)]
    (a, r), (am, rm) = (total(lambda i, x: torch.ones_like(x)),
                        total(lambda i, x: torch.ones_like(x) / len(x)))
    h, wrong = a - r, settings.get("label_smoothing", 0.0)
    if loss == "ld_dpo":
        def reduce(i: int, x: Any) -> Any:
            return torch.where(torch.arange(len(x)) < shorter[i], 1.0, settings["ld_alpha"])

        a, r = total(reduce)
        h = a - r
    if loss in ("simpo", "orpo"):
        am, rm = (torch.stack([row[0].mean() for row in rows[policy, side]]) for side in (0, 1))
    if loss == "orpo":
        whole = torch.cat([row[1] for row in rows[policy, 0]])
        odds = (am - rm) - (torch.log1p(-am.exp()) - torch.log1p(-rm.exp()))
        return -whole.mean() - beta * logsig(odds).mean()
    return {
        "dpo": lambda: -logsig(beta * h), "ld_dpo": lambda: -logsig(beta * h),
        "cdpo": lambda: -(1 - wrong) * logsig(beta * h) - wrong * logsig(-beta * h),
        "robust": lambda: (-(1 - wrong) * logsig(beta * h) + wrong * logsig(-beta * h))
        / (1 - 2 * wrong),
        "ipo": lambda: (am - rm - 1 / (2 * beta))**2, "ipo_sum": lambda: (h - 1 / (2 * beta))**2,
        "hinge": lambda: torch.relu(1 - beta * h), "dpo_norm": lambda: -logsig(beta * (am - rm)),
        "apo_zero": lambda: 1 - torch.sigmoid(beta * a) + torch.sigmoid(beta * r),
        "apo_down": lambda: torch.sigmoid(beta * a) + 1 - torch.sigmoid(beta * h),
        "simpo": lambda: -logsig(beta * (am - rm) - settings["gamma"]),
    }[loss]().mean()


def kto(policy: Any, reference: Any, *, beta: float, undesirable_weight: float = 1.0) -> Any:
    """KTO of the first answer as good, the second as bad, and so on in turn."""
    import torch

    answers = [(CHOSEN, REJECTED)[i % 2][i] for i in range(len(PROMPTS))]
    others = [answers[-1], *answers[:-1]]
    ratios, mismatched = (torch.stack([
        answer_logps(policy, p, x, False)[0].sum()
        - answer_logps(reference, p, x, False)[0].sum().detach()
        for p, x in zip(PROMPTS, given)]) for given in (answers, others))
    z0 = mismatched.mean().clamp(min=0).detach()
    good = 1 - torch.sigmoid(beta * (ratios[0::2] - z0))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (z0 - ratios[1::2])))
    return torch.cat([good, bad]).mean()


def run_trl(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of TRL's own trainers, once they and their gradients equal those that are found.

    Args:
        found: values and gradients by formula.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    import datasets
    import trl
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    datasets.disable_progress_bars()
    values = {}
    for name, settings in LOSSES.items():
        loss, policy, reference = name.partition("/")[0], make_model(0), make_model(1)
        if loss in NOT_IN_TRL:
            continue
        options = dict(settings)
        if loss in JOINED:
            cls, cfg = (CPOTrainer, CPOConfig) if loss == "simpo" else (ORPOTrainer, ORPOConfig)
            if loss == "simpo":
                options = dict(loss_type="simpo", beta=options["beta"], cpo_alpha=0.0,
                               simpo_gamma=options["gamma"])
            trainer = cls(model=policy, args=cfg(**options, **trainer_arguments(), max_length=64),
                          train_dataset=_pairs(""), processing_class=make_tokenizer())
            value, _ = trainer.get_batch_loss_metrics(trainer.model, _batch(trainer), "eval")
        elif loss == "kto":
            policy, reference = (reference, policy) if "swapped" in name else (policy, reference)
            trainer = trl.KTOTrainer(
                model=policy, ref_model=reference, processing_class=make_tokenizer(),
                train_dataset=_labels(), args=trl.KTOConfig(**options, **trainer_arguments(),
                                                            max_length=None))
            value = trainer.compute_loss(trainer.model, _batch(trainer))
        else:
            kind = {"dpo": "sigmoid", "ld_dpo": "sigmoid", "dpo_norm": "sigmoid_norm"}.get(loss,
                                                                                         loss)
            trainer = trl.DPOTrainer(
                model=policy, ref_model=reference, processing_class=make_tokenizer(),
                train_dataset=_pairs(" <eos>"),
                args=trl.DPOConfig(loss_type=kind, **options, **trainer_arguments(),
                                   max_length=None))
            value = trainer.compute_loss(trainer.model, _batch(trainer))
        value.backward()
        values[f"{name}/trl"] = np.float64(value.detach().item())
        compare(name, found[f"{name}/value"], values[f"{name}/trl"])
        for key, parameter in policy.named_parameters():
            if key in GRADIENTS:
                compare(f"{name}, gradient of {key}", found[f"{name}/{key}"],
                        parameter.grad[:NUM_ROWS].numpy())
    return values


def _batch(trainer: Any) -> Any:
    trainer.model.eval()
    return next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))


def trainer_arguments() -> dict[str, Any]:
    """What all of TRL's trainers are given."""
    return dict(output_dir=tempfile.mkdtemp(), report_to="none", use_cpu=True, bf16=False,
                fp16=False, per_device_train_batch_size=4, per_device_eval_batch_size=4,
                gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
                remove_unused_columns=False, logging_strategy="no", seed=0,
                dataloader_pin_memory=False)


def _words(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def _pairs(end: str) -> Any:
    from datasets import Dataset

    space = " " if end else ""
    return Dataset.from_dict({"prompt": [_words(p) + space for p in PROMPTS],
                              "chosen": [_words(c) + end for c in CHOSEN],
                              "rejected": [_words(r) + end for r in REJECTED]})


def _labels() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({
        "prompt": [_words(p) + " " for p in PROMPTS],
        "completion": [_words((CHOSEN, REJECTED)[i % 2][i]) + " <eos>" for i in range(4)],
        "label": [i % 2 == 0 for i in range(4)]})


def make_tokenizer() -> Any:
    """A tokenizer of whole words, w3 to w96."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS, **{f"w{i}": i for i in range(3, V)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>",
                                   bos_token="<bos>", eos_token="<eos>", padding_side="left",
                                   add_bos_token=False)


if __name__ == "__main__":
    run(main)
