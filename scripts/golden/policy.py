"""Golden values of losses of a policy: TRL's, and formulas in float64, with gradients.

    .venv-peers/bin/python -m scripts.golden.policy

Writes `tests/golden/policy/losses.npz`: random log-probabilities, values and scores of six answers,
and of each case the loss and its gradient by new log-probabilities and values. The formulas stand
here in torch, apart from ours. Where TRL has the loss, its own trainer computes it in float32 from
the same log-probabilities, given to it in place of its model's, and the two are compared. So are
the advantages that its trainers of GRPO and RLOO give to answers with these scores.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from core.artifacts import ROOT
from core.entry import run
from scripts.golden.trl import compare, make_model, make_tokenizer, trainer_arguments

OUT = ROOT / "tests" / "golden" / "policy" / "losses.npz"
LENGTHS = (8, 3, 1, 5, 7, 6)
MAX_TOKENS = 8
MASKED = (4, 2)                         # within an answer, as what a tool wrote
SCORES = (1.0, 0.0, 2.5, 0.5, -1.0, 0.25)
GROUP_SIZE = 3
# By name, that of a method and what tells two of it apart: its settings.
CASES: dict[str, dict[str, Any]] = {
    "ppo": dict(vf_coef=0.1), "ppo/values unclipped": dict(vf_coef=0.5, value_clip=0.0),
    "grpo": dict(aggregation="grpo", kl_coef=0.3),
    "grpo/corrected": dict(aggregation="grpo", kl_coef=0.3, kl_loss="k3_corrected"),
    "grpo/k2": dict(aggregation="grpo", kl_coef=0.3, kl_loss="k2"),
    "dapo": dict(eps_high=0.28), "dapo/kl": dict(eps_high=0.28, kl_coef=0.1),
    "dr_grpo": dict(aggregation="dr_grpo", max_tokens=MAX_TOKENS, kl_coef=0.04),
    "gspo": dict(ratio="answer_mean", aggregation="grpo", eps_low=0.03, eps_high=0.04),
    "gspo/corrected": dict(ratio="answer_mean", aggregation="grpo", kl_coef=0.3,
                           kl_loss="k3_corrected"),
    "rloo": dict(ratio="answer", aggregation="grpo")}
NOT_IN_TRL = ("ppo", "ppo/values unclipped", "grpo/k2")


def main() -> dict[str, Any]:
    """Computes all values, compares them and writes the file."""
    import torch

    torch.set_num_threads(1)
    inputs = make_inputs()
    found = {}
    for name, settings in CASES.items():
        leaves = {key: torch.tensor(inputs[key], requires_grad=True) for key in ("new", "vpred")}
        value = formula(settings, {**{key: torch.tensor(array) for key, array in inputs.items()},
                                   **leaves})
        value.backward()
        found[f"{name}/value"] = np.float64(value.item())
        for key, leaf in leaves.items():
            if leaf.grad is not None:
                found[f"{name}/gradient/{key}"] = leaf.grad.numpy()
    found |= run_trl(inputs, found)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, **inputs, **found)
    return {"cases": len(CASES), "bytes": OUT.stat().st_size}


def make_inputs() -> dict[str, np.ndarray]:
    """Random numbers of an ordinary size, and advantages of the scores, in float64."""
    rng = np.random.default_rng(7)
    shape = len(LENGTHS), MAX_TOKENS
    mask = (np.arange(MAX_TOKENS) < np.array(LENGTHS)[:, None]).astype(np.float64)
    mask[MASKED] = 0
    new = -rng.gamma(1.5, 1.0, shape)
    values = rng.normal(size=shape)
    scores = np.array(SCORES).reshape(-1, GROUP_SIZE)
    deviations = scores - scores.mean(axis=1, keepdims=True)
    return dict(mask=mask, new=new, old=new + 0.25 * rng.normal(size=shape),
                reference=new + 0.6 * rng.normal(size=shape), values=values,
                vpred=values + 0.3 * rng.normal(size=shape), returns=rng.normal(size=shape),
                scores=np.array(SCORES),
                advantages=(deviations / (scores.std(axis=1, ddof=1, keepdims=True) + 1e-4))
                .reshape(-1),
                rloo_advantages=(deviations * GROUP_SIZE / (GROUP_SIZE - 1)).reshape(-1))


def formula(settings: dict[str, Any], x: dict[str, Any]) -> Any:
    """A loss by its formula."""
    import torch

    mask, num = x["mask"], x["mask"].sum(1, keepdim=True)
    level = settings.get("ratio", "token")
    log_ratio = (x["new"] - x["old"]) * mask
    if level != "token":
        log_ratio = log_ratio.sum(1, keepdim=True) / (num if level == "answer_mean" else 1)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - settings.get("eps_low", 0.2), 1 + settings.get("eps_high", 0.2))
    advantages = x["rloo_advantages" if level == "answer" else "advantages"][:, None]
    loss = -torch.minimum(ratio * advantages, clipped * advantages) * torch.ones_like(mask)
    d = x["new"] - x["reference"]
    kl = {"k2": d**2 / 2, "k3": (-d).exp() - 1 + d,
          "k3_corrected": ((-d).exp() - 1 + d) * ratio}[settings.get("kl_loss", "k3")]
    loss = loss + settings.get("kl_coef", 0.0) * kl
    if "vf_coef" in settings:
        wide = (x["vpred"] - x["returns"])**2
        if clip := settings.get("value_clip", 0.2):
            near = x["values"] + (x["vpred"] - x["values"]).clamp(-clip, clip)
            wide = torch.maximum(wide, (near - x["returns"])**2)
        loss = loss + settings["vf_coef"] * 0.5 * wide
    rows = (loss * mask).sum(1)
    return {"token": rows.sum() / mask.sum(), "grpo": (rows / num[:, 0]).mean(),
            "dr_grpo": rows.sum() / (len(rows) * MAX_TOKENS)}[settings.get("aggregation", "token")]


def run_trl(inputs: dict[str, np.ndarray], found: dict[str, Any]) -> dict[str, Any]:
    """TRL's losses, once they, their gradients and the advantages equal those of the formulas."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    import torch

    with tempfile.TemporaryDirectory() as folder:
        make_model(0).save_pretrained(folder)
        for kind in ("grpo", "rloo"):
            key = "advantages" if kind == "grpo" else "rloo_advantages"
            compare(f"{key} of {kind}", inputs[key], _trl_advantages(_trainer(kind, folder, {})))
        values = {}
        for name, settings in CASES.items():
            if name in NOT_IN_TRL:
                continue
            kind = "rloo" if settings.get("ratio") == "answer" else "grpo"
            trainer = _trainer(kind, folder, settings)
            new = torch.tensor(inputs["new"], dtype=torch.float32, requires_grad=True)
            value = _trl_loss(trainer, new, inputs, kind)
            value.backward()
            values[f"{name}/trl"] = np.float64(value.item())
            compare(name, found[f"{name}/value"], values[f"{name}/trl"])
            compare(f"{name}, gradient", found[f"{name}/gradient/new"], new.grad.numpy())
    return values


