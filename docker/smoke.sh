#!/usr/bin/env bash
# Runs the stack for real and shows that it does what docs/operating.md promises: builds the cpu image,
# brings the compose file up, posts photos from outside, kills the worker, stops it under load, scales
# to three replicas behind the proxy, stops one of them and kills another.
#
#   docker/smoke.sh
#
#   COMPOSE="docker compose"    Docker Compose 2.24 or newer, with whatever engine it talks to
#   ENGINE=docker               or podman
#   BUILD="..."                 another command that builds the image $IMAGE; "true" takes it as it is
#   SERVICES="..."              services of docker-compose.yml to bring up, where an image cannot be had
#
# Takes three minutes. Exits 0 when everything held; takes down what it brought up either way.
set -euo pipefail
cd "$(dirname "$0")/.."

COMPOSE=${COMPOSE:-docker compose}
ENGINE=${ENGINE:-docker}
SERVICES=${SERVICES:-purnet prometheus grafana}
PHOTO=model/purnet/weights/self_check.png

export COMPOSE_PROJECT_NAME=purnet-smoke
export PURNET_IMAGE=${IMAGE:-localhost/purnet-serve:smoke}
export PURNET_PUBLISH=127.0.0.1:18000 PROMETHEUS_PORT=19090 GRAFANA_PORT=13000
BUILD=${BUILD:-$COMPOSE build --quiet purnet}
service=http://127.0.0.1:18000
prometheus=http://127.0.0.1:19090

work=$(mktemp -d)
finish() {
  local status=$?
  touch "$work/stop"
  if [ $status -ne 0 ]; then
    echo "FAILED; the service's last words:"
    scaled logs --tail 5 purnet || true
  fi
  scaled down --volumes --timeout 5 >"$work/down.log" 2>&1 || cat "$work/down.log"
  wait
  rm -rf "$work"
  exit $status
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }
base() { $COMPOSE -f docker-compose.yml "$@"; }
scaled() { $COMPOSE -f docker-compose.yml -f docker/compose.scale.yml "$@"; }

# await SECONDS COMMAND...: run a command once a second until it succeeds.
await() {
  local seconds=$1
  shift
  until "$@"; do
    [ $((seconds -= 1)) -gt 0 ] || { echo "gave up waiting for: $*"; return 1; }
    sleep 1
  done
}
ready() { curl --silent --fail --output /dev/null "$service/readyz"; }

# post MASK: status of one photo, its mask in a file.
post() { curl --silent --output "$1" --write-out '%{http_code}' --form "image=@$PHOTO" "$service/v1/mask"; }

# query EXPRESSION: the value of its only series.
query() {
  curl --silent --get --data-urlencode "query=$1" "$prometheus/api/v1/query" |
    sed -n 's/.*"value":\[[0-9.]*,"\([^"]*\)"\].*/\1/p'
}
equals() { [ "$(query "$1")" = "$2" ]; }

# load OUTCOMES: four clients post one photo after the other until `rest`; a line for each outcome:
# the status, and how curl ended (7: nobody listened, so nothing was sent).
load() {
  rm -f "$work/stop"
  for _ in 1 2 3 4; do
    for _ in $(seq 3000); do
      [ ! -e "$work/stop" ] || break
      curl --silent --output /dev/null --write-out '%{http_code} %{exitcode}\n' --max-time 60 \
        --form "image=@$PHOTO" "$service/v1/mask" || true
    done >>"$1" &
  done
}
rest() {
  touch "$work/stop"
  wait
}
outcomes() { sort "$1" | uniq -c | sed 's/^ */  /'; }
# failed FILE: how many were neither answered, nor refused before they were taken in.
failed() { grep -vcE '^(200 0|429 0|503 0|000 7)$' "$1" || true; }
answered() { [ "$(grep -c '^200 0$' "$1")" -ge "$2" ]; }

container() { base ps --quiet "$1" | head -n 1; }

say "build the cpu image"
$BUILD
$ENGINE image inspect --format "{{.Size}}" "$PURNET_IMAGE" | awk '{printf "unpacked: %.0f MB\n", $1 / 1e6}'

