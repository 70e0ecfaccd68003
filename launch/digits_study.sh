#!/usr/bin/env bash
# Learned schedules against every baseline on the digits: seeds 0, 1, 2 at 60 % and 40 %.
# Every seed trains its own model; what is done already is not done again.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/digits_study.sh [DIR]

Trains, searches and evaluates on the digits with three seeds at two budgets, and writes
DIR/report.html and DIR/report.md. DIR is runs/digits_study by default.

example: launch/digits_study.sh runs/digits_study
TEXT
}

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  usage
  exit 0
fi
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
make_venv requirements.txt
cd "$root"
python=.venv/bin/python
dir=${1:-runs/digits_study}

for seed in 0 1 2; do
  weights=$dir/seed$seed/train/weights.safetensors
  common=(--config.data_dir="$dir/data" --config.seed="$seed" --config.compilation_cache="$dir/compiled")
  "$python" -m diffrate_jax.finetune --config=configs/quickstart_train.py \
    --workdir="$dir/seed$seed/train" "${common[@]}"
  for target in 60% 40%; do
    run=$dir/seed$seed/${target%\%}
    "$python" -m diffrate_jax.search --config=configs/quickstart.py --workdir="$run" \
      --config.weights="$weights" --config.target=$target "${common[@]}"
    [[ -f $run/evaluation.json ]] || "$python" -m diffrate_jax.evaluate \
      --config=configs/quickstart.py --workdir="$run" --config.weights="$weights" \
      --schedule="$run/schedule.json" --baselines "${common[@]}"
  done
done
"$python" -m diffrate_jax.report --results="$dir" --out="$dir/report.html" --markdown="$dir/report.md"
