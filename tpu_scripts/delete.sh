#!/usr/bin/env bash
# Deletes the TPU VM and its queued request, if these scripts created them. The bucket stays.
#
#   tpu_scripts/delete.sh
#
# What does not carry the label created-by=distill-sbs is left alone, and that is an error. Flags of
# its own:
#   --with_bucket              deletes the data and runs in the bucket too, and the bucket, if these
#                              scripts created it and nothing else is in it
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

with_bucket=
own_flag() {
  case "$1" in
    --with_bucket) with_bucket=true ;;
    *) return 1 ;;
  esac
}
parse_flags "$@"
needs project zone

# Everything is looked at before anything is deleted.
bucket_label=
if [[ -n $with_bucket ]]; then
  needs bucket
  bucket_root="$(grep -o '^gs://[^/]*' <<<"$bucket")"
  if bucket_label="$(ask gcloud storage buckets describe "$bucket_root" \
    --format="value(labels.$label_key)" 2>&1)"; then
    [[ -n $dry_run ]] || must_be_ours "the bucket $bucket_root" "$bucket_label"
  else
    [[ $bucket_label == *"not found: 404"* ]] || fail "$bucket_label"
    bucket_label=
  fi
fi
find_slice
[[ -n $dry_run || $slice != none ]] || say "there is no TPU VM or queued request $name in $zone"

if [[ -n $request_state || -n $dry_run ]]; then
  note "if there is a queued request, and it carries the label $label_key=$label_value:"
  # --force: with its TPU VM.
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  [[ -n $dry_run ]] || find_slice
fi
if [[ $tpu_state == DELETING ]]; then
  say "$name is DELETING already"
elif [[ -n $tpu_state || -n $dry_run ]]; then
  note "if there is a TPU VM, and it carries the label $label_key=$label_value:"
  run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
fi

if [[ -n $bucket_label || -n $dry_run && -n $with_bucket ]]; then
  note "if there is a bucket, and it carries the label $label_key=$label_value:"
  for folder in raw data runs; do
    if [[ -n $dry_run ]] || in_bucket "$bucket/$folder/"; then
      run gcloud storage rm --recursive "$bucket/$folder/"
    fi
  done
  run gcloud storage buckets delete "$bucket_root" --quiet
fi
