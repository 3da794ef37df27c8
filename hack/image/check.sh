#!/usr/bin/env bash
# Checks the images of `make image`: check.sh NAME:TAG. Needs root and buildah.
#
# Each is built once more, from a copy of the sources in another directory, and must have the same digest. Each contains the files that its checks name and nothing else: no shell, no package manager. Its binary runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

name=$1
export CONTAINER_TOOL=buildah
copy=$(mktemp -d)
container=
again=localhost/keyconvoy-again
clean_up() {
  [ -z "$container" ] || buildah rm "$container" >/dev/null
  buildah rmi --force $again >/dev/null 2>&1 || true
  rm -rf "$copy"
}
trap clean_up EXIT

digest() { buildah inspect --type image --format '{{.FromImageDigest}}' "$1"; }

fail() { echo "check.sh: $*" >&2; exit 1; }

git clone --quiet . "$copy/keyconvoy"
tar --create --exclude=./bin --exclude=./dist --exclude=./my --exclude=./.git . | tar --extract --directory "$copy/keyconvoy"

libc=(libc.so.6 libdl.so.2 libm.so.6 libnss_dns.so.2 libnss_files.so.2 libpthread.so.0 libresolv.so.2 librt.so.1 libutil.so.1)
case $(uname -m) in
  x86_64) loader=ld-linux-x86-64.so.2 ;;
  aarch64) loader=ld-linux-aarch64.so.1 ;;
esac

for target in manager hsm client; do
  image=$name
  files=(keyconvoy etc/group etc/nsswitch.conf etc/passwd "lib64/$loader" "lib/$loader" "${libc[@]/#/lib/}")
  case $target in
    hsm) image+=-hsm; files+=(lib/libcrypto.so.3 lib/libgcc_s.so.1 lib/libssl.so.3 lib/libstdc++.so.6) ;;
    client) image+=-client; files=(keyconvoy) ;;
  esac

  "$copy/keyconvoy/hack/image/build.sh" $target $again >/dev/null
  [ "$(digest "$image")" = "$(digest $again)" ] ||
    fail "two builds of $image differ: $(digest "$image") and $(digest $again)"

  container=$(buildah from --pull-never "$image")
  root=$(buildah mount "$container")
  diff <(printf '%s\n' "${files[@]}" | LC_ALL=C sort) <(cd "$root" && find . -not -type d -printf '%P\n' | LC_ALL=C sort) >&2 ||
    fail "$image contains other files than expected (< expected, > in the image)"
  version=$(chroot --userspec=65532:65532 "$root" /keyconvoy --version)
  [[ $version == *"${VERSION:-dev}"* ]] || fail "$image prints the version $version"
  [ "$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "$image")" = 65532:65532 ] || fail "the user of $image is not 65532:65532"
  size=$(du --summarize --apparent-size --bytes "$root" | cut -f1)
  buildah rm "$container" >/dev/null
  container=
  echo "$image: $(digest "$image"), $((size / 1000000)) MB, $version"
done
