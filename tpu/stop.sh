#!/usr/bin/env bash
# Ends the run on every host: it saves a checkpoint first. The slice stays; tpu/delete.sh gives it back.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME
on_workers "cd jaxlm && ../venv/bin/python tpu/supervise.py stop"
