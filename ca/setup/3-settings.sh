# --- what is planned -----------------------------------------------------------------------------------------------------

plan_ca() {
  ca_pem >"$work/pem"
  own $anchor 0644 "larder's CA among the system's anchors" <"$work/pem"
  extra=$anchor
  ca_next_pem >"$work/next"
  if [ -s "$work/next" ]; then
    own $next_anchor 0644 'the CA that follows it' <"$work/next"
    cat "$work/pem" "$work/next" >"$work/both"
    # For clients that add one file to their roots.
    extra=$state/extra.pem
    own $extra 0644 'both' <"$work/both"
  fi
  [ $bundle != $system ] || return 0
  say "note       ${tool%% *} is not here: the package ca-certificates will take larder's CA in; run this again after that"
  cat "$work/pem" "$work/next" >"$work/roots"
  if [ -f "$prefix$system" ]; then cat "$prefix$system" >>"$work/roots"; fi
  own $bundle 0644 "larder's CA and the roots that are here" <"$work/roots"
  if [ $family = alpine ]; then own /etc/apk/ca.pem 0644 'the same for apk, which fetches ca-certificates over https' <"$work/roots"; fi
}

# The hosts that go around larder. Not every client knows ranges: those are left out of what is only for such clients.
plan_around() {
  all=localhost,127.0.0.1,::1,169.254.169.254,metadata.google.internal,$bare,$given
  if [ $cluster = yes ]; then
    all=$all,.svc,.cluster.local,kubernetes.default.svc,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16
  fi
  base_of /etc/environment
  around=$(merged "$(value_in "$work/base" NO_PROXY),$(value_in "$work/base" no_proxy),$all")
  single=''
  for item in $(say "$around" | tr ',' ' '); do
    case $item in */*) ;; *) single=${single:+$single,}$item ;; esac
  done
}

# Java has its own names for all of this, and knows neither the system's roots nor the variables. Sets $java.
plan_java() {
  java='' trust=''
  if [ -z "$prefix" ]; then own_java=${JAVA_HOME:-}; else own_java=''; fi
  set +f
  for home in "$own_java" /opt/java/openjdk "$prefix"/usr/local/openjdk-* "$prefix"/usr/lib/jvm/*; do
    set -f
    [ -n "$home" ] || continue
    home=${home#"$prefix"}
    for cacerts in "$home/lib/security/cacerts" "$home/jre/lib/security/cacerts"; do
      if [ -L "$prefix$cacerts" ]; then
        # The system's: its update tool keeps it.
        java=yes
      elif [ -f "$prefix$cacerts" ]; then
        java=yes
        plan_trust_store
        break 2
      fi
    done
  done
  set -f
  [ -n "$java" ] || return 0
  globs='localhost|127.*|[::1]'
  for item in $(say "$around" | tr ',' ' '); do
    case $item in
    localhost | 127.0.0.1 | ::1) continue ;;
    *.0.0.0/8) item="${item%0.0.0/8}*" ;;
    *.0.0/16) item="${item%0.0/16}*" ;;
    *.0/24) item="${item%0/24}*" ;;
    */*) continue ;;
    .*) item="*$item" ;;
    *:*) item="[$item]" ;;
    esac
    globs="$globs|$item"
  done
  java="-Dhttp.proxyHost=$bare -Dhttp.proxyPort=$port -Dhttps.proxyHost=$bare -Dhttps.proxyPort=$port -Dhttp.nonProxyHosts=$globs$trust"
}

