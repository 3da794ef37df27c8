#!/usr/bin/env bash
# Makes local images that stand in for the base images of the Dockerfile, for tests on machines that reach no registry.
#
# They consist of Debian packages, which apt-get gets from where this machine gets its own, and of this machine's Go. Their
# content is not that of the images that the Dockerfile names by digest: do not publish an image that was built on them.
# Images built with the same stand-ins are still the same, byte for byte.
#
#   hack/image/standin.sh && make image BASE_IMAGES=standin
#
# Needs root on Debian, and installs buildah if it is missing. It does nothing if the images exist.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

hack/packages.sh buildah ca-certificates

base() { sed -n "s/^FROM \($1:[^@ ]*\).*/\1/p" Dockerfile; }
debian=localhost/keyconvoy-standin/$(base debian)
golang=localhost/keyconvoy-standin/$(base golang)

if buildah inspect --type image "$debian" >/dev/null 2>&1 && buildah inspect --type image "$golang" >/dev/null 2>&1; then
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# unpack DIRECTORY PACKAGE… unpacks the packages and all that they depend on. apt-get believes that nothing is installed.
unpack() {
  local root=$1; shift
  mkdir -p "$work/apt/archives/partial" "$root"/usr/{bin,sbin,lib,lib64} "$root"/{etc,root,tmp}
  local directory
  for directory in bin sbin lib lib64; do
    ln -s "usr/$directory" "$root/$directory"
  done
  : > "$work/apt/status"
  apt-get -qq -o Dir::State::status="$work/apt/status" -o Dir::Cache::archives="$work/apt/archives" -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root -o APT::Keep-Downloaded-Packages=true \
    install --download-only --yes --no-install-recommends "$@" >&2
  local package
  for package in "$work"/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
  done
}

# commit NAME ENV… makes an image of the working container.
commit() {
  local name=$1; shift
  local setting settings=()
  for setting in "$@"; do
    settings+=(--env "$setting")
  done
  buildah config "${settings[@]}" "$container"
  buildah commit --quiet --rm "$container" "$name" >&2
}

echo "Making stand-ins for the base images …" >&2
apt-get -qq update >&2
unpack "$work/debian" dash coreutils libc6
container=$(buildah from scratch)
buildah copy --quiet "$container" "$work/debian" / >&2
commit "$debian" PATH=/usr/sbin:/usr/bin

unpack "$work/golang" dash coreutils gcc libc6-dev libssl3 libstdc++6
container=$(buildah from scratch)
buildah copy --quiet "$container" "$work/golang" / >&2
buildah copy --quiet "$container" "$(go env GOROOT)" /usr/local/go >&2
buildah copy --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >&2
commit "$golang" PATH=/usr/local/go/bin:/usr/sbin:/usr/bin HOME=/root GOPATH=/go GOTOOLCHAIN=local

echo "Made $debian and $golang." >&2
