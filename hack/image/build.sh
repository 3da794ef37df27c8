#!/usr/bin/env bash
# Builds a target of the Dockerfile with docker, podman or buildah: build.sh TARGET NAME [ARCHITECTURE [ARCHIVE]]
#
# TARGET is manager, hsm or client, NAME the name of the image, ARCHITECTURE amd64 or arm64 (that of this machine if
# omitted). ARCHIVE is a file to which the image is written in the format of OCI. From the environment:
#
#   CONTAINER_TOOL   docker, podman or buildah; the first one that works if unset
#   VERSION          the version that keyconvoy --version prints
#   BASE_IMAGES      "standin" builds on the images that hack/image/standin.sh makes, for tests without a registry
#
# All times in the image are that of the commit, so two builds of a commit have the same digest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=$1 name=$2 architecture=${3:-} archive=${4:-}

# works reports whether a tool can build images here: docker is often installed without its daemon.
works() {
  case $1 in
    docker)  docker buildx version && docker info ;;
    podman)  podman info ;;
    buildah) buildah info ;;
    *) return 1 ;;
  esac >/dev/null 2>&1
}

find_tool() {
  local candidate
  for candidate in ${CONTAINER_TOOL:-docker podman buildah}; do
    if works "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  {
    if [ -n "${CONTAINER_TOOL:-}" ]; then
      echo "CONTAINER_TOOL=$CONTAINER_TOOL: it must be docker (with buildx and a running daemon), podman or buildah, and be installed."
    else
      echo "To build an image, install docker (with buildx, and start its daemon), podman or buildah. buildah needs no daemon:"
    fi
    echo
    echo "  sudo apt-get update && sudo apt-get install --yes --no-install-recommends buildah"
    echo
  } >&2
  exit 1
}

native=$(uname -m)
case $native in x86_64) native=amd64 ;; aarch64) native=arm64 ;; esac
architecture=${architecture:-$native}

# runs reports whether this machine can run programs of another architecture, which the build does.
runs() {
  case $architecture in
    "$native") return ;;
    amd64) grep -qs '^enabled' /proc/sys/fs/binfmt_misc/qemu-x86_64 ;;
    arm64) grep -qs '^enabled' /proc/sys/fs/binfmt_misc/qemu-aarch64 ;;
    *) echo "build.sh: unknown architecture: $architecture" >&2; exit 2 ;;
  esac || { [ "$tool" = docker ] && docker buildx inspect | grep -q "linux/$architecture"; }
}

tool=$(find_tool)
if ! runs; then
  echo "The $architecture image is not built: this machine ($native) does not run $architecture programs. Install qemu-user-static and binfmt-support." >&2
  exit 3
fi

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
flags=(
  --file Dockerfile --target "$target" --platform "linux/$architecture"
  --build-arg "VERSION=${VERSION:-dev}" --build-arg "REVISION=$(git rev-parse HEAD)"
  --build-arg "CREATED=$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)"
  --build-arg "GOPROXY=$(go env GOPROXY)"
)

# The stand-ins are local images, under the names that the Dockerfile has.
if [ "${BASE_IMAGES:-}" = standin ]; then
  if [ "$tool" = docker ]; then
    echo "BASE_IMAGES=standin works with buildah and podman only." >&2
    exit 2
  fi
  for base in $(sed -n 's/^FROM \(golang\|debian\)\(:[^ ]*\).*/\1\2/p' Dockerfile); do
    flags+=(--build-context "$base=container-image://localhost/keyconvoy-standin/${base%%@*}")
  done
  flags+=(--pull-never)
fi

# buildah and podman build without cached layers: buildah 1.28 uses a cached LABEL although the value of its ARG has changed.
# Nothing is downloaded or compiled twice, because they use Go's caches of this machine.
buildah_flags=(
  --layers=false --timestamp "$SOURCE_DATE_EPOCH" --identity-label=false --security-opt label=disable
  --volume "$(go env GOMODCACHE):/go/pkg/mod" --volume "$(go env GOCACHE):/go/build-cache"
)

echo "Building the image $name ($target, $architecture) with $tool …" >&2
case $tool in
  docker)
    reproducible=(--provenance=false --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH")
    docker buildx build "${flags[@]}" "${reproducible[@]}" --output "type=docker,name=$name,rewrite-timestamp=true" .
    if [ -n "$archive" ]; then
      docker buildx build "${flags[@]}" "${reproducible[@]}" --output "type=oci,name=$name,dest=$archive,rewrite-timestamp=true" .
    fi
    ;;
  podman)
    podman build "${flags[@]}" "${buildah_flags[@]}" --tag "$name" .
    if [ -n "$archive" ]; then
      podman save --format oci-archive --output "$archive" "$name"
    fi
    ;;
  buildah)
    buildah bud "${flags[@]}" "${buildah_flags[@]}" --isolation chroot --tag "$name" .
    if [ -n "$archive" ]; then
      rm -f "$archive" # otherwise the image would be added
      buildah push "$name" "oci-archive:$archive:$name"
    fi
    ;;
esac
