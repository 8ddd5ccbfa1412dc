#!/usr/bin/env bash
# Trains an experiment on all workers of the slice, in the background there.
#
#   tpu_scripts/train.sh --experiment=cqa_dss_base
#   tpu_scripts/train.sh --experiment=cqa_dss_base --run=cqa_quarter -- --gin.DATA_FRACTION=0.25
#
# MODEL_DIR is BUCKET/runs/RUN and DATA_DIR is BUCKET/data; flags after -- go to
# `python -m distill_sbs.train`. The same command again continues the run, on this slice or on
# another; while it trains it starts nothing. Flags of its own:
#   --experiment=NAME          gin/experiments/NAME.gin
#   --run=NAME                 [the experiment's name]
#   --stop                     has the workers save a checkpoint and stop, instead
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

experiment='' run='' stop=''
own_flag() {
  case "$1" in
    --experiment=*) experiment="${1#*=}" ;;
    --run=*) run="${1#*=}" ;;
    --stop) stop=true ;;
    *) return 1 ;;
  esac
}
parse_flags "$@"
needs project zone bucket

if [[ -n $stop ]]; then
  on_workers all 'bash distill_sbs/worker.bash stop'
else
  describe_run
  on_workers all "bash distill_sbs/worker.bash start $(quoted "$run" "${train_flags[@]}")"
fi
run "${ssh[@]}"
