# shellcheck shell=bash disable=SC2154 # sourced by scripts/package, whose variables it reads
# The archive, the Python wheel and the npm package: each carries the program, and is tried in a clean system.

make_archive() {
  local tree=$work/tree/$name
  mkdir -p "$tree/completions" "$tree/man"
  cp "$work/larder" README.md CHANGELOG.md "${licences[@]}" "$tree/"
  "$work/larder" man --dir "$tree/man" >/dev/null
  for shell in bash fish zsh; do "$work/larder" completions "$shell" >"$tree/completions/larder.$shell"; done
  archive=$out/$name.tar.gz
  tar -C "$work/tree" --sort=name --mtime="@${SOURCE_DATE_EPOCH:-0}" --owner=0 --group=0 --numeric-owner -c "$name" | gzip -n9 >"$archive"
  say "$(basename "$archive"), $(du -h "$archive" | cut -f 1)"
  [ -n "$other_name" ] || return 0
  cp -a "$tree" "$work/tree/$other_name"
  cp "${also[1]#*=}" "$work/tree/$other_name/larder"
  tar -C "$work/tree" --sort=name --mtime="@${SOURCE_DATE_EPOCH:-0}" --owner=0 --group=0 --numeric-owner -c "$other_name" |
    gzip -n9 >"$out/$other_name.tar.gz"
  say "$other_name.tar.gz, not run"
}

try_archive() {
  system archive
  tar -C "$root/usr/local/bin" --strip-components=1 -xf "$archive" "$name/larder"
  # Owned by whoever unpacks it.
  [ "$(stat -c '%a %u' "$root/usr/local/bin/larder")" = '755 0' ] || fail 'its mode or owner'
  served larder
  say 'unpacked, version asked, served'
}

make_wheel() {
  wheel=$(python3 scripts/packages/wheel.py --binary "$work/larder" --version "$version" --platform "$platform" --output "$out" \
    --readme README.md "${licences[@]}") || fail 'wheel.py'
  say "$(basename "$wheel"), $(du -h "$wheel" | cut -f 1)"
}

try_wheel() {
  local began
  system wheel
  cp "$wheel" "$root/tmp/"
  inside python3 -m venv /tmp/venv || fail 'venv'
  began=$SECONDS
  inside /tmp/venv/bin/pip install --no-index --no-cache-dir "/tmp/${wheel##*/}" >"$work/log" 2>&1 || fail 'pip install'
  [ "$(inside /tmp/venv/bin/larder version)" = "larder $version ($machine-linux)" ] || fail 'another version'
  served /tmp/venv/bin/larder
  # pip compares what it removes with what the wheel recorded.
  inside /tmp/venv/bin/pip uninstall -y larder-cache >"$work/log" 2>&1 || fail 'pip uninstall'
  [ ! -e "$root/tmp/venv/bin/larder" ] || fail 'the program is still there'
  # The control: a wheel whose program is not the recorded one is refused.
  python3 - "$wheel" "$root/tmp/${wheel##*/}" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as old, zipfile.ZipFile(sys.argv[2], "w") as new:
    for member in old.infolist():
        new.writestr(member, b"#!/bin/sh\n" if member.filename.endswith("/larder") else old.read(member))
PYTHON
  inside /tmp/venv/bin/pip install --no-index --no-cache-dir "/tmp/${wheel##*/}" >"$work/log" 2>&1 || true
  # pip itself does not look at the digests of what it installs; the record does not fit then.
  inside /tmp/venv/bin/python - >"$work/log" 2>&1 <<'PYTHON' || fail 'the control: another program fits the record'
import base64, hashlib, importlib.metadata
for file in importlib.metadata.files("larder-cache"):
    if file.name == "larder":
        found = base64.urlsafe_b64encode(hashlib.sha256(file.read_binary()).digest()).rstrip(b"=").decode()
        assert found != file.hash.value
PYTHON
  say "installed by pip in $((SECONDS - began)) s with the trial, served, removed"
}

make_npm() {
  local limited=()
  [ -z "$libc" ] || limited=(--libc "$libc")
  package_npm=$(python3 scripts/packages/npm.py --version "$version" --output "$out" --readme README.md ${limited[@]+"${limited[@]}"} \
    --program "$machine=$work/larder" ${also[@]+"${also[@]}"} "${licences[@]}") || fail 'npm.py'
  say "$(basename "$package_npm"), $(du -h "$package_npm" | cut -f 1)"
}

# The machine's own node and npm are put into the clean system: a distribution's npm is hundreds of packages.
node_inside() {
  local node modules
  node=$(readlink -f "$(command -v node)")
  modules=$(npm root --global)
  mkdir -p "$root/usr/lib/node_modules" "$root/usr/bin"
  cp "$node" "$root/usr/bin/node"
  cp -a "$modules/npm" "$root/usr/lib/node_modules/npm"
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/bin/npm"
  ln -s ../lib/node_modules/npm/bin/npx-cli.js "$root/usr/bin/npx"
  inside node --version >"$work/log" 2>&1 || fail "this machine's node does not run in a clean system"
}

try_npm() {
  system npm
  node_inside
  cp "$package_npm" "$root/tmp/"
  inside npm install --global --offline --no-audit --no-fund "/tmp/${package_npm##*/}" >"$work/log" 2>&1 || fail 'npm install'
  [ "$(inside larder version)" = "larder $version ($machine-linux)" ] || fail 'another version'
  served larder
  # The exit code is the program's own.
  inside larder exec --data /tmp/exec -- sh -c 'exit 7' >"$work/log" 2>&1 && fail 'the exit code is lost'
  [ "$(inside larder exec --data /tmp/exec -- sh -c 'exit 7' >/dev/null 2>&1 || echo $?)" = 7 ] || fail 'another exit code'
  inside npm uninstall --global larder-cache >"$work/log" 2>&1 || fail 'npm uninstall'
  ! inside sh -c 'command -v larder' >/dev/null || fail 'the command is still there'
  [ "$(inside npx --yes --offline --package "/tmp/${package_npm##*/}" -- larder version 2>"$work/log")" = "larder $version ($machine-linux)" ] ||
    fail 'npx'
  # The control: for a machine that it has no program for, it says so.
  mkdir "$work/other"
  tar -C "$work/other" -xf "$package_npm"
  mv "$work/other/package/native/larder-$machine" "$work/other/package/native/larder-other"
  ! "$work/other/package/bin/larder" version 2>"$work/log" || fail 'the control: it ran without a program'
  grep -q "no program for $machine" "$work/log" || fail 'the control: it does not say why'
  say 'installed by npm, served, removed, run by npx'
}
