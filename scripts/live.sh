# shellcheck shell=bash
# What the scripts that try real clients share: larder and the counting forwarder, started and ended. Sourced, not run.
# It makes $work, a directory that is removed at the end, and skips with a reason when there is no network.

# Another program than the release build, for whoever works on larder.
larder=${LARDER_BIN:-}
# Nothing of this user's larder, and nothing that steers the tests.
for name in ${!LARDER_@}; do unset "$name"; done

if [ -z "$larder" ]; then
  larder=$PWD/target/release/larder
  # Never yesterday's program.
  cargo build --release --locked --quiet
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/larder-live.XXXXXX")
started=()
finish() {
  local pid
  for pid in ${started[@]+"${started[@]}"}; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

say() { printf '   %s\n' "$*"; }

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  for log in "$work"/*.log; do
    [ -s "$log" ] || continue
    printf -- '--- %s\n' "${log##*/}" >&2
    tail -n 15 "$log" >&2
  done
  exit 1
}

# Starts a program whose first line of output says where it listens; the address lands in $address.
start_relay() {
  local out
  out=$(mktemp "$work/listening.XXXXXX")
  "$@" >"$out" 2>>"$work/relays.log" &
  started+=("$!")
  for _ in $(seq 200); do
    [ -s "$out" ] && break
    sleep 0.05
  done
  address=$(head -n 1 "$out")
  [ -n "$address" ] || fail "$2 did not start"
}

# Starts larder on $1; the address lands in $address and the process in $daemon. What follows goes to its environment.
start_larder() {
  local data=$1 log
  shift
  log=$(mktemp "$work/larder.XXXXXX.log")
  # The proxies of this machine would lead around what is measured.
  env -u HTTPS_PROXY -u https_proxy -u HTTP_PROXY -u http_proxy -u ALL_PROXY -u all_proxy -u NO_PROXY -u no_proxy \
    "$@" "$larder" serve --data "$data" --listen 127.0.0.1:0 2>"$log" &
  daemon=$!
  started+=("$daemon")
  address=
  for _ in $(seq 200); do
    address=$(sed -n 's/.*listening.*[^0-9.]\(127\.0\.0\.1:[0-9]*\).*/\1/p' "$log" | head -n 1)
    [ -n "$address" ] && return
    sleep 0.05
  done
  fail 'larder did not start'
}

stop() {
  kill "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# Public addresses only, except what a network says of itself: here the registries may live in a documentation range.
forwarder_log=$work/forwarder.jsonl
: >"$forwarder_log"
lines() { wc -l <"$forwarder_log"; }

python=$(command -v python3)
"$python" -m pip --version >/dev/null 2>&1 || fail 'python3 with pip is needed'

# --- is there a network? --------------------------------------------------------------------------------------------

# Asked of the clients, so that no registry is named here.
pip_host=$("$python" -c 'import pip._internal.models.index as i; print(i.PyPI.simple_url)')
if ! curl -fsS -m 20 -o /dev/null -r 0-0 "$pip_host/pip/"; then
  echo 'skipped: the package index that pip asks by default cannot be reached from here'
  exit 0
fi
