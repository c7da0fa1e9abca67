#!/usr/bin/env bash
# Puts this checkout's HEAD and its environment on every worker of the slice. Safe to repeat.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME

[[ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ]] ||
  printf 'warning: uncommitted changes stay here; the workers get %s\n' "$(git -C "$root" rev-parse --short HEAD)" >&2
archive="$(mktemp -d)/jaxlm.tar.gz"
trap 'rm -rf "$(dirname "$archive")"' EXIT
git -C "$root" archive --format=tar.gz --output="$archive" HEAD

for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$archive" "$node:jaxlm.tar.gz" --project="$PROJECT" --zone="$ZONE" --worker=all
done
revision="$(git -C "$root" rev-parse HEAD)"
on_workers "mkdir -p jaxlm && tar -xzf jaxlm.tar.gz -C jaxlm && echo $revision > jaxlm/REVISION && bash jaxlm/tpu/worker.sh"
