#!/usr/bin/env bash
# Asks for the slice as a queued resource and waits until it is there.   DRY_RUN=1 tpu/create.sh prints the commands.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME TOPOLOGY
slice_of "$TOPOLOGY"

arguments=(--project="$PROJECT" --zone="$ZONE" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME")
if [[ "$NUM_SLICES" == 1 ]]; then
  arguments+=(--node-id="$NAME")
else
  arguments+=(--node-count="$NUM_SLICES" --node-prefix="$NAME")
fi
case "$CAPACITY" in
  spot) arguments+=(--spot) ;;
  reservation) need RESERVATION; arguments+=(--reserved --reservation="$RESERVATION") ;;
  on-demand) ;;
  *) die "CAPACITY '$CAPACITY': wanted spot, reservation or on-demand" ;;
esac

printf '%s: %s chips, accelerator type %s, runtime %s, %s slice(s)\n' \
  "$TOPOLOGY" "$CHIPS" "$ACCELERATOR" "$RUNTIME" "$NUM_SLICES" >&2
run gcloud compute tpus queued-resources create "$NAME" "${arguments[@]}"

if [[ "$DRY_RUN" != 1 ]]; then
  while current="$(state)" && [[ "$current" != ACTIVE ]]; do
    case "$current" in
      FAILED | SUSPENDED | MISSING) die "queued resource $NAME is $current; see: gcloud compute tpus queued-resources describe $NAME" ;;
    esac
    printf '\r%s  %-24s' "$(date +%H:%M:%S)" "$current" >&2
    sleep 20
  done
  [[ "$current" == ACTIVE ]] || die "stopped waiting for $NAME; it stays queued: start create.sh again or tpu/delete.sh"
  printf '\n%s is active\n' "$NAME" >&2
fi
