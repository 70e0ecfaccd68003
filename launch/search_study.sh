#!/usr/bin/env bash
# Learned schedules against every baseline: seeds 0, 1, 2 at 60, 50, 40 and 30 % of the
# dense cost, and the published search at 50 and 40 %. What is done is not done again.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/search_study.sh DIR CONFIG PUBLISHED FLAG...

Searches with three seeds at four budgets with the recipe CONFIG, with the published rules
at two budgets with the recipe PUBLISHED (or none), evaluates all on every test image, and
writes DIR/report.html and DIR/report.md. FLAGs go to every program.

example: launch/search_study.sh runs/cifar10 configs/cifar10.py configs/cifar10_published.py \
  --config.weights=vit_cifar10.safetensors --config.dataset=arrays:cifar10.npz
TEXT
}

if [[ $# -lt 3 || "$1" == --help || "$1" == -h ]]; then
  usage
  exit 0
fi
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
dir=$(realpath -m "$1") config=$(realpath "$2") published=$3
[[ $published == none ]] || published=$(realpath "$published")
shift 3
make_venv requirements.txt
cd "$root"
python=.venv/bin/python

for seed in 0 1 2; do
  [[ -f $dir/seed$seed/comparison.json ]] || "$python" -m diffrate_jax.search \
    --config="$config" --workdir="$dir/seed$seed" --config.seed=$seed \
    --config.targets="('60%','50%','40%','30%')" --config.compare_images=0 "$@"
done
for target in 50% 40%; do
  run=$dir/published_${target%\%}
  [[ $published == none || -f $run/comparison.json ]] || "$python" -m diffrate_jax.search \
    --config="$published" --workdir="$run" --config.target=$target \
    --config.compare_images=0 "$@"
done
for target in 60% 50% 40% 30%; do
  run=$dir/test_${target%\%}
  against="seed 1=$dir/seed1/schedule_$target.json,seed 2=$dir/seed2/schedule_$target.json"
  other=$dir/published_${target%\%}/schedule.json
  [[ ! -f $other ]] || against+=",published search=$other"
  [[ -f $run/evaluation.json ]] || "$python" -m diffrate_jax.evaluate \
    --config="$config" --workdir="$run" --baselines --against="$against" \
    --schedule="$dir/seed0/schedule_$target.json" "$@"
done
"$python" -m diffrate_jax.report --results="$dir" --out="$dir/report.html" --markdown="$dir/report.md"
