#!/usr/bin/env bash
# The quickstart: all stages from raw pages to a chat model and a report.
#
#   bash scripts/quickstart.sh [cpu|accelerator|portable|smoke] [WORKDIR]
#
# Finished stages are skipped; a killed run resumes where it stopped. Each stage prints one JSON
# line; the last line summarises the run.
set -euo pipefail
cd "$(dirname "$0")/.."

variant=${1:-cpu}
workdir=${2:-runs/quickstart-$variant}
extra=
if [ "$variant" = accelerator ] && command -v nvidia-smi >/dev/null; then extra=cuda; fi
if [ "$variant" = portable ]; then extra=hf; fi
source scripts/environment.sh "$extra"

stage() {
  local module=$1
  shift
  "$python" -m "$module" --config="configs/quickstart.py:$variant" --workdir="$workdir" "$@"
}

stage data.curate
stage data.train_tokenizer
stage data.pack
stage train.pretrain
stage eval.run
stage align.sft
stage eval.run --config.eval.model=sft --config.eval.out=eval_sft --config.eval.against=eval_base
stage align.pairs
stage align.reward
stage align.dpo
stage eval.run --config.eval.model=dpo --config.eval.out=eval_dpo --config.eval.against=eval_sft
stage align.rl
stage eval.run --config.eval.model=rl --config.eval.out=eval_rl --config.eval.against=eval_dpo
if [ "$variant" = portable ] && [ ! -e "$workdir/exported" ]; then
  "$python" -m model.hf export --model="$workdir/rl" --out="$workdir/exported"
fi
echo "chat with it:  .venv/bin/python -m serve.chat --model=$workdir/rl" >&2
stage serve.report.write
