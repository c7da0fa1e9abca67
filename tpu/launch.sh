#!/usr/bin/env bash
# Trains on the slice, and brings it back when it is preempted.
#   tpu/launch.sh configs/carope/paper_small.py [--config.train.steps=... any override]
# The run is detached on its hosts (tpu/supervise.py): it goes on without this computer, and starts itself again after a
# crash, a hang or a lost process. This script starts it and then only looks. Ctrl-C, a closed lid or a lost connection end
# the looking and nothing else; the same command looks again. DETACH=1 starts the run and does not look. What needs this
# script (or anybody with gcloud) is a slice that was taken away: it is deleted and asked for again. SUPERVISE gives flags to
# the restart loop, such as --crashes=5.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME TOPOLOGY WORKDIR
[[ $# -ge 1 ]] || die "usage: tpu/launch.sh CONFIG [overrides]"
config="$1"; shift
[[ -f "$root/${config%%:*}" ]] || die "no config file $config below $root"
[[ "$WORKDIR" == gs://* || "$DRY_RUN" == 1 ]] || die "WORKDIR '$WORKDIR' is not gs://...: every host must see it"

supervise="cd jaxlm && ../venv/bin/python tpu/supervise.py"
start="$supervise start ${SUPERVISE:-} -- env JAXLM_DISTRIBUTED=1 ../venv/bin/jaxlm train --config=$config --workdir=$WORKDIR"
for override in "$@"; do start+=" $(printf '%q' "$override")"; done

on_workers "$start" || [[ "$DRY_RUN" == 1 ]] || die "the run could not be started on every host; nothing else was done"
if [[ "$DRY_RUN" == 1 || "${DETACH:-0}" == 1 ]]; then
  [[ "$DRY_RUN" == 1 ]] || printf 'started; tpu/status.sh looks, tpu/stop.sh ends it\n' >&2
  exit 0
fi
trap 'printf "\nthe run goes on; the same command looks again, tpu/stop.sh ends it\n" >&2; exit 130' INT

silent=0 returned=0
while :; do
  sleep "${POLL_S:-60}"
  if ! answers="$(on_workers "$supervise status" 2>/dev/null | grep '"state"')"; then
    # Not an end of the run: the hosts do not need us. Is the slice still there?
    silent=$((silent + 1))
    current="$(slice_state)" || current=UNKNOWN
    printf '%s  no answer from the hosts (%d times), slice is %s\n' "$(date +%H:%M:%S)" "$silent" "$current" >&2
    case "$current" in
      ACTIVE | UNKNOWN | ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES) continue ;;
    esac
    returned=$((returned + 1))
    [[ "$returned" -le "${RETRIES:-100}" ]] || die "gave up after $returned slices that were taken away"
    gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet || true
    "$here/create.sh"
    "$here/bootstrap.sh"
    on_workers "$start" || die "the new slice is there, and the run could not be started on it; start launch.sh again"
    silent=0
    continue
  fi
  silent=0
  states="$(sed -n 's/.*"state": "\([a-z]*\)".*/\1/p' <<<"$answers" | sort | uniq -c | tr -s ' \n' ' ')"
  printf '%s %s\n' "$(date +%H:%M:%S)" "$states" >&2
  if grep -q '"state": "failed"' <<<"$answers"; then
    grep '"state": "failed"' <<<"$answers" | head -1 >&2
    on_workers "$supervise stop" >/dev/null 2>&1 || true        # the others would wait for it
    printf 'error: the run has failed; read the logs (tpu/logs.sh) before paying for more\n' >&2
    exit 1
  fi
  if ! grep -qv '"state": "finished"' <<<"$answers"; then
    printf 'finished: %s\n' "$WORKDIR" >&2
    exit 0
  fi
  if grep -q '"state": "\(gone\|none\)"' <<<"$answers"; then
    on_workers "$start" >/dev/null || true        # a host was restarted, or is new: hosts that run already say so
  fi
  if grep -q '"state": "stopped"' <<<"$answers" && ! grep -q '"state": "\(running\|waiting\)"' <<<"$answers"; then
    printf 'stopped; the same command resumes it\n' >&2
    exit 143
  fi
done
