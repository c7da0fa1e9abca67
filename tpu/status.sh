#!/usr/bin/env bash
# What each host's run does: one line of JSON per host.
#   tpu/status.sh            state (running, waiting, finished, failed, stopped, gone), attempt, why
#   tpu/status.sh stacks     every training process prints the stack of its threads into its log; tpu/logs.sh fetches it
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME
case "${1:-}" in
  "") on_workers "cd jaxlm && ../venv/bin/python tpu/supervise.py status" ;;
  stacks) on_workers "cd jaxlm && ../venv/bin/python tpu/supervise.py stacks" ;;
  *) die "usage: tpu/status.sh [stacks]" ;;
esac
