#!/bin/sh
# Makes this machine, or this container, trust larder's authority.
#
#   ca/install.sh CERTIFICATE      the file, or the URL of a larder: http://HOST:3142/ca.crt
#   ca/install.sh --uninstall
#
# The certificate goes into the directory of anchors, and the system's own tool makes the bundle of it: a change to the
# generated bundle itself would be lost with the next update. Doing it twice does no harm.
set -eu

name=larder.crt

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
}

fail() {
  echo "$*" >&2
  exit 1
}

# The family of the system: where its anchors lie, and what makes the bundle.
if [ -d /usr/local/share/ca-certificates ] || command -v update-ca-certificates >/dev/null 2>&1; then
  # Debian, Ubuntu, Alpine
  anchors=/usr/local/share/ca-certificates
  update='update-ca-certificates'
elif [ -d /etc/pki/ca-trust/source/anchors ]; then
  # Fedora, RHEL and their kin
  anchors=/etc/pki/ca-trust/source/anchors
  update='update-ca-trust extract'
elif [ -d /etc/ca-certificates/trust-source/anchors ]; then
  # Arch
  anchors=/etc/ca-certificates/trust-source/anchors
  update='trust extract-compat'
elif [ -d /etc/pki/trust/anchors ]; then
  # openSUSE
  anchors=/etc/pki/trust/anchors
  update='update-ca-certificates'
else
  fail 'no known directory of trust anchors here; install the package ca-certificates first'
fi
command -v "${update%% *}" >/dev/null 2>&1 || fail "${update%% *} is missing; install the package ca-certificates first"
[ "$(id -u)" = 0 ] || fail 'only root may change what the whole system trusts; for one command, use: larder exec -- COMMAND'

case "${1:-}" in
'' | -h | --help)
  usage
  ;;
--uninstall)
  rm -f "$anchors/$name"
  # Debian keeps the links of what is gone until it is told to start afresh.
  if [ "$anchors" = /usr/local/share/ca-certificates ] && update-ca-certificates --help 2>&1 | grep -q -e --fresh; then
    update='update-ca-certificates --fresh'
  fi
  $update >/dev/null
  echo 'larder is no longer trusted here'
  exit 0
  ;;
http://*)
  # Over plain http, because trust begins here: compare the fingerprint with `larder ca show` on larder's machine.
  new=$(mktemp)
  trap 'rm -f "$new"' EXIT
  if command -v curl >/dev/null 2>&1; then
    curl -fsS --noproxy '*' -o "$new" "$1"
  else
    wget -q -Y off -O "$new" "$1" 2>/dev/null || wget -q --no-proxy -O "$new" "$1"
  fi
  ;;
*)
  new=$1
  ;;
esac

grep -q -e '-----BEGIN CERTIFICATE-----' "$new" || fail "no certificate in PEM form: $1"
if grep -q -e 'PRIVATE KEY' "$new"; then
  fail "a private key is in $1: only the certificate belongs on other machines"
fi

mkdir -p "$anchors"
if ! cmp -s "$new" "$anchors/$name"; then
  # Readable for all, whatever the file's own mode was: programs of other users must trust it too.
  cp "$new" "$anchors/$name"
  chmod 0644 "$anchors/$name"
fi
$update >/dev/null
if command -v openssl >/dev/null 2>&1; then
  openssl x509 -noout -subject -fingerprint -sha256 -in "$anchors/$name"
fi
echo "larder is trusted here: $anchors/$name"
