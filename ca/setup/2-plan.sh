# --- the system ----------------------------------------------------------------------------------------------------------

# Where its anchors lie, what makes the bundle of them, and where that is.
detect() {
  id='' like=''
  for release in /etc/os-release /usr/lib/os-release; do
    [ -f "$prefix$release" ] || continue
    id=$(value_in "$prefix$release" ID)
    like=$(value_in "$prefix$release" ID_LIKE)
    break
  done
  family=''
  for name in $id $like; do
    case $name in
    debian | ubuntu) family=debian ;;
    alpine | wolfi) family=alpine ;;
    fedora | rhel | centos) family=fedora ;;
    arch | archlinux) family=arch ;;
    suse | opensuse | opensuse-* | sles) family=suse ;;
    *) continue ;;
    esac
    break
  done
  case $family in
  debian | alpine)
    anchors=/usr/local/share/ca-certificates tool=update-ca-certificates
    system=/etc/ssl/certs/ca-certificates.crt
    ;;
  fedora)
    anchors=/etc/pki/ca-trust/source/anchors tool='update-ca-trust extract'
    system=/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem
    ;;
  arch)
    anchors=/etc/ca-certificates/trust-source/anchors tool=update-ca-trust
    system=/etc/ca-certificates/extracted/tls-ca-bundle.pem
    ;;
  suse)
    anchors=/etc/pki/trust/anchors tool=update-ca-certificates
    system=/var/lib/ca-certificates/ca-bundle.pem
    ;;
  *) stop 5 "unknown system (ID=${id:-none}): put the CA of http://HOST:3142/ca.crt among its roots by hand, or use larder exec" ;;
  esac
  anchor=$anchors/larder-ca.crt next_anchor=$anchors/larder-ca-next.crt
  if has "${tool%% *}"; then
    bundle=$system
  else
    bundle=$state/bundle.pem
  fi
}

# Whether the system has a program. In another root a link may well be absolute, and look broken from here.
has() {
  if [ -z "$prefix" ]; then
    command -v "$1" >/dev/null 2>&1
    return
  fi
  for bin in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
    if [ -x "$prefix$bin/$1" ] || [ -L "$prefix$bin/$1" ]; then return 0; fi
  done
  return 1
}

# In the caller's locale: names of certificates may not be ASCII.
run() (
  if [ -n "$their_locale" ]; then LC_ALL=$their_locale; else unset LC_ALL; fi
  if [ -n "$prefix" ]; then chroot "$prefix" "$@"; else "$@"; fi
)

# The last value of a name in lines like NAME="value".
value_in() {
  sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$2=//p" "$1" | tail -n 1 | sed "s/[\"']//g"
}

# A list of hosts, each once.
merged() {
  merged=''
  for host_in_list in $(say "$1" | tr ',' ' '); do
    case ,$merged, in *",$host_in_list,"*) continue ;; esac
    merged=${merged:+$merged,}$host_in_list
  done
  say "$merged"
}

# Whether a path stays within the root it belongs to: a link in an image may lead into the machine that sets it up.
inside() {
  [ -n "$prefix" ] || return 0
  up=$prefix$1
  while [ ! -d "$up" ]; do
    if [ -L "$up" ]; then return 1; fi
    up=${up%/*}
  done
  up=$(cd "$up" && pwd -P)
  case $up/ in "$prefix"/*) return 0 ;; esac
  return 1
}

# --- the plan ------------------------------------------------------------------------------------------------------------

# Whether an earlier run has written a path, and as what; or has made the trust store of these roots.
was() { grep -qxF "$1 $2" "$work/before"; }

# planned KIND MODE PATH WHY: adds new.$n to the plan.
planned() {
  inside "$3" || stop 5 "$prefix$3 is reached by a link that leads out of $prefix"
  printf '%s %s %s %s\n' "$1" "$2" "$n" "$3" >>"$work/plan"
  say "$4" >"$work/why.$n"
  say "$3" >>"$work/paths"
}

next() { n=$((n + 1)); }

# own PATH MODE WHY: a file of larder's own, out of standard input.
own() {
  next
  cat >"$work/new.$n"
  if { [ -e "$prefix$1" ] || [ -L "$prefix$1" ]; } && ! was own "$1"; then
    case $1 in
    "$anchor" | "$next_anchor" | "$state"/*) stop 5 "$prefix$1 is in the way, and not from here; move it away and run this again" ;;
    esac
    say "left       $prefix$1: it was there before"
    return
  fi
  planned own "$2" "$1" "$3"
}

# edit PATH SIGN SECTION WHY [KEYS]: lines out of standard input, between marks that begin with SIGN, in a file that others
# write into as well; below [SECTION] if one is named. A file that sets one of KEYS (a pattern) itself is left alone: to
# some readers a second one is an error, and the first was somebody's will.
edit() {
  next
  cat >"$work/lines"
  if [ -L "$prefix$1" ]; then
    say "left       $prefix$1: it is a link"
    return
  fi
  : >"$work/base"
  kind=made
  if [ -f "$prefix$1" ]; then
    was made "$1" || kind=edit
    base_of "$1"
  fi
  if [ -n "${5:-}" ] && grep -Eq "^[[:space:]]*($5)[[:space:]]*[=:]" "$work/base"; then
    say "left       $prefix$1: it says itself what larder's lines would"
    return
  fi
  with_block "$2" "$(section_line "$1" "$3")" "$3" >"$work/new.$n"
  planned $kind - "$1" "$4"
}

# Puts a file, as it is without larder, into $work/base.
base_of() {
  : >"$work/base"
  if [ -f "$prefix$1" ]; then without_block "$prefix$1" >"$work/base"; fi
}

# The number of the line in base at which SECTION of FILE begins. Only TOML lets blanks and quotes stand within brackets.
section_line() {
  [ -n "$2" ] || return 0
  gap=''
  case $1 in */config | *.toml) gap="[[:space:]\"']*" ;; esac
  grep -n "^[[:space:]]*\[$gap$2$gap\]" "$work/base" | sed -n '1s/:.*//p'
}

