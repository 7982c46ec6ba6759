# shellcheck shell=bash disable=SC2154 # sourced by scripts/package, whose variables it reads
# The Debian package: its unit judged by systemd; installed, started as the unit does, upgraded, removed and purged.

make_debian() {
  # cargo-deb looks for what a release build makes; what is packed is not its business here.
  mkdir -p "$work/target/release"
  cp "$work/larder" "$work/target/release/larder"
  CARGO_TARGET_DIR=$work/target cargo-deb deb --no-build --profile release --output "$out/" >"$work/log" 2>&1 || fail 'cargo-deb'
  package=$(echo "$out"/*.deb)
  say "$(basename "$package"), $(du -h "$package" | cut -f 1)"
  if command -v lintian >/dev/null; then
    # Its man page and a Debian-style changelog are missed by nobody outside of Debian's own archive.
    lintian --fail-on error --suppress-tags no-changelog,debian-changelog-file-missing,no-manual-page "$package" || fail 'lintian'
  else
    say 'lintian is not installed: not checked'
  fi
  judge_unit
}

judge_unit() {
  local unpacked=$work/unpacked units said unit
  dpkg-deb -x "$package" "$unpacked"
  units=$unpacked/usr/lib/systemd/system
  if command -v systemd-analyze >/dev/null; then
    # The programs that the unit starts are looked for in this system; the package's own is put in their place.
    mkdir "$work/units"
    for unit in "$units"/*; do
      sed "s,/usr/bin/larder,$unpacked/usr/bin/larder," "$unit" >"$work/units/${unit##*/}"
    done
    said=$(systemd-analyze verify --man=no "$work"/units/larder.service "$work"/units/larder-port.socket 2>&1) || fail "systemd-analyze verify: $said"
    [ -z "$said" ] || fail "systemd-analyze verify: $said"
    # Tenths: 20 is an exposure of 2.0.
    said=$(systemd-analyze security --no-pager --offline=true --threshold=20 "$work/units/larder.service") || fail "too exposed: $said"
    say "$(tail -n 1 <<<"$said" | tr -d '→' | sed 's/^ *//')"
  else
    say 'systemd-analyze is not installed: not checked'
  fi
}

# Everything that is there, but for what dpkg and apt note down of their own doings, and what a start empties (/run).
tree() {
  (cd "$root" && find . -xdev \( -path ./proc -o -path ./dev -o -path ./run -o -path ./var/log -o -path ./var/lib/dpkg -o -path ./var/cache -o -path ./tmp \) -prune \
    -o -type f -printf '%M %u:%g %p ' -exec sha256sum {} \; -o ! -type d -printf '%M %u:%g %p %l\n' -o -printf '%M %u:%g %p\n') |
    sed 's,  [^ ]*$,,' | sort -k 3
}
# Copies of the account files that every change to them leaves.
backups='/etc/(passwd|group|shadow|gshadow)-'

try_debian() {
  local command left
  system debian
  # install
  tree >"$work/before"
  cp "$package" "$root/tmp/larder.deb"
  inside dpkg -i /tmp/larder.deb >"$work/log" 2>&1 || fail 'dpkg -i'
  inside id larder >/dev/null || fail 'there is no user'
  [ "$(inside getent passwd larder | cut -d : -f 7)" = /usr/sbin/nologin ] || fail 'the user can log in'
  inside dpkg -s larder >"$work/status"
  grep -q '^Status: install ok installed' "$work/status" || fail 'not installed'
  grep -q -F ' /etc/larder/larder.toml ' "$work/status" || fail 'the configuration is no conffile'
  # A link within that system leads nowhere in this one.
  [ -L "$root/etc/systemd/system/multi-user.target.wants/larder.service" ] || fail 'the service is not enabled'
  [ ! -L "$root/etc/systemd/system/sockets.target.wants/larder-port.socket" ] || fail 'the socket is enabled'
  inside dpkg --verify larder >"$work/log" || fail 'installed files differ from the package'
  tree >"$work/installed"
  ! cmp -s "$work/before" "$work/installed" || fail 'the control: what was installed is not seen'

  # start, as the unit does
  # What the unit has systemd do: the directory, the user, and the command line.
  command=$(sed -n 's/^ExecStart=//p' "$root/usr/lib/systemd/system/larder.service")
  inside install -d -o larder -g larder -m 0700 /var/lib/larder
  # A free port, so that a larder of this machine is in nobody's way; the file stays as it was installed.
  unshare --net --kill-child -- bash -c "ip link set lo up && exec chroot '$root' /usr/bin/env -i PATH=/usr/bin:/bin \
    LARDER_DATA=/var/lib/larder HOME=/var/lib/larder setpriv --reuid=larder --regid=larder --init-groups --no-new-privs $command" >"$work/log" 2>&1 &
  daemon=$!
  awaited
  [ "$(ps -o user= -p "$larder" | tr -d ' ')" != root ] || fail 'it runs as root'
  nsenter --net="/proc/$larder/ns/net" chroot "$root" curl -fsS http://127.0.0.1:3142/-/ready >/dev/null || fail 'it is not ready'
  nsenter --net="/proc/$larder/ns/net" chroot "$root" larder stats --data /var/lib/larder >"$work/stats" || fail 'root cannot ask it'
  [ "$(stat -c %a "$root/var/lib/larder")" = 700 ] || fail 'its directory is open'
  inside larder env --data /var/lib/larder --format systemd --directory /etc/larder/clients >"$work/dropin" || fail 'larder env'
  grep -q '^Environment="SSL_CERT_FILE=/etc/larder/clients/bundle.pem"$' "$work/dropin" || fail 'the drop-in names no bundle'
  rm -r "$root/etc/larder/clients"
  kill -TERM "$larder"
  wait "$daemon" || fail 'it did not end in order'
  daemon=''
  inside larder stats --data /var/lib/larder >"$work/log" 2>&1 && fail 'root opened the store of another user'
  grep -q 'belongs to user' "$work/log" || fail 'root is not told why'
  say "$listening, as $(inside stat -c %U /var/lib/larder), ready, asked by root, ended in order"

  # upgrade
  echo '# changed here' >>"$root/etc/larder/larder.toml"
  inside dpkg -i /tmp/larder.deb >"$work/log" 2>&1 || fail 'the same again'
  grep -q 'changed here' "$root/etc/larder/larder.toml" || fail 'a changed configuration was replaced'
  [ -f "$root/var/lib/larder/state/ca.crt" ] || fail 'the authority is gone'

  # remove
  inside dpkg -r larder >"$work/log" 2>&1 || fail 'dpkg -r'
  [ ! -e "$root/usr/bin/larder" ] || fail 'the program is still there'
  [ -f "$root/etc/larder/larder.toml" ] || fail 'the configuration is gone before it was purged'
  [ -f "$root/var/lib/larder/state/ca.crt" ] || fail 'the authority is gone before it was purged'

  # purge
  inside dpkg -P larder >"$work/log" 2>&1 || fail 'dpkg -P'
  tree >"$work/after"
  left=$(diff "$work/before" "$work/after" | grep '^[<>]' | grep -v -E "$backups" || true)
  [ -z "$left" ] || fail "purged, and something is left: $left"
  say "nothing is left: $(wc -l <"$work/after") files and directories as before"
}
