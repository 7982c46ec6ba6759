# --- when larder is not there ----------------------------------------------------------------------------------------------

# What an earlier run was told, for --bypass; `auto` becomes what has to be done.
recall() {
  address=$(sed -n 's/^address //p' "$work/before")
  case $address in
  '' | none) stop 2 'no larder is set up here; sh setup http://HOST:3142 does that' ;;
  esac
  given=$(merged "$given,$(sed -n 's/^given //p' "$work/before")")
  if was cluster yes; then cluster=yes; fi
  read_address
  if [ "$bypass" = auto ]; then
    bypass=on patience=3
    if (ask_larder) >/dev/null 2>&1; then bypass=off; fi
    case $bypass in
    on) if was bypassed on; then exit 0; fi ;;
    off) was bypassed on || exit 0 ;;
    esac
  fi
  if [ "$bypass" = on ]; then ca_only=yes; fi
}

# What apt asks for its proxy before it downloads from a host: a larder with this CA at the address, or none. No other program can
# be told so.
plan_detector() {
  own $state/proxy 0755 'asks for apt whether larder answers' <<DETECTOR
#!/bin/sh
# $mark
# Prints larder's address if that larder answers, else DIRECT (apt.conf(5), Proxy-Auto-Detect).
address=$address
line='$(needle)'
if command -v curl >/dev/null 2>&1; then
  said=\$(curl -s -f --noproxy '*' --max-time 2 "\$address/ca.crt" 2>/dev/null)
elif command -v bash >/dev/null 2>&1 && command -v timeout >/dev/null 2>&1; then
  said=\$(timeout 2 bash -c 'exec 3<>"/dev/tcp/\$1/\$2" && printf "GET /ca.crt HTTP/1.0\\r\\nHost: \$1\\r\\n\\r\\n" >&3 && cat <&3' \\
    bash '$bare' '$port' 2>/dev/null | tr -d '\\r')
else
  said=\$line
fi
case \$said in
*"\$line"*) echo "\$address" ;;
*) echo DIRECT ;;
esac
DETECTOR
}

# For shells that run while larder is bypassed: takes its address out of their variables.
plan_bypassed_shells() {
  [ -d "$prefix/etc/profile.d" ] || return 0
  own /etc/profile.d/larder.sh 0644 'takes the variables out of shells that have them' <<PROFILE
# $mark
for larder_name in $(say "$proxy_names" | tr -s '\n ' '  '); do
  eval "larder_value=\\\${\$larder_name:-}"
  if [ "\$larder_value" = '$address' ]; then unset "\$larder_name"; fi
done
unset larder_name larder_value
PROFILE
}

# --watch: asks each minute, and when the network changes, whether larder answers, and bypasses it while it does not.
plan_watch() {
  if [ -z "$copy" ] || [ ! -d "$prefix/etc/systemd/system" ]; then
    say 'left       --watch: it needs systemd, and this script as a file'
    return
  fi
  own /etc/systemd/system/larder-bypass.service 0644 'bypasses larder while it does not answer' <<UNIT
# $mark
[Unit]
Description=Bypasses larder while it does not answer
After=network.target

[Service]
Type=oneshot
ExecStart=/bin/sh $state/setup --bypass auto
UNIT
  own /etc/systemd/system/larder-bypass.timer 0644 'each minute' <<UNIT
# $mark
[Unit]
Description=Asks each minute whether larder answers

[Timer]
OnBootSec=10s
OnUnitInactiveSec=1min
UNIT
  # Instead of the link that systemctl enable makes.
  own /etc/systemd/system/timers.target.d/larder.conf 0644 'starts the timer' <<UNIT
# $mark
[Unit]
Wants=larder-bypass.timer
UNIT
  [ -d "$prefix/etc/NetworkManager/dispatcher.d" ] || return 0
  own /etc/NetworkManager/dispatcher.d/50-larder 0755 'when the network changes' <<DISPATCHER
#!/bin/sh
# $mark
case \${2:-} in
up | down | connectivity-change | vpn-up | vpn-down) exec /bin/sh $state/setup --bypass auto ;;
esac
DISPATCHER
}

# Tells the running service manager of units that came or went.
tell_systemd() {
  if [ -n "$prefix" ] || [ ! -d /run/systemd/system ]; then return 0; fi
  grep -q '/etc/systemd/system/larder-bypass[.]' "$work/differs" || return 0
  systemctl daemon-reload || :
  if [ -f /etc/systemd/system/larder-bypass.timer ]; then
    systemctl start larder-bypass.timer || :
  else
    systemctl stop larder-bypass.timer || :
  fi
}
