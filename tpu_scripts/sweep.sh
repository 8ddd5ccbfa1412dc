#!/usr/bin/env bash
# Trains an experiment over mixtures, data fractions and seeds, one run after the other.
#
#   tpu_scripts/sweep.sh --experiment=cqa_dss_base --mixtures=cqa_dss_palm,cqa_dss_distill_palm \
#     --data_fractions=0.25,1 --seeds=0,1,2,3 --provisioning=spot
#
# Every run is brought to its end by resume.sh, over preemptions, so this may be started again at
# any time: runs that have finished stay. In the end the results come to OUTPUT, where
# `python -m distill_sbs.sweep` makes its table of them. Flags after -- go to training. Flags of
# its own:
#   --experiment=NAME          gin/experiments/NAME.gin
#   --mixtures=NAME,…          --data_fractions=F,… [1]          --seeds=N,… [0]
#   --sweep=NAME               [the experiment's name] runs are BUCKET/runs/sweeps/NAME/…
#   --output=FOLDER            [runs/sweeps/NAME] local, for results and table
#   --every=SECONDS            [60] between two looks at a run
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

experiment='' mixtures='' data_fractions=1 seeds=0 sweep='' output='' every=60
own_flag() {
  case "$1" in
    --experiment=*) experiment="${1#*=}" ;;
    --mixtures=*) mixtures="${1#*=}" ;;
    --data_fractions=*) data_fractions="${1#*=}" ;;
    --seeds=*) seeds="${1#*=}" ;;
    --sweep=*) sweep="${1#*=}" ;;
    --output=*) output="${1#*=}" ;;
    --every=*) every="${1#*=}" ;;
    *) return 1 ;;
  esac
}
parse_flags "$@"
needs project zone bucket
run="sweeps/${sweep:-$experiment}"
describe_run
output="${output:-runs/$run}"
number='[0-9]*\.?[0-9]+'
[[ $mixtures =~ ^[a-z0-9_]+(,[a-z0-9_]+)*$ ]] ||
  fail "--mixtures=$mixtures: expected names with commas"
[[ $data_fractions =~ ^$number(,$number)*$ ]] ||
  fail "--data_fractions=$data_fractions: expected numbers with commas, such as 0.25,1"
[[ $seeds =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--seeds=$seeds: expected numbers with commas"
[[ $every =~ ^[1-9][0-9]*$ ]] || fail "--every=$every: expected seconds, at least 1"

# Seeds outermost and folders named as by distill_sbs.sweep.
for seed in ${seeds//,/ }; do
  for fraction in ${data_fractions//,/ }; do
    for mixture in ${mixtures//,/ }; do
      folder="$mixture/fraction_$(LC_ALL=C printf '%.4g' "$fraction")/seed_$seed"
      note "---- $folder ----"
      "$here/resume.sh" $dry_run --experiment="$experiment" --run="$run/$folder" --every="$every" \
        -- "${rest[@]}" --gin.MIXTURE_OR_TASK_NAME="'$mixture'" --gin.DATA_FRACTION="$fraction" \
        --gin.RANDOM_SEED="$seed"
    done
  done
done

note "---- the table ----"
run mkdir -p "$output"
run gcloud storage rsync --recursive '--exclude=^(?!(.*/)?results[.]json$).*$' \
  "$model_dir" "$output"
run "${PYTHON:-python3}" -m distill_sbs.sweep --mixtures="$mixtures" \
  --data_fractions="$data_fractions" --seeds="$seeds" --output="$output"
