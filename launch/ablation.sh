#!/usr/bin/env bash
# What each choice of the search brings: one change at a time, one budget, one seed.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/ablation.sh DIR CONFIG FLAG...

Searches at 40 % of the dense cost with the recipe CONFIG as it is and with one choice
changed at a time, on 90 % of the training images, and evaluates all on the others:
DIR/evaluation.json, DIR/report.html and DIR/report.md. FLAGs go to every program.

example: launch/ablation.sh runs/ablation configs/cifar10.py \
  --config.weights=vit_cifar10.safetensors --config.dataset=arrays:cifar10.npz
TEXT
}

if [[ $# -lt 2 || "$1" == --help || "$1" == -h ]]; then
  usage
  exit 0
fi
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
dir=$(realpath -m "$1") config=$(realpath "$2")
shift 2
make_venv requirements.txt
cd "$root"
python=.venv/bin/python
common=(--config="$config" --config.target=40% --config.compare_images=0 "$@")

choices=(
  "as it is|"
  "seed 1|--config.seed=1"
  "seed 2|--config.seed=2"
  "labels|--config.objective=cross_entropy"
  "rule tome|--config.rule=tome"
  "rule diffrate|--config.rule=diffrate"
  "first block kept whole|--config.blocks=model"
  "penalised logits|--config.method=penalised --config.learning_rate=0.01"
  "start dense|--config.start=dense"
  "start from ToMe|--config.start=tome:8"
  "a third of the steps|--config.steps=100"
  "thrice the steps|--config.steps=900"
  "last tokens not moved|--config.refine_images=0"
  "wide spread|--config.spread=8 --config.final_spread=8"
  "1000 images|--config.train_split=train[10%:12%]"
)
against=()
for choice in "${choices[@]}"; do
  name=${choice%%|*} run=$dir/${choice%%|*}
  read -ra changed <<<"${choice#*|}"
  [[ -f $run/schedule.json ]] || "$python" -m diffrate_jax.search "${common[@]}" \
    --workdir="$run" --config.train_split='train[10%:]' ${changed[@]+"${changed[@]}"}
  against+=("$name=$run/schedule.json")
done
[[ -f $dir/evaluation.json ]] || "$python" -m diffrate_jax.evaluate "${common[@]}" \
  --workdir="$dir" --config.eval_split='train[:10%]' \
  --against="$(IFS=,; echo "${against[*]}")"
"$python" -m diffrate_jax.report --results="$dir" --out="$dir/report.html" --markdown="$dir/report.md"
