# --- the change ----------------------------------------------------------------------------------------------------------

# The directory above PATH, or the nearest that is there.
above() {
  up=$prefix${1%/*}
  while [ ! -d "$up" ]; do up=${up%/*}; done
}

# A name for trying whether a directory can be written.
probe=.larder-setup

# What would fail half-way is found before: who is not root, and what is read-only. It is tried, because to root some
# shells call everything writable.
check_writable() {
  while read -r kind mode number path; do
    above "$path"
    if (: >"$up/$probe") 2>/dev/null && rm "$up/$probe"; then continue; fi
    refused
  done <"$work/differs"
}

refused() {
  [ "$(id -u)" = 0 ] || stop 4 "may not write in $up: run this as root, or use larder exec, which needs no set-up"
  stop 4 "cannot write in $up: it is read-only or full; larder exec needs no set-up"
}

# Writes down what is begun, behind what a killed run began. A kill leaves this list, and whatever of it was not done yet.
begin_journal() {
  above "$journal"
  begun=yes
  if [ ! -d "$prefix$state" ]; then
    mkdir -p "$prefix$state" 2>/dev/null || refused
    state_made=yes
  fi
  {
    say "work ${work##*/}"
    while read -r kind mode number path; do
      missing_dirs "${path%/*}"
      say "file $path"
    done <"$work/differs"
    if [ $state_made = yes ]; then say "dir $state"; fi
  } >"$work/journal"
  (cat "$work/journal" >>"$prefix$journal") 2>/dev/null || refused
}

# Takes away what a run that was killed left lying about. That the system's tool has to run, $killed remembers.
clear_journal() {
  while read -r kind path; do
    case $kind in
    work)
      case $path in */*) ;; larder-setup.*) rm -rf "${temporary:?}/$path" ;; esac
      ;;
    file)
      if inside "$path"; then
        above "$path"
        rm -f "$up/$probe" "$prefix$path.larder-new"
      fi
      ;;
    esac
  done <"$work/killed"
}

# Sorts out what differs, and says the rest.
compare() {
  while read -r kind mode number path; do
    to=$prefix$path
    if [ "$kind" != drop ] && [ -f "$to" ] && [ "$(sum "$to")" = "$(sum "$work/new.$number")" ]; then
      say "unchanged  $to: $(cat "$work/why.$number")"
    else
      say "$kind $mode $number $path" >>"$work/differs"
    fi
  done <"$work/plan"
}

# Puts everything that differs into its place. $work/undo has what was there, the latest first.
apply() {
  while read -r kind mode number path; do
    to=$prefix$path why=$(cat "$work/why.$number") verb=made
    [ ! -f "$to" ] || verb=changed
    [ "$kind" != drop ] || verb=removed
    if [ $dry = yes ]; then
      say "would be $verb: $to: $why"
      continue
    fi
    put || stop 4 "cannot write $to (is the disk full?); everything is as it was"
    printf '%-10s %s: %s\n' "$verb" "$to" "$why"
  done <"$work/differs"
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
  # Fedora's has an argument.
  # shellcheck disable=SC2086
  if [ $family = debian ]; then update_debian; else run $tool; fi >"$work/said" 2>&1
}

# Debian's and Ubuntu's tells those who keep copies, as Java does, of what it takes out by a line in its configuration, and
# of nothing else that is gone; and of a certificate that is another one now only if it begins afresh.
update_debian() {
  gone=''
  for path in $anchor $next_anchor; do
    name=${path##*/}
    if [ ! -e "$prefix$path" ] && [ -L "$prefix/etc/ssl/certs/${name%.crt}.pem" ]; then gone=$gone!$name$nl; fi
  done
  if [ -n "$gone" ]; then
    if [ -f "$prefix/etc/ca-certificates.conf" ]; then cat "$prefix/etc/ca-certificates.conf"; fi >"$work/conf"
    say "$gone" >>"$work/conf"
    run "$tool" --certsconf "${work#"$prefix"}/conf" || return 1
  fi
  if [ -n "$gone" ] && [ ! -e "$prefix$anchor" ]; then return; fi
  if [ -n "$anchored$killed" ]; then run "$tool" --fresh; else run "$tool"; fi
}

# Runs at every end: puts back what was begun and not committed, and leaves no temporary files.
finish() {
  code=$?
  trap '' EXIT HUP INT QUIT PIPE TERM
  whole=yes
  if [ "$code" = 1 ] && [ $committed = no ]; then why_unforeseen; fi
  if [ $committed = no ] && [ -s "$work/undo" ]; then
    while read -r kind number path; do
      case $kind in
      old) cp -p "$work/old.$number" "$prefix$path" ;;
      new) rm -f "$prefix$path" ;;
      dir) rmdir "$prefix$path" ;;
      esac || { whole=no && say "larder setup: could not put $prefix$path back" >&2; }
    done <"$work/undo"
    [ $updated = no ] || update || :
  fi
  if [ $begun = yes ] && [ $whole = yes ]; then
    rm -f "$prefix$journal"
    [ $state_made = no ] || rmdir "$prefix$state" 2>/dev/null || :
  fi
  rm -rf "$work"
  exit "$code"
}

# Where the plan is made has to hold all of it.
why_unforeseen() {
  if head -c 65536 /dev/zero 2>/dev/null >"$work/probe"; then
    printf 'larder setup: something unforeseen; everything is as it was\n' >&2
  else
    code=4
    printf 'larder setup: cannot write in %s: it is full; everything is as it was\n' "$temporary" >&2
  fi
}