def _trainer(kind: str, folder: str, settings: dict[str, Any]) -> Any:
    """A trainer of TRL; its model is only there to be replaced."""
    import datasets
    import trl

    cls, cfg = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig),
                "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}[kind]
    options: dict[str, Any] = dict(trainer_arguments(), beta=settings.get("kl_coef", 0.0),
                                   num_generations=GROUP_SIZE, max_completion_length=MAX_TOKENS,
                                   epsilon=settings.get("eps_low", 0.2),
                                   epsilon_high=settings.get("eps_high", 0.2))
    options |= dict(per_device_train_batch_size=len(SCORES),
                    per_device_eval_batch_size=len(SCORES))
    if kind == "grpo":
        options |= dict(
            loss_type={"token": "dapo"}.get(settings.get("aggregation", "token"),
                                            settings.get("aggregation")),
            importance_sampling_level="token" if "ratio" not in settings else "sequence",
            use_bias_correction_kl="corrected" in settings.get("kl_loss", "k3"))
    prompts = datasets.Dataset.from_dict({"prompt": ["w5 w6", "w8 w9"] * 3})
    trainer = cls(model=folder, reward_funcs=lambda completions, **_: list(SCORES),
                  args=cfg(**options), train_dataset=prompts, processing_class=make_tokenizer())
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.eval()
    return trainer


def _trl_advantages(trainer: Any) -> np.ndarray:
    """What it gives to answers that it samples, and scores with `SCORES`."""
    prompts = [{"prompt": prompt} for prompt in ("w5 w6", "w8 w9") for _ in range(GROUP_SIZE)]
    return trainer._generate_and_score_completions(prompts)["advantages"].double().numpy()


def _trl_loss(trainer: Any, new: Any, inputs: dict[str, np.ndarray], kind: str) -> Any:
    """Its loss, with `new` in place of the log-probabilities of its model."""
    import torch

    given = {key: torch.tensor(array, dtype=torch.float32) for key, array in inputs.items()}
    mask = given["mask"]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros_like(new), None)
    ids = torch.zeros_like(mask, dtype=torch.long)
    return trainer._compute_loss(trainer.model, dict(
        prompt_ids=ids[:, :2], prompt_mask=torch.ones_like(ids[:, :2]), completion_ids=ids,
        completion_mask=mask, old_per_token_logps=given["old"],
        ref_per_token_logps=given["reference"], num_items_in_batch=mask.sum(),
        advantages=given["rloo_advantages" if kind == "rloo" else "advantages"],
        old_logps=(given["old"] * mask).sum(1)))


if __name__ == "__main__":
    run(main)
