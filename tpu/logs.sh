#!/usr/bin/env bash
# Copies every worker's log to tpu-logs/NAME/worker-K.log, and the run's metrics from WORKDIR.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME TOPOLOGY
slice_of "$TOPOLOGY"
out="${LOG_DIR:-tpu-logs/$NAME}"
run mkdir -p "$out"
# Chips a host holds: 4, except that v5e and v6e slices of up to 8 chips are one host.
hosts=$(((CHIPS + 3) / 4))
[[ "$TOPOLOGY" =~ ^v[56]e && "$CHIPS" -le 8 ]] && hosts=1
for node in $(nodes); do
  for ((k = 0; k < hosts; k++)); do
    run gcloud compute tpus tpu-vm scp "$node:jaxlm-run/log.txt" "$out/$node-worker-$k.log" \
      --project="$PROJECT" --zone="$ZONE" --worker="$k"
  done
done
[[ "${WORKDIR:-}" == gs://* ]] && run gcloud storage cp "$WORKDIR/metrics.jsonl" "$out/metrics.jsonl"
exit 0
