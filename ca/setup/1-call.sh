#!/bin/sh
# Sets a machine, or the root directory of an image, up for one larder; GET /setup hands it out with that larder's CA in
# it. The text is the same under every address larder is asked at, so that one SHA-256 names it; the address is an
# argument. Nothing that a client sends gets into it.
#
#   plan      every file is made in a temporary directory; what is in the way is found before anything changes
#   apply     each file is put into its place by a rename, and what was there is kept aside
#   update    the system's own tool makes its bundle of roots
#   commit    or, whatever fails: everything is put back, and the tool runs again
#
# A kill in between puts nothing back: /etc/larder/setup.unfinished stays then, and the next run goes by it.
#
# Whole files are listed in /etc/larder/setup.manifest; in a file that was there, or that others write into as well,
# larder's lines stand between two marks. Both are what --remove goes by. POSIX sh, dash, busybox; needs no more than
# their usual tools.
# Without names of files for stars: a list of hosts may hold some.
set -euf
umask 022
# Files of others may hold any bytes, and in other locales grep says of such a file only that it is binary.
their_locale=${LC_ALL:-}
LC_ALL=C
export LC_ALL

ca_sha256='@LARDER_CA_SHA256@'
ca_pem() {
  cat <<'LARDER_CA'
@LARDER_CA_PEM@
LARDER_CA
}
# The one that follows it, while both are trusted. Systems want a file for each.
ca_next_pem() {
  grep . <<'LARDER_NEXT' || :
@LARDER_NEXT_PEM@
LARDER_NEXT
}

state=/etc/larder
manifest=$state/setup.manifest
# What was begun and not ended: what a kill may leave lying about, and that the system's tool has to run.
journal=$state/setup.unfinished
mark="made by larder's setup, whose --remove takes it away"
# Around larder's lines in a file that others write into.
begin='BEGIN larder setup'
end='END larder setup'
# Beside the first of them: the file did not end with a newline, and will not. The second is for a block that is not the
# last thing in the file.
unended='(no newline at the end)'
unended_below='(no newline at the end of the file)'
nl='
'

# The variables that clients read, by what they are set to; `larder exec` sets the same.
proxy_names='HTTPS_PROXY https_proxy HTTP_PROXY http_proxy npm_config_proxy npm_config_https_proxy GLOBAL_AGENT_HTTP_PROXY
  YARN_HTTP_PROXY YARN_HTTPS_PROXY'
around_names='NO_PROXY no_proxy npm_config_noproxy GLOBAL_AGENT_NO_PROXY'
# These replace the client's roots, so that they get all of the system's; those below add to them.
bundle_names='SSL_CERT_FILE CURL_CA_BUNDLE REQUESTS_CA_BUNDLE PIP_CERT HTTPLIB2_CA_CERTS GRPC_DEFAULT_SSL_ROOTS_FILE_PATH
  CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE AWS_CA_BUNDLE CARGO_HTTP_CAINFO GIT_SSL_CAINFO NIX_SSL_CERT_FILE
  PERL_LWP_SSL_CA_FILE COMPOSER_CAFILE HEX_CACERTS_PATH CONDA_SSL_VERIFY npm_config_cafile'
extra_names='NODE_EXTRA_CA_CERTS DENO_CERT'

usage() {
  cat <<'USAGE'
Sets this machine, or an image, up for the larder that this script came from.

  sh setup http://HOST:3142    trust larder's CA, and use larder as proxy
  sh setup --ca-only           trust its CA, and nothing else
  sh setup --remove            undo all of it
  sh setup --bypass on         downloads go around larder, which stays trusted; off undoes that;
                               auto does whichever is right: on while larder does not answer

  --no-proxy LIST   hosts that go around larder, comma-separated; this machine, larder's own host
                    and the cloud's metadata service always do
  --cluster         a Kubernetes cluster's names and the private ranges go around larder as well
  --watch           asks each minute whether larder answers, and bypasses it while it does not
  --prefix DIR      the system whose root directory is DIR, and not this one
  --dry-run         say what would be done, and do nothing

Exit codes: 0 done, or nothing was to be done; 1 something unforeseen, and undone; 2 wrong call;
3 no larder at that address, or one with another CA; 4 may not write (not root, read-only, full);
5 an unknown system, or somebody else's file is in the way; 6 the system's tool failed, and undone.
USAGE
}

say() { printf '%s\n' "$*"; }

stop() {
  stop_code=$1
  shift
  printf 'larder setup: %s\n' "$*" >&2
  exit "$stop_code"
}

# --- what was asked for --------------------------------------------------------------------------------------------------