# A Java with roots of its own: they and larder's CA in a PKCS#12 store. It is no secret; the password is the usual one.
plan_trust_store() {
  store=$state/truststore.p12
  store_of=$(cat "$work/pem" "$work/next" "$prefix$cacerts" | cksum)
  if was own $store && [ -f "$prefix$store" ] && was store "$store_of"; then
    # Another one would differ, because it is salted.
    cp "$prefix$store" "$work/store"
  elif [ -e "$prefix$home/bin/keytool" ]; then
    inner=${work#"$prefix"}
    { run "$home/bin/keytool" -importkeystore -noprompt -srckeystore "$cacerts" -srcstorepass changeit \
      -destkeystore "$inner/store" -deststoretype PKCS12 -deststorepass changeit &&
      run "$home/bin/keytool" -importcert -noprompt -alias larder -file "$inner/pem" \
        -keystore "$inner/store" -storetype PKCS12 -storepass changeit &&
      { [ ! -s "$work/next" ] || run "$home/bin/keytool" -importcert -noprompt -alias larder-next -file "$inner/next" \
        -keystore "$inner/store" -storetype PKCS12 -storepass changeit; }; } >"$work/said" 2>&1 || rm -f "$work/store"
  else
    # Java takes only what is marked as trusted, which OpenSSL does since 3.2.
    { cat "$work/pem" "$work/next" && if [ -f "$prefix$system" ]; then cat "$prefix$system"; fi; } >"$work/roots"
    openssl pkcs12 -export -nokeys -jdktrust anyExtendedKeyUsage -in "$work/roots" -out "$work/store" \
      -passout pass:changeit >"$work/said" 2>&1 || rm -f "$work/store"
  fi
  if [ ! -s "$work/store" ]; then
    say "left       Java in $prefix$home: neither keytool nor openssl 3.2 makes a trust store ($(tail -n 1 "$work/said"))"
    java='' store_of=''
    return
  fi
  own $store 0644 "Java's roots and larder's CA" <"$work/store"
  trust=" -Djavax.net.ssl.trustStore=$store -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=changeit"
}

# The variables as lines NAME="value".
variables() {
  for name in $proxy_names; do say "$name=\"$address\""; done
  for name in $around_names; do say "$name=\"$around\""; done
  for name in $bundle_names; do say "$name=\"$bundle\""; done
  for name in $extra_names; do say "$name=\"$extra\""; done
  say 'NODE_USE_ENV_PROXY="1"'
  if [ -n "$java" ]; then say "JAVA_TOOL_OPTIONS=\"$(value_in "$work/base" JAVA_TOOL_OPTIONS | sed 's/.$/& /')$java\""; fi
}

plan_settings() {
  plan_around
  plan_java
  # For logins (PAM), and for shells where there is no PAM.
  variables >"$work/variables"
  edit /etc/environment '#' '' 'the variables, for logins' <"$work/variables"
  if [ -d "$prefix/etc/profile.d" ]; then
    {
      say "# $mark"
      grep -v -e '^NO_PROXY=' -e '^no_proxy=' -e '^JAVA_TOOL' "$work/variables" | sed 's/^/export /'
      # A shell in a shell adds nothing again.
      cat <<PROFILE
for larder_host in $(say "$around" | sed "s/[^,]*/'&'/g" | tr ',' ' '); do
  case ",\${NO_PROXY:=\${no_proxy:-}}," in
  *",\$larder_host,"*) ;;
  *) NO_PROXY=\${NO_PROXY:+\$NO_PROXY,}\$larder_host ;;
  esac
done
no_proxy=\$NO_PROXY
export NO_PROXY no_proxy
unset larder_host
PROFILE
      if [ -n "$java" ]; then
        cat <<PROFILE
case \${JAVA_TOOL_OPTIONS:-} in
*'-Dhttps.proxyHost=$bare '*) ;;
*) export JAVA_TOOL_OPTIONS="\${JAVA_TOOL_OPTIONS:+\$JAVA_TOOL_OPTIONS }$java" ;;
esac
PROFILE
      fi
    } >"$work/profile"
    own /etc/profile.d/larder.sh 0644 'the variables, for login shells' <"$work/profile"
  fi
  if [ -d "$prefix/etc/sudoers.d" ]; then
    {
      say "# $mark"
      say "Defaults env_keep += \"$(sed 's/=.*//' "$work/variables" | tr '\n' ' ')\""
    } >"$work/sudo"
    if has visudo && ! run visudo -c -q -f "${work#"$prefix"}/sudo" >/dev/null 2>&1; then
      say 'left       sudo: visudo does not like the rule that would keep the variables'
    else
      own /etc/sudoers.d/larder 0440 'sudo keeps the variables' <"$work/sudo"
    fi
  fi
  plan_tools
}

# uv refuses to run when its file holds what it does not know, and older versions know no proxy there. So the uv that is here is
# asked first; without one, nothing is written.
plan_uv() {
  uv=''
  for bin in /usr/local/bin /usr/bin /bin /opt/uv/bin "${home:+$home/.local/bin}" "${home:+$home/.cargo/bin}"; do
    if [ -n "$bin" ] && [ -x "$prefix$bin/uv" ]; then uv=$bin/uv && break; fi
  done
  if [ -z "$uv" ] && [ -z "$prefix" ]; then uv=$(command -v uv) || uv=''; fi
  [ -n "$uv" ] || return 0
  # Of these two it reads the first that is there.
  file=/etc/uv/uv.toml
  if [ -f "$prefix/etc/xdg/uv/uv.toml" ]; then file=/etc/xdg/uv/uv.toml; fi
  base_of $file
  # It reads the system's roots, and no file that is named here. Behind the header of a table, the lines would belong to that.
  if [ $bundle != $system ] || grep -q '^[[:space:]]*\[' "$work/base"; then
    say "left       $prefix$file: uv goes around larder in steps without variables"
    return
  fi
  # The second is the older name.
  for certs in system-certs native-tls; do
    cat >"$work/uv.toml" <<TOOL
http-proxy = "$address"
https-proxy = "$address"
no-proxy = [$(say "$around" | sed 's/[^,][^,]*/"&"/g')]
$certs = true
TOOL
    run "$uv" --config-file "${work#"$prefix"}/uv.toml" cache dir >/dev/null 2>&1 || continue
    edit $file '#' '' "uv's proxy and roots" '(http|https|no)-proxy|system-certs|native-tls' <"$work/uv.toml"
    return
  done
  say "left       $prefix$file: this uv is too old to read a proxy there; it goes around larder in steps without variables"
}