# A file without larder's block, byte for byte as it was before.
without_block() {
  [ "$(grep -c "$begin" "$1")" = "$(grep -c "$end" "$1")" ] ||
    stop 5 "$1: one of the two marks around larder's lines is missing; put that right by hand"
  ended=yes
  if grep -qF "$begin $unended_below" "$1"; then ended=no; fi
  if grep -qF "$begin $unended" "$1"; then
    # What others have written behind the block since ends as they ended it.
    case $(tail -n 1 "$1") in *"$end") ended=no ;; esac
  fi
  if [ $ended = no ]; then
    # Command substitution takes newlines from the end.
    printf '%s' "$(sed "/$begin/,/$end/d" "$1")"
  else
    sed "/$begin/,/$end/d" "$1"
  fi
}

# with_block SIGN LINE SECTION: the file without the block (base) with it, below the section's line, or at the end.
with_block() {
  note='' at=$2
  if [ -s "$work/base" ] && [ "$(tail -c 1 "$work/base" | wc -l)" -eq 0 ]; then
    note=" $unended"
    if [ -n "$at" ]; then note=" $unended_below"; fi
    echo >>"$work/base"
  fi
  {
    printf '%s %s%s\n' "$1" "$begin" "$note"
    if [ -n "$3" ] && [ -z "$at" ]; then say "[$3]"; fi
    cat "$work/lines"
    printf '%s %s\n' "$1" "$end"
  } >"$work/block"
  if [ -n "$at" ]; then
    sed "${at}r $work/block" "$work/base"
  else
    cat "$work/base" "$work/block"
  fi
}

# What an earlier run wrote and this one does not.
plan_drops() {
  while read -r kind path; do
    case $kind in own | made | edit) ;; *) continue ;; esac
    if [ "$path" = $manifest ] || [ ! -f "$prefix$path" ] || grep -qxF "$path" "$work/paths"; then continue; fi
    next
    if [ "$kind" != own ]; then
      without_block "$prefix$path" >"$work/new.$n"
      # What others wrote into a file that larder made stays.
      if [ "$kind" = edit ] || [ -s "$work/new.$n" ]; then
        planned back - "$path" 'as it is without larder'
        continue
      fi
    fi
    planned drop - "$path" 'no longer needed'
  done <"$work/before"
}

# What --remove goes by. It is put into place after what the old one lists is gone, and before what it lists itself is
# there, so that a power failure makes nothing forgotten.
plan_manifest() {
  own "$manifest" 0644 'what --remove goes by' <<MANIFEST
# $mark
ca $ca_sha256
address ${address:-none}
store $store_of
given $given
cluster $cluster
watch $watch
bypassed ${bypass:-off}
$({
    grep '^dir ' "$work/before" || :
    while read -r kind mode number path; do
      case $kind in
      own | made)
        say "$kind $path"
        missing_dirs "${path%/*}"
        ;;
      edit) say "edit $path" ;;
      esac
    done <"$work/plan"
    say "own $manifest"
    missing_dirs "$state"
  } | sort -u)
MANIFEST
  {
    grep -e '^drop' -e '^back' "$work/plan" || :
    tail -n 1 "$work/plan"
    sed '$d' "$work/plan" | grep -v -e '^drop' -e '^back' || :
  } >"$work/ordered"
  mv "$work/ordered" "$work/plan"
}

# The directories above PATH, and itself, that are not there yet.
missing_dirs() {
  missing=$1
  while [ -n "$missing" ] && [ ! -d "$prefix$missing" ]; do
    say "dir $missing"
    missing=${missing%/*}
  done
}