say "up: $SERVICES"
# shellcheck disable=SC2086 # a list of names
base up --detach --no-build $SERVICES >"$work/up.log" 2>&1 || { cat "$work/up.log"; exit 1; }
await 120 ready
curl --silent "$service/readyz"

say "post a photo from outside"
status=$(post "$work/mask.png")
echo "$status, $(wc -c <"$work/mask.png") bytes: $(head -c 4 "$work/mask.png" | tail -c 3)"
[ "$status" = 200 ]
[ "$(curl --silent --output /dev/null --write-out '%{http_code}' "$service/metrics")" = 404 ]
echo "/metrics is not published"

say "Prometheus sees it"
await 60 equals 'up{job="purnet"}' 1
await 60 equals 'sum(purnet_requests_total{route="/v1/mask",status="200"})' 1
echo "up: $(query 'up{job="purnet"}'), masks: $(query 'sum(purnet_requests_total{route="/v1/mask",status="200"})')"
await 60 equals 'count(ALERTS{alertstate="firing"}) or vector(0)' 0
if [[ $SERVICES == *grafana* ]]; then
  await 60 curl --silent --fail --output /dev/null "http://127.0.0.1:$GRAFANA_PORT/api/dashboards/uid/purnet"
  echo "Grafana has the dashboard"
fi

say "kill the worker inside the container, under load"
load "$work/killed"
await 60 answered "$work/killed" 20
$ENGINE exec "$(container purnet)" python -c '
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if b"purnet_serve.inference.worker_main" in (folder / "cmdline").read_bytes():
        os.kill(int(folder.name), signal.SIGKILL)
        print("killed", folder.name)
        break
else:
    raise SystemExit("there is no worker")
'
await 60 equals 'purnet_worker_restarts_total' 1
await 60 ready
seen=$(grep -c '^200 0$' "$work/killed")
await 60 answered "$work/killed" $((seen + 20))
rest
outcomes "$work/killed"
[ "$(failed "$work/killed")" = 0 ]

say "stop under load"
load "$work/stopped"
await 60 answered "$work/stopped" 20
stopped=$(container purnet)
base stop purnet >"$work/stop.log" 2>&1
rest
echo "exit status $($ENGINE inspect --format '{{.State.ExitCode}}' "$stopped")"
outcomes "$work/stopped"
[ "$($ENGINE inspect --format '{{.State.ExitCode}}' "$stopped")" = 0 ]
[ "$(failed "$work/stopped")" = 0 ]

say "three replicas behind the proxy"
# Prometheus remembers the container that was stopped; only what started since counts.
new="on (instance) process_start_time_seconds{job=\"purnet\"} > $(date +%s)"
# shellcheck disable=SC2086
scaled up --detach --no-build $SERVICES proxy >"$work/up.log" 2>&1 || { cat "$work/up.log"; exit 1; }
await 180 equals "sum(purnet_ready and $new)" 3
await 60 ready
load "$work/scaled"
await 60 answered "$work/scaled" 60
await 60 equals "count(purnet_requests_total{route=\"/v1/mask\",status=\"200\"} > 0 and $new)" 3
echo "each of $(query "sum(purnet_ready and $new)") replicas answers"

say "stop one of them under load"
mapfile -t replicas < <(scaled ps --quiet purnet)
$ENGINE stop --time 45 "${replicas[0]}" >"$work/stop.log"
seen=$(grep -c '^200 0$' "$work/scaled")
await 60 answered "$work/scaled" $((seen + 20))
rest
outcomes "$work/scaled"
[ "$(grep -vc '^200 0$' "$work/scaled")" = 0 ]

say "kill another under load"
load "$work/lost"
await 60 answered "$work/lost" 20
$ENGINE kill "${replicas[1]}" >"$work/kill.log"
seen=$(grep -c '^200 0$' "$work/lost")
await 60 answered "$work/lost" $((seen + 40))
rest
outcomes "$work/lost"
lost=$(failed "$work/lost")
echo "lost with the replica: $lost, at most the 4 requests it held"
[ "$lost" -le 4 ]
for _ in 1 2 3 4 5; do [ "$(post "$work/mask.png")" = 200 ]; done
echo "the last one answers"

say "everything held"
