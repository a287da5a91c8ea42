"""Golden values of a reward model: scores, losses and gradients of a tiny Llama of transformers.

    .venv-peers/bin/python -m scripts.golden.reward

Writes `tests/golden/reward/losses.npz`. A random Llama with a scalar head scores four pairs. The
losses are what the RewardTrainer of TRL 1.16.0 gave for this very model and batch (torch 2.13.0
draws the weights, on a CPU); this script computes them and their gradients in float64, by formulas
that stand here apart from ours, and ends with an error where they differ.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from core.artifacts import ROOT
from core.entry import run
from core.errors import UserError

OUT = ROOT / "tests" / "golden" / "reward" / "losses.npz"
EOS = 2
CONFIG = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
              rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=False,
              attention_dropout=0.0, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
              eos_token_id=EOS)
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
CHOSEN = [[20, 21, 22, 23], [24], [25, 26], [27, 28, 29, 30, 31]]
REJECTED = [[40, 41], [42, 43, 44], [45, 46, 47, 48, 49, 50], [51]]
MARGINS = [0.5, 1.0, 0.0, 2.0]
CENTERING = 0.01    # `center_rewards_coefficient`
TRL = {"plain": 2.44312906, "margin": 3.26504278, "centred": 2.49926376}
GRADIENTS = ("score.weight", "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight")


def main() -> dict[str, Any]:
    """Makes the model and its values, and writes the file.

    Raises:
        UserError: a loss is not TRL's.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(2)
    model = LlamaForSequenceClassification(
        LlamaConfig(**CONFIG, num_labels=1, attn_implementation="eager")).float().eval()
    arrays = {f"weights/{name}": value.numpy().copy() for name, value in model.state_dict().items()}
    model = model.double()

    def scores(answers: list[list[int]]) -> Any:
        return torch.stack([model(torch.tensor([prompt + answer + [EOS]])).logits[0, 0]
                            for prompt, answer in zip(PROMPTS, answers)])

    for name, trl in TRL.items():
        model.zero_grad()
        chosen, rejected = scores(CHOSEN), scores(REJECTED)
        margins = torch.tensor(MARGINS if name == "margin" else [0.0] * 4, dtype=torch.float64)
        loss = torch.nn.functional.softplus(margins - (chosen - rejected)).mean()
        if name == "centred":
            loss = loss + CENTERING * ((chosen + rejected)**2).mean()
        if abs(float(loss.detach()) - trl) > 1e-5:
            raise UserError(f"loss {name}={float(loss)}", f"is not TRL's, {trl}",
                            "use torch 2.13.0, whose random numbers the weights are")
        loss.backward()
        weights = dict(model.named_parameters())
        arrays |= {f"gradients/{name}/{weight}": weights[weight].grad.float().numpy().copy()
                   for weight in GRADIENTS}
    arrays["scores"] = torch.stack([chosen, rejected], 1).detach().numpy()
    described = dict(losses=TRL, config=CONFIG, prompts=PROMPTS, chosen=CHOSEN, rejected=REJECTED,
                     margins=MARGINS, centering=CENTERING, eos=EOS)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, described=json.dumps(described), **arrays)
    return {"path": str(OUT), **TRL}


if __name__ == "__main__":
    run(main)