sum() { if [ -f "$1" ]; then cksum <"$1"; fi; }

change() {
  compare
  changed=no
  if [ -s "$work/differs" ] || [ -n "$killed" ]; then changed=yes; fi
  if [ $dry = yes ]; then
    apply
    return
  fi
  anchored=$(sum "$prefix$anchor")$(sum "$prefix$next_anchor")
  lacking=no
  [ $what = remove ] || holds_ca "$prefix$bundle" || lacking=yes
  if [ $changed = yes ] || [ $lacking = yes ]; then
    begin_journal
    clear_journal
    check_writable
    apply
  fi
  if [ -n "$killed" ] || [ $lacking = yes ] ||
    [ "$anchored" != "$(sum "$prefix$anchor")$(sum "$prefix$next_anchor")" ]; then
    updated=yes
    update || stop 6 "${tool%% *} failed ($(tail -n 1 "$work/said")); everything is as it was"
    if has "${tool%% *}"; then say "updated    $prefix$system: by ${tool%% *}"; fi
  fi
  if [ $what = install ] && ! holds_ca "$prefix$bundle"; then
    stop 6 "${tool%% *} ran, and $prefix$bundle does not hold larder's CA; everything is as it was"
  fi
  committed=yes
}

# Undoes what the manifest lists, and forgets it last: until the system's bundle is made anew, a kill forgets nothing.
remove() {
  if [ ! -s "$work/before" ] && [ -z "$killed" ]; then
    [ $dry = yes ] || rmdir "$prefix$state" 2>/dev/null || :
    say 'nothing to remove: larder was not set up here'
    exit 0
  fi
  plan_drops
  change
  [ $dry = no ] || exit 0
  tell_systemd
  if [ -f "$prefix$manifest" ]; then
    rm "$prefix$manifest"
    say "removed    $prefix$manifest: what --remove went by"
  fi
  rm -f "$prefix$journal"
  { grep '^dir ' "$work/before" || :; say "dir $state"; } | sort -u -r | while read -r kind path; do
    rmdir "$prefix$path" 2>/dev/null || :
  done
  say 'done       larder is neither trusted nor used here; shells that run keep their variables until they end'
}

main() {
  parse "$@"
  detect
  n=0 committed=no updated=no begun=no state_made=no changed=no killed='' store_of=''
  # Below the prefix, so that programs that run inside can reach it.
  if [ -n "$prefix" ]; then temporary=$prefix/tmp; else temporary=${TMPDIR:-/tmp}; fi
  { [ -d "$temporary" ] && inside /tmp; } || stop 4 "there is no directory $temporary for temporary files"
  work=$(mktemp -d "$temporary/larder-setup.XXXXXX" 2>/dev/null) ||
    stop 4 "cannot write in $temporary: it is read-only, full, or somebody else's"
  trap finish EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 131' QUIT
  # Whoever reads what is said may leave: sh setup | head.
  trap 'exit 141' PIPE
  trap 'exit 143' TERM
  for list in plan paths before undo differs killed; do : >"$work/$list"; done
  if [ -f "$prefix$manifest" ]; then cat "$prefix$manifest" >"$work/before"; fi
  if [ -f "$prefix$journal" ]; then
    killed=yes
    cat "$prefix$journal" >"$work/killed"
    grep '^dir ' "$work/killed" >>"$work/before" || :
    say 'note       an earlier run was ended half-way; this one puts its things right'
  fi
  if [ $what = remove ]; then
    remove
    exit 0
  fi
  if [ -n "$bypass" ]; then recall; fi
  given=$(merged "$given")
  if was watch yes; then watch=yes; fi
  [ $ca_only = yes ] || ask_larder
  old_ca=$(sed -n 's/^ca //p' "$work/before")
  if [ -n "$old_ca" ] && [ "$old_ca" != "$ca_sha256" ]; then
    say "new CA     instead of $old_ca, which is no longer trusted"
  fi
  # Piped into a shell, the script cannot be found again, and leaves no copy of itself; an earlier run's stays.
  copy=''
  if [ -f "$0" ] && grep -qF "$ca_sha256" "$0"; then
    copy=$0
  elif was own $state/setup && [ -f "$prefix$state/setup" ]; then
    copy=$prefix$state/setup
  fi
  if [ -n "$copy" ]; then mark="made by larder's setup; sh $state/setup --remove takes it away"; fi
  plan_ca
  [ $ca_only = yes ] || plan_settings
  if [ "$bypass" = on ]; then plan_bypassed_shells; fi
  if [ $watch = yes ]; then plan_watch; fi
  if [ -n "$copy" ]; then own $state/setup 0755 'this script, for --remove' <"$copy"; fi
  plan_drops
  plan_manifest
  change
  [ $dry = no ] || exit 0
  tell_systemd
  if [ "$bypass" = on ]; then
    say "bypassed   downloads go around larder until: sh $state/setup --bypass off"
    say 'note       shells that run keep their variables; in each, run: . /etc/profile.d/larder.sh'
    return
  fi
  say "CA         $ca_sha256 (SHA-256; compare it with: larder ca show)"
  if [ $changed = no ] && [ $updated = no ]; then
    say 'done       nothing was to be done'
  elif [ -f "$prefix$state/setup" ]; then
    say "done       undo it with: sh $state/setup --remove"
  else
    say 'done       undo it with this script and --remove; it could not leave a copy of itself'
  fi
}

# The last line, so that a text that was cut on the way does nothing.
main "$@"
