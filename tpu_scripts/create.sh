#!/usr/bin/env bash
# Creates a TPU VM slice, at once or by a queued request, and waits until it is ready.
#
#   tpu_scripts/create.sh --provisioning=spot
#   tpu_scripts/create.sh --queued --accelerator_type=v4-32 --name=big
#
# A slice that is there already is left as it is. Flags of its own:
#   --no_wait                  returns while a queued request is still waiting
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

wait=true
own_flag() {
  case "$1" in
    --no_wait) wait=false ;;
    *) return 1 ;;
  esac
}
parse_flags "$@"
needs project zone

if [[ -z $runtime_version ]]; then
  case "$accelerator_type" in
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    v[234]-*) runtime_version=tpu-ubuntu2204-base ;;
    *) fail "--accelerator_type=$accelerator_type: not known here; name its --runtime_version" ;;
  esac
fi

gone_message() {
  local state="${tpu_state:-$request_state}"
  echo "$name is ${state:-not there any more}; resume.sh replaces it, delete.sh deletes it"
}

wait_until_ready() {
  note "every 30 s until the TPU VM is READY:"
  while true; do
    find_slice
    [[ $slice != ready && -z $dry_run ]] || return 0
    [[ $slice == waiting ]] || fail "$(gone_message)"
    say "$name: TPU VM ${tpu_state:-not there yet}, queued request ${request_state:-none}"
    sleep 30
  done
}

find_slice
[[ -z $tpu_state || $tpu_type == "$accelerator_type" ]] ||
  fail "$name exists and is a $tpu_type, not a $accelerator_type; choose another --name"
case "$slice" in
  ready) say "$name is there already, and READY" ;;
  gone) fail "$(gone_message)" ;;
  none)
    kind=()
    [[ $provisioning == on_demand ]] || kind=(--"$provisioning")
    read -ra more <<<"$create_flags"
    note "if there is neither a TPU VM nor a request:"
    if [[ $queued == true ]]; then
      run gcloud compute tpus queued-resources create "$name" "${place[@]}" --node-id="$name" \
        --accelerator-type="$accelerator_type" --runtime-version="$runtime_version" \
        --labels="$label_key=$label_value" "${kind[@]}" "${more[@]}"
    else
      run gcloud compute tpus tpu-vm create "$name" "${place[@]}" \
        --accelerator-type="$accelerator_type" --version="$runtime_version" \
        --labels="$label_key=$label_value" "${kind[@]}" "${more[@]}"
    fi
    ;;
esac
if [[ $slice == waiting || $slice == none && $queued == true ]] && $wait; then
  wait_until_ready
fi
