# --- the change ----------------------------------------------------------------------------------------------------------

# What would fail half-way is found before: who is not root, and what is read-only. It is tried, because to root some
# shells call everything writable.
check_writable() {
  while read -r kind mode number path; do
    up=$prefix${path%/*}
    while [ ! -d "$up" ]; do up=${up%/*}; done
    if (: >"$up/.larder-setup") 2>/dev/null && rm "$up/.larder-setup"; then continue; fi
    [ "$(id -u)" = 0 ] || stop 4 "may not write in $up: run this as root, or use larder exec, which needs no set-up"
    stop 4 "cannot write in $up: it is read-only or full; larder exec needs no set-up"
  done <"$work/plan"
}

# Puts everything that differs into its place. $work/undo has what was there, the latest first.
apply() {
  changed=no
  while read -r kind mode number path; do
    to=$prefix$path why=$(cat "$work/why.$number") verb=changed
    if [ -f "$to" ]; then
      if [ "$kind" != drop ] && [ "$(sum "$to")" = "$(sum "$work/new.$number")" ]; then
        say "unchanged  $to: $why"
        continue
      fi
    else
      verb=made
    fi
    [ "$kind" != drop ] || verb=removed
    changed=yes
    if [ $dry = yes ]; then
      say "would be $verb: $to: $why"
      continue
    fi
    put || stop 4 "cannot write $to (is the disk full?); everything is as it was"
    printf '%-10s %s: %s\n' "$verb" "$to" "$why"
  done <"$work/plan"
}

put() {
  for dir in $(missing_dirs "${path%/*}" | sed 's/^dir //' | sort); do
    mkdir "$prefix$dir" && undo dir - "$dir" || return 1
  done
  if [ -f "$to" ]; then
    cp -p "$to" "$work/old.$number" && undo old "$number" "$path" || return 1
  else
    undo new - "$path" || return 1
  fi
  if [ "$kind" = drop ]; then
    rm -f "$to"
    return
  fi
  # What a file is to others, it stays: owner and mode are copied.
  unfinished=$to.larder-new
  if [ -f "$to" ]; then cp -p "$to" "$unfinished" || return 1; fi
  cat "$work/new.$number" >"$unfinished" &&
    { [ "$mode" = - ] || chmod "$mode" "$unfinished"; } && mv -f "$unfinished" "$to" && return
  rm -f "$unfinished"
  return 1
}

undo() { { say "$*" && cat "$work/undo"; } >"$work/undo.new" && mv "$work/undo.new" "$work/undo"; }

# The system's own tool; what it wrote is no part of the manifest, because it writes that anew by itself.
update() {
  has "${tool%% *}" || return 0
  fresh=''
  # Debian's and Ubuntu's keep the links of what is gone unless they are told to begin afresh.
  if [ -n "$anchored" ] && [ $family = debian ]; then fresh=--fresh; fi
  # Split, because it may have an argument.
  # shellcheck disable=SC2086
  run $tool $fresh >"$work/said" 2>&1
}

# Runs at every end: puts back what was begun and not committed, and leaves no temporary files.
finish() {
  code=$?
  trap '' EXIT HUP INT TERM
  if [ $committed = no ] && [ -s "$work/undo" ]; then
    while read -r kind number path; do
      case $kind in
      old) cp -p "$work/old.$number" "$prefix$path" ;;
      new) rm -f "$prefix$path" ;;
      dir) rmdir "$prefix$path" ;;
      esac || say "larder setup: could not put $prefix$path back" >&2
    done <"$work/undo"
    [ $updated = no ] || update || :
  fi
  rm -rf "$work"
  exit "$code"
}

sum() { if [ -f "$1" ]; then cksum <"$1"; fi; }

change() {
  [ $dry = yes ] || check_writable
  anchored=$(sum "$prefix$anchor")$(sum "$prefix$next_anchor")
  apply
  [ $dry = no ] || return 0
  if [ "$anchored" != "$(sum "$prefix$anchor")$(sum "$prefix$next_anchor")" ] ||
    { [ $what = install ] && ! holds_ca "$prefix$bundle"; }; then
    updated=yes
    update || stop 6 "${tool%% *} failed ($(tail -n 1 "$work/said")); everything is as it was"
    if has "${tool%% *}"; then say "updated    $prefix$system: by ${tool%% *}"; fi
  fi
  if [ $what = install ] && ! holds_ca "$prefix$bundle"; then
    stop 6 "${tool%% *} ran, and $prefix$bundle does not hold larder's CA; everything is as it was"
  fi
  committed=yes
}

main() {
  parse "$@"
  detect
  n=0 committed=no updated=no
  # Below the prefix, so that programs that run inside can reach it.
  if [ -n "$prefix" ]; then temporary=$prefix/tmp; else temporary=${TMPDIR:-/tmp}; fi
  { [ -d "$temporary" ] && inside /tmp; } || stop 4 "there is no directory $temporary for temporary files"
  work=$(mktemp -d "$temporary/larder-setup.XXXXXX" 2>/dev/null) ||
    stop 4 "cannot write in $temporary: it is read-only, full, or somebody else's"
  trap finish EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  for list in plan paths before undo; do : >"$work/$list"; done
  if [ -f "$prefix$manifest" ]; then cat "$prefix$manifest" >"$work/before"; fi
  if [ $what = remove ]; then
    if [ ! -s "$work/before" ]; then
      say 'nothing to remove: larder was not set up here'
      exit 0
    fi
    plan_drops
    next
    planned drop - $manifest 'what --remove went by'
    change
    [ $dry = no ] || exit 0
    grep '^dir ' "$work/before" | sort -r | while read -r kind path; do
      rmdir "$prefix$path" 2>/dev/null || :
    done
    say 'done       larder is neither trusted nor used here; shells that run keep their variables until they end'
    exit 0
  fi
  [ $ca_only = yes ] || ask_larder
  old_ca=$(sed -n 's/^ca //p' "$work/before")
  if [ -n "$old_ca" ] && [ "$old_ca" != "$ca_sha256" ]; then
    say "new CA     instead of $old_ca, which is no longer trusted"
  fi
  plan_ca
  [ $ca_only = yes ] || plan_settings
  plan_script
  plan_drops
  plan_manifest
  change
  [ $dry = no ] || exit 0
  say "CA         $ca_sha256 (SHA-256; compare it with: larder ca show)"
  if [ $changed = no ]; then
    say 'done       nothing was to be done'
  else
    say "done       undo it with: sh $state/setup --remove"
  fi
}

# Itself, for --remove. Piped into a shell, it cannot be found again.
plan_script() {
  if [ -f "$0" ] && grep -qF "$ca_sha256" "$0"; then
    own $state/setup 0755 'this script, for --remove' <"$0"
  fi
}

# The last line, so that a text that was cut on the way does nothing.
main "$@"
