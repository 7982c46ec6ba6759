# shellcheck shell=bash disable=SC2154 # sourced by scripts/package, whose variables it reads
# The OCI image, from nothing: the program, what it needs of a C library, the public roots, a user, and /data. Like Containerfile's,
# without a shell. Buildah keeps it in a store of this script's own.

images=$work/images
in_images() { TMPDIR=$work buildah --root "$images" --runroot "$work/images-run" --storage-driver vfs "$@"; }

leave_images() {
  [ -d "$images" ] || return 0
  in_images rm --all >/dev/null 2>&1 || true
  in_images umount --all >/dev/null 2>&1 || true
  umount "$images" 2>/dev/null || true
}

make_image() {
  local container tree file
  system contents
  tree=$work/image
  mkdir -p "$tree/usr/local/bin" "$tree/etc/ssl/certs" "$tree/usr/share/doc" "$tree/data" "$tree/tmp"
  chmod 1777 "$tree/tmp"
  cp "$work/larder" "$tree/usr/local/bin/"
  cp "$root/etc/ssl/certs/ca-certificates.crt" "$tree/etc/ssl/certs/"
  printf 'larder:x:65532:65532::/data:/usr/sbin/nologin\n' >"$tree/etc/passwd"
  printf 'larder:x:65532:\n' >"$tree/etc/group"
  printf 'hosts: files dns\n' >"$tree/etc/nsswitch.conf"
  cp "${licences[@]}" "$tree/usr/share/doc/"
  cp "$root/usr/share/doc/ca-certificates/copyright" "$tree/usr/share/doc/ca-certificates"
  if [ -n "$libc" ]; then
    # The clean system's libraries, not this machine's, with their licences.
    cp "$work/larder" "$root/tmp/larder"
    inside ldd /tmp/larder | grep -o '/[^ ]*' | sort -u | while read -r file; do
      install -D -m 0755 "$(readlink -f "$root$file" | sed "s,^/lib,$root/lib,")" "$tree$file"
    done
    for file in libc6 libgcc-s1; do
      [ ! -f "$root/usr/share/doc/$file/copyright" ] || cp "$root/usr/share/doc/$file/copyright" "$tree/usr/share/doc/$file"
    done
  fi
  container=$(in_images from scratch)
  chown 65532:65532 "$tree/data"
  cp -a "$tree/." "$(in_images mount "$container")/"
  in_images umount "$container" >/dev/null
  in_images config --user 65532:65532 --env LARDER_DATA=/data --env 'LARDER_LISTEN=[::]:3142' --env HOME=/data --volume /data --port 3142 \
    --entrypoint '["larder"]' --cmd serve --stop-signal SIGTERM --workingdir /data --env PATH=/usr/local/bin \
    --label org.opencontainers.image.title=larder --label "org.opencontainers.image.version=$version" \
    --label 'org.opencontainers.image.licenses=MIT OR Apache-2.0' "$container"
  in_images commit -q --format oci --timestamp "${SOURCE_DATE_EPOCH:-0}" "$container" larder >/dev/null
  in_images rm "$container" >/dev/null
  oci=$out/larder-$version-$machine.oci.tar
  in_images push -q larder "oci-archive:$oci:larder:$version" >"$work/log" 2>&1 || fail 'buildah push'
  gzip -n9 "$oci"
  oci=$oci.gz
  say "$(basename "$oci"), $(du -h "$oci" | cut -f 1)"
}

# Out of its archive, in a store that has nothing else.
try_image() {
  local container
  in_images rmi --all --force >/dev/null
  container=$(in_images from "oci-archive:$oci") || fail 'the archive is not read'
  [ "$(in_images run --isolation chroot "$container" -- larder version)" = "larder $version ($machine-linux)" ] || fail 'another version'
  ! in_images run --isolation chroot "$container" -- sh -c true >/dev/null 2>&1 || fail 'the control: there is a shell'
  [ "$(in_images inspect --format '{{.OCIv1.Config.User}} {{.OCIv1.Config.Cmd}}' "$container")" = '65532:65532 [serve]' ] || fail 'its configuration'
  # As an engine would: as its user, in a network of its own. Its port is for the container's network.
  unshare --net --kill-child -- bash -c "ip link set lo up && TMPDIR=$work exec buildah --root $images --runroot $work/images-run \
    --storage-driver vfs run --isolation chroot $container -- larder serve --listen 127.0.0.1:3142" >"$work/log" 2>&1 &
  daemon=$!
  awaited
  # Buildah has processes between.
  larder=$(pgrep --ns "$daemon" --nslist net -x larder) || fail 'its process is not found'
  [ "$(stat -c %u "/proc/$larder")" = 65532 ] || fail 'it does not run as its user'
  nsenter --net="/proc/$larder/ns/net" curl -fsS --noproxy '*' http://127.0.0.1:3142/-/ready >/dev/null || fail 'it is not ready'
  kill -TERM "$larder"
  wait "$daemon" || fail 'it did not end in order'
  daemon=''
  say "run as 65532, without a shell, served, ended in order"
}
