#!/usr/bin/env bash
# Trains on a machine that is lent for minutes and has no network, in stretches that go on from each
# other. `make pack` makes the data; the machine has torch, torchvision, NumPy and Pillow.
#
#   gpu_training.sh stretch WORK OUT [options of purnet train]   on that machine, from this checkout
#   gpu_training.sh join OUT RUN                                 at home: pieces of a stretch -> RUN
#
# WORK holds pack-*.tar and, where they are needed, *.whl; from the second stretch on also the
# pieces of the stretch before, unless the machine still has WORK/run. OUT gets the resume file, all
# weights so far and the log, in pieces of at most 15 MiB. The schedule is the recipe's,
# however often it is interrupted. MINUTES (9) is how long a stretch trains.
set -euo pipefail

join() { # PIECES RUN: put files together that were cut
  mkdir -p "$2"
  local first name
  for first in "$1"/*.part-00; do
    [ -e "$first" ] || continue
    name=$(basename "$first" .part-00)
    cat "$1/$name".part-* >"$2/.$name"
    mv "$2/.$name" "$2/$name"
  done
}

cut_up() { # FILE PIECES
  split --bytes=15M --numeric-suffixes --suffix-length=2 "$1" "$2/$(basename "$1").part-"
}

stretch() { # WORK OUT [OPTION...]
  local work out python=${PYTHON:-python3} weights failed=0
  work=$(cd "$1" && pwd)
  mkdir -p "$2"
  out=$(cd "$2" && pwd)
  shift 2
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  export PYTHONPATH=$PWD/model${PYTHONPATH:+:$PYTHONPATH}
  if compgen -G "$work/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$work/site" --upgrade "$work"/*.whl
    PYTHONPATH=$work/site:$PYTHONPATH
  fi
  [ -e "$work/unpacked" ] || "$python" -m purnet.training.unpack "$work" "$work/unpacked"
  [ -e "$work/run/resume.pt" ] || join "$work" "$work/run"
  "$python" -c 'from purnet.cli.app import app; app()' train \
    --data "$work/unpacked/data" --cache-dir "$work/unpacked/superpixels" --out "$work/run" \
    --stop-after "${MINUTES:-9}" "$@" || failed=$?
  rm -f "$out"/*.part-*
  cut_up "$work/run/resume.pt" "$out"
  cut_up "$work/run/run.jsonl" "$out"
  for weights in "$work"/run/stage*.safetensors; do
    [ ! -e "$weights" ] || cut_up "$weights" "$out"
  done
  return "$failed"
}

case ${1:-} in
  stretch | join)
    [ $# -ge 3 ] || { sed -n '2,11p' "$0" >&2; exit 2; }
    "$@"
    ;;
  *)
    sed -n '2,11p' "$0" >&2
    exit 2
    ;;
esac
