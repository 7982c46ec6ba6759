# shellcheck shell=bash
# What the trials of scripts/package share: the program, clean systems by debootstrap, and a larder that runs in one. Sourced.

work=$(mktemp -d "${TMPDIR:-/tmp}/larder-package.XXXXXX")
# Programs in the systems run as other users.
chmod 0755 "$work"
daemon=''
systems=()

say() { printf '   %s\n' "$*"; }

fail() {
  printf '== FAILED: %s\n' "$*"
  if [ -f "$work/log" ]; then tail -n 20 "$work/log"; fi
  exit 1
}

cleanup() {
  local root point
  if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; fi
  for root in ${systems[@]+"${systems[@]}"}; do
    for point in "$root/proc" "$root/dev/null" "$root/dev/urandom"; do
      ! mountpoint -q "$point" || umount "$point"
    done
  done
  if declare -F leave_images >/dev/null; then leave_images; fi
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# --- the program --------------------------------------------------------------------------------------------------------

# Sets $binary, if it was not given, and $target.
build() {
  local musl=$machine-unknown-linux-musl
  target=$machine-unknown-linux-gnu
  [ -z "$binary" ] || return 0
  if [ -d "$(rustc --print sysroot)/lib/rustlib/$musl" ] && command -v musl-gcc >/dev/null; then
    target=$musl
  else
    say "not static: $musl and musl-gcc are not both installed (rustup target add $musl; apt-get install musl-tools)"
  fi
  cargo build --profile dist --locked --bin larder --target "$target"
  binary=${CARGO_TARGET_DIR:-target}/$target/dist/larder
}

# The other machine's static program, for its archive and the npm package, unless --also or --binary named one. It is not run.
build_other() {
  local other=aarch64 musl compiler
  if [ "$machine" = aarch64 ]; then other=x86_64; fi
  musl=$other-unknown-linux-musl compiler=$other-linux-musl-gcc
  [ ${#also[@]} -eq 0 ] && [ -z "$given" ] || return 0
  if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$musl" ] || ! command -v "$compiler" >/dev/null; then
    say "not for $other: $musl and $compiler are not both installed; scripts/package on such a machine makes it, --also takes it over"
    return
  fi
  env "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$musl")_LINKER=$compiler" "CC_${musl//-/_}=$compiler" \
    cargo build --profile dist --locked --bin larder --target "$musl"
  also=(--program "$other=${CARGO_TARGET_DIR:-target}/$musl/dist/larder")
  other_name=larder-$version-$other-linux-musl
}

# What the program needs of a system: $linkage in words, $platform as wheels have it, $libc as npm has it, $name for files.
examine() {
  local newest
  if readelf -lW "$work/larder" | grep -q INTERP; then
    newest=$(readelf -VW "$work/larder" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
    newest=${newest#GLIBC_}
    linkage="with glibc from $newest on" libc=glibc name=larder-$version-$machine-linux-gnu
    platform=manylinux_${newest/./_}_$machine
    return
  fi
  linkage='static, with any C library or none' libc='' name=larder-$version-$machine-linux-musl
  target=$machine-unknown-linux-musl
  platform=manylinux2014_$machine.musllinux_1_1_$machine
}

# The bill names what is linked, nothing of the tests', and everything that it refers to.
check_bill() {
  python3 - "$bill" <<'PYTHON' || fail 'the bill of materials is wrong'
import json, sys
bill = json.load(open(sys.argv[1], encoding="utf-8"))
named = {part["name"]: part for part in bill["components"]}
known = {part["bom-ref"] for part in [*bill["components"], bill["metadata"]["component"]]}
assert {"hyper", "rustls", "aws-lc-sys", "sled"} <= named.keys(), "crates are missing"
assert not {"proptest", "http-mitm-proxy"} & named.keys(), "crates of the tests"
assert named["rustls"]["scope"] == "required" and named["cc"]["scope"] == "excluded", "scopes"
assert all(part["licenses"] and part["hashes"] for part in named.values()), "no licence, or no digest"
assert all(known >= {edge["ref"], *edge["dependsOn"]} for edge in bill["dependencies"]), "a reference to nothing"
PYTHON
}

# --- systems ------------------------------------------------------------------------------------------------------------

# The machine's own archive and suite; each trial gets a copy.
clean_system() {
  local suite mirror
  # shellcheck source=/dev/null
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-cache policy | sed -n "s#^ *[0-9]* \(http[^ ]*\) $suite/main .*#\1#p" | head -n 1)
  [ -n "$mirror" ] || fail "no source of this machine has $suite/main"
  debootstrap --variant=minbase --include=adduser,ca-certificates,curl,python3-venv "$suite" "$work/clean" "$mirror" >"$work/log" 2>&1 ||
    fail 'debootstrap'
  say "$suite by debootstrap, $(du -sh --apparent-size "$work/clean" | cut -f 1)"
}

# system NAME: a copy of the clean system in $root. No /dev of this machine, and no service manager: maintainer scripts find
# neither and have to bear it.
system() {
  local node
  root=$work/$1
  cp -a "$work/clean" "$root"
  systems+=("$root")
  mount --bind /proc "$root/proc"
  for node in null urandom; do
    touch "$root/dev/$node"
    mountpoint -q "$root/dev/$node" || mount --bind "/dev/$node" "$root/dev/$node"
  done
}

inside() { chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C "$@"; }

# awaited: until the program that was started as $daemon listens; sets $listening and $larder, its process.
awaited() {
  listening=''
  for _ in $(seq 200); do
    listening=$(grep -o 'listening on http://[^ ]*' "$work/log" || true)
    [ -n "$listening" ] && break
    kill -0 "$daemon" 2>/dev/null || fail 'it ended'
    sleep 0.1
  done
  [ "$listening" = 'listening on http://127.0.0.1:3142' ] || fail "it is not on loopback alone: $listening"
  larder=$(pgrep -P "$daemon" larder || echo "$daemon")
}

# served COMMAND...: runs it as larder in $root, in a network of its own, asks it, and ends it.
served() {
  unshare --net --kill-child -- sh -c 'ip link set lo up && root=$1 && shift && exec chroot "$root" /usr/bin/env -i \
    PATH=/usr/local/bin:/usr/bin:/bin HOME=/root "$@"' sh "$root" "$@" serve --listen 127.0.0.1:3142 --data /tmp/served >"$work/log" 2>&1 &
  daemon=$!
  awaited
  nsenter --net="/proc/$larder/ns/net" curl -fsS --noproxy '*' http://127.0.0.1:3142/-/ready >/dev/null || fail 'it is not ready'
  # By the same way of calling it.
  inside "$@" stats --data /tmp/served >"$work/stats" || fail 'it cannot be asked'
  kill -TERM "$larder"
  wait "$daemon" || fail 'it did not end in order'
  daemon=''
}
