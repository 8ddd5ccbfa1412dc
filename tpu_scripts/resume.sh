#!/usr/bin/env bash
# Brings a run back after a preemption or a crash: replaces a slice that is gone, installs, trains.
#
#   tpu_scripts/resume.sh --experiment=cqa_dss_base --provisioning=spot --every=60
#
# Takes the settings of create.sh and the flags of train.sh. Does only what is missing, so it may
# stand in place of create.sh, install.sh and train.sh from the start, and may be run at any time.
# A run that has its results.json is finished. Flags of its own:
#   --experiment=NAME, --run=NAME, -- FLAG…   as for train.sh
#   --every=SECONDS            [0: once] looks again, until the run has finished
#   --max_restarts=NUMBER      [5] restarts of training that failed on a healthy slice
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

experiment='' run='' every=0 max_restarts=5
own_flag() {
  case "$1" in
    --experiment=*) experiment="${1#*=}" ;;
    --run=*) run="${1#*=}" ;;
    --every=*) every="${1#*=}" ;;
    --max_restarts=*) max_restarts="${1#*=}" ;;
    *) return 1 ;;
  esac
}
parse_flags "$@"
needs project zone bucket
describe_run
[[ $every =~ ^[0-9]+$ ]] || fail "--every=$every: expected seconds"
[[ $max_restarts =~ ^[0-9]+$ ]] || fail "--max_restarts=$max_restarts: expected a number"

restarts=0

# One look, and what it calls for. Status 1: something failed that may go better next time.
look() {
  find_slice || return 1
  if [[ $slice == gone || -n $dry_run ]]; then
    note "if the slice was preempted or stopped:"
    "$here/delete.sh" $dry_run || return 1
    slice=none
  fi
  if [[ $slice == none || -n $dry_run ]]; then
    note "if there is no slice (any more):"
    "$here/create.sh" $dry_run || return 1
  elif [[ $slice == waiting ]]; then
    say "$name: TPU VM ${tpu_state:-none}, queued request ${request_state:-none}: not ready yet"
    return
  fi

  local states
  on_workers all "bash distill_sbs/worker.bash status $run || echo state: not installed"
  states="$(ask "${ssh[@]}")" || return 1
  if [[ $states == *"state: running"* ]]; then
    say "$name: $(grep -m 1 -o 'running .*' <<<"$states")"
    return
  fi
  if grep -qx 'state: exit 2' <<<"$states"; then
    say "error: training refused its settings, and would again; watch.sh shows the message"
    exit 2
  fi
  # 143 is a preemption; 0 without results.json is another worker's failure.
  if grep -qx 'state: exit [0-9]*' <<<"$states" && ! grep -qx 'state: exit 143' <<<"$states"; then
    ((restarts++ < max_restarts)) || fail "training failed $restarts times; watch.sh shows the log"
  fi
  if [[ $states == *"state: not installed"* || -n $dry_run ]]; then
    note "if a worker has nothing installed:"
    "$here/install.sh" $dry_run || return 1
  fi
  note "if it does not train:"
  "$here/train.sh" $dry_run --experiment="$experiment" --run="$run" -- "${rest[@]}" || return 1
}

while true; do
  if in_bucket "$model_dir/results.json"; then
    say "$run has finished:"
    gcloud storage cat "$model_dir/results.json"
    exit
  fi
  note "unless it has finished:"
  if look; then failed=; else failed=true; fi
  ((every)) && [[ -z $dry_run ]] || break
  sleep "$every"
done
[[ -z $failed ]]
