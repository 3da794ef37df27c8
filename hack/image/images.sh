#!/usr/bin/env bash
# Builds all images: images.sh NAME:TAG [DIRECTORY]
#
# They are NAME:TAG, NAME:TAG-hsm and NAME:TAG-client for this machine's architecture, and the same with -amd64 or -arm64
# for the other one, if this machine can build it. If DIRECTORY is given, it gets an archive of each image.
# hack/image/build.sh says which variables it uses.
set -euo pipefail

name=$1 directory=${2:-}
build=$(dirname "${BASH_SOURCE[0]}")/build.sh
case $(uname -m) in
  x86_64) architectures=(amd64 arm64) ;;
  aarch64) architectures=(arm64 amd64) ;;
  *) echo "Images are for amd64 and arm64, and this machine is $(uname -m)." >&2; exit 1 ;;
esac

for architecture in "${architectures[@]}"; do
  for target in manager hsm client; do
    image=$name archive=${directory:+$directory/keyconvoy-image}
    if [ $target != manager ]; then
      image+=-$target archive+=${directory:+-$target}
    fi
    if [ "$architecture" != "${architectures[0]}" ]; then
      image+=-$architecture
    fi
    code=0
    "$build" $target "$image" "$architecture" ${directory:+"$archive-linux-$architecture.tar"} || code=$?
    if [ $code -eq 3 ]; then # which has been said
      break
    elif [ $code -ne 0 ]; then
      exit $code
    fi
  done
done
