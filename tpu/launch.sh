#!/usr/bin/env bash
# Trains on the slice and brings it back when it is preempted.
#   tpu/launch.sh configs/carope/paper_small.py [--config.train.steps=... any override]
# Every host runs the same command; they find each other (jax.distributed) and the newest complete checkpoint in
# WORKDIR, so a restart is the same command again. RETRIES bounds the restarts (default 100).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME TOPOLOGY WORKDIR
[[ $# -ge 1 ]] || die "usage: tpu/launch.sh CONFIG [overrides]"
config="$1"; shift
[[ -f "$root/${config%%:*}" ]] || die "no config file $config below $root"
[[ "$WORKDIR" == gs://* || "$DRY_RUN" == 1 ]] || die "WORKDIR '$WORKDIR' is not gs://...: every host must see it"

command="cd jaxlm && JAXLM_LOG=\$HOME/jaxlm-worker.log && \
JAXLM_DISTRIBUTED=1 ../venv/bin/jaxlm train --config=$config --workdir=$WORKDIR"
for override in "$@"; do command+=" $(printf '%q' "$override")"; done
command+=" 2>&1 | tee -a \$JAXLM_LOG; exit \${PIPESTATUS[0]}"

attempt=0 crashes=0
while :; do
  if on_workers "$command"; then
    [[ "$DRY_RUN" == 1 ]] || printf 'finished: %s\n' "$WORKDIR" >&2
    exit 0
  fi
  attempt=$((attempt + 1))
  [[ "$attempt" -le "${RETRIES:-100}" ]] || die "gave up after $attempt attempts; logs: tpu/logs.sh"
  current="$(state)" || die "the slice may still be training; start launch.sh again when gcloud answers"
  printf 'attempt %d ended, slice is %s\n' "$attempt" "$current" >&2
  if [[ "$current" != ACTIVE ]]; then
    # A spot slice that was taken away cannot be restarted: it is deleted and asked for again.
    crashes=0
    gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet || true
    "$here/create.sh"
    "$here/bootstrap.sh"
  else
    # The slice is there and the program failed. A crash at once is a bug, not a preemption.
    crashes=$((crashes + 1))
    [[ "$crashes" -lt 3 ]] || die "three failures on a living slice: read the logs (tpu/logs.sh) before paying for more"
    on_workers "pkill -f '[j]axlm train' || true" || true        # brackets: else it ends the shell that runs it
    sleep "${RESTART_PAUSE:-10}"
  fi
done