parse() {
  address='' given='' prefix='' what=install ca_only=no dry=no cluster=no bypass='' watch=no patience=20
  while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --remove) what=remove ;;
    --ca-only) ca_only=yes ;;
    --cluster) cluster=yes ;;
    --watch) watch=yes ;;
    --dry-run) dry=yes ;;
    --no-proxy | --prefix | --bypass)
      [ $# -ge 2 ] || stop 2 "$1 wants a value; --help says more"
      case $1 in
      --prefix) prefix=$2 ;;
      --bypass) bypass=$2 ;;
      *) given=$given,$2 ;;
      esac
      shift
      ;;
    -*) stop 2 "there is no option $1; --help lists them" ;;
    *)
      [ -z "$address" ] || stop 2 "one address, not $address and $1"
      address=$1
      ;;
    esac
    shift
  done
  case $given in
  *[!A-Za-z0-9._:/*,-]*) stop 2 '--no-proxy takes names, addresses and ranges with commas between them, nothing else' ;;
  esac
  if [ -n "$prefix" ]; then
    prefix=$(cd "$prefix" 2>/dev/null && pwd -P) || stop 2 '--prefix names no directory'
    [ "$prefix" != / ] || prefix=''
  fi
  case $bypass in
  '') ;;
  on | off | auto)
    { [ $what = install ] && [ $ca_only = no ] && [ -z "$address" ]; } || stop 2 '--bypass goes with no address, --ca-only or --remove'
    ;;
  *) stop 2 '--bypass takes on, off or auto' ;;
  esac
  if [ $what = install ] && [ $ca_only = no ] && [ -z "$bypass" ]; then
    [ -n "$address" ] || stop 2 'which larder? sh setup http://HOST:3142, or --ca-only, or --remove'
    read_address
  fi
  case $ca_sha256 in
  @*) [ $what = remove ] || stop 2 'this is the template, without a CA: fetch http://HOST:3142/setup from your larder' ;;
  esac
}

# Splits the address, and lets nothing through but what hosts and ports are made of: it is written into many files.
read_address() {
  host=${address#http://} port=3142
  host=${host%/}
  case $host in
  \[*\]:*) port=${host##*:} host=${host%:*} ;;
  \[*\]) ;;
  *:*) port=${host##*:} host=${host%:*} ;;
  esac
  case $host in
  \[*[!0-9A-Fa-f:.]*\] | \[\]) host='' ;;
  \[*\]) ;;
  *[!A-Za-z0-9._-]* | -* | .*) host='' ;;
  esac
  case $port in
  '' | *[!0-9]* | ??????*) host='' ;;
  esac
  [ -n "$host" ] || stop 2 "$address is no address of a larder; it looks like http://HOST:3142"
  address=http://$host:$port
  bare=${host#\[}
  bare=${bare%\]}
}

# Asks the larder at the address for its CA: a wrong address would break every download on this machine.
ask_larder() {
  if command -v curl >/dev/null 2>&1; then
    asked=$(curl -sS -f --noproxy '*' --max-time $patience -o "$work/asked" "$address/ca.crt" 2>&1) ||
      stop 3 "no larder answers at $address (${asked%%"$nl"*}); is it the right address, and is larder running?"
  elif command -v wget >/dev/null 2>&1; then
    # busybox's and GNU's differ in how they are told to go around a proxy, and not every busybox knows a limit.
    case $(wget --help 2>&1 || :) in
    *BusyBox*-T*) wget -q -T $patience -Y off -O "$work/asked" "$address/ca.crt" ;;
    *BusyBox*) wget -q -Y off -O "$work/asked" "$address/ca.crt" ;;
    *) wget -q -T $patience -t 1 --no-proxy -O "$work/asked" "$address/ca.crt" ;;
    esac 2>/dev/null ||
      stop 3 "no larder answers at $address; is it the right address, and is larder running?"
  else
    say "unasked    $address: there is neither curl nor wget here to ask it with"
    return
  fi
  grep -qe '-----BEGIN CERTIFICATE-----' "$work/asked" ||
    stop 3 "what answers at $address is no larder; is it the right address and port?"
  grep -qxF "$(needle)" "$work/asked" ||
    stop 3 "$address has another CA than the larder of this script; fetch the script from $address/setup"
}

# A line of the certificate that no other certificate has: the end of its signature.
needle() { ca_pem | grep -v -e '^-----' | tail -n 1; }

next_needle() { ca_next_pem | grep -v -e '^-----' | tail -n 1; }

holds_ca() {
  [ -f "$1" ] && grep -qxF "$(needle)" "$1" || return 1
  [ -z "$(next_needle)" ] || grep -qxF "$(next_needle)" "$1"
}