# For clients that run where no variables are, such as the steps of an image's build, or that read none.
plan_tools() {
  if [ -d "$prefix/etc/apt" ]; then
    plan_detector
    {
      say "// $mark"
      # Not the address itself: without larder, apt goes on without it.
      say "Acquire::http::Proxy-Auto-Detect \"$state/proxy\";"
      say "Acquire::https::Proxy-Auto-Detect \"$state/proxy\";"
      for item in $(say "$single" | tr ',' ' '); do
        # It becomes a name in apt's own language.
        case $item in .* | *[!A-Za-z0-9._-]*) continue ;; esac
        say "Acquire::http::Proxy::$item \"DIRECT\";"
        say "Acquire::https::Proxy::$item \"DIRECT\";"
      done
      if [ $bundle != $system ]; then say "Acquire::https::CaInfo \"$bundle\";"; fi
    } >"$work/apt"
    own /etc/apt/apt.conf.d/99larder 0644 "apt's proxy" <"$work/apt"
  fi
  edit /etc/pip.conf '#' global "pip's proxy and roots" 'proxy|cert' <<TOOL
proxy = $address
cert = $bundle
TOOL
  edit /etc/gitconfig '#' '' "git's proxy" <<TOOL
[http]
	proxy = $address
	sslCAInfo = $bundle
TOOL
  # npm's global settings lie below its own prefix; some distributions moved them to /etc.
  for npm in /usr/local:/usr/local/etc/npmrc /usr:/usr/etc/npmrc /usr:/etc/npmrc; do
    if [ -e "$prefix${npm%%:*}/bin/npm" ] || [ -L "$prefix${npm%%:*}/bin/npm" ]; then
      # The last of two counts, so that it has to hold what the first said.
      base_of "${npm#*:}"
      own_list=$(sed -n 's/^[[:space:]]*noproxy[[:space:]]*=//p' "$work/base" | tail -n 1)
      edit "${npm#*:}" ';' '' "npm's proxy and roots" 'proxy|https-proxy|cafile' <<TOOL
proxy=$address
https-proxy=$address
noproxy=$(merged "$own_list,$single")
cafile=$bundle
TOOL
    fi
  done
  # Where the first user of that system is at home; its password file says it, whoever runs this.
  home=$(awk -F: '$3 == 0 { print $6; exit }' "$prefix/etc/passwd" 2>/dev/null) || home=''
  home=${home%/}
  for cargo in "${CARGO_HOME:-/usr/local/cargo}" "${home:+$home/.cargo}"; do
    [ -n "$cargo" ] || continue
    if [ -d "$prefix$cargo" ]; then
      config=$cargo/config.toml
      # Where both are there, cargo reads the one with the older name.
      if [ -f "$prefix$cargo/config" ] && [ ! -L "$prefix$cargo/config" ]; then config=$cargo/config; fi
      # A table that is written on one line, or with dots, cannot be gone on with below a header of its own.
      edit "$config" '#' http "cargo's proxy and roots" "proxy|cainfo|[\"']?http[\"']?[[:space:]]*([.][^=]*)?" <<TOOL
proxy = "$address"
cainfo = "$bundle"
TOOL
    fi
  done
  plan_uv
  for conda in /etc/conda /opt/conda /opt/miniconda3 /opt/miniforge3 ${home:+"$home/miniconda3" "$home/miniforge3"}; do
    [ -d "$prefix$conda" ] || continue
    own /etc/conda/condarc.d/larder.yml 0644 "conda's proxy and roots" <<TOOL
# $mark
proxy_servers:
  http: $address
  https: $address
ssl_verify: $bundle
TOOL
    break
  done
  if [ -f "$prefix/etc/wgetrc" ]; then
    edit /etc/wgetrc '#' '' "wget's proxy" 'http_proxy|https_proxy' <<TOOL
use_proxy = on
http_proxy = $address
https_proxy = $address
no_proxy = $single
TOOL
  fi
  if [ -f "$prefix/etc/dnf/dnf.conf" ]; then
    edit /etc/dnf/dnf.conf '#' main "dnf's proxy" proxy <<TOOL
proxy=$address
TOOL
  fi
  if [ -f "$prefix/etc/sysconfig/proxy" ] && [ $family = suse ]; then
    base_of /etc/sysconfig/proxy
    own_list=$(value_in "$work/base" NO_PROXY)
    edit /etc/sysconfig/proxy '#' '' "zypper's proxy" <<TOOL
PROXY_ENABLED="yes"
HTTP_PROXY="$address"
HTTPS_PROXY="$address"
NO_PROXY="$(merged "$own_list,$single")"
TOOL
  fi
}
