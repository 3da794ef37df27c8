#!/usr/bin/env bash
# Writes what a release consists of to dist/. `make release` builds the tools and runs it. From the environment:
#
#   VERSION         such as v1.2.0
#   IMG             the name under which the image will be published, which install.yaml and the chart use
#   TOOLS           the directory with kustomize, helm and cyclonedx-gomod
#   CONTAINER_TOOL  and others: see hack/image/build.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

dist=$PWD/dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
epoch=$(git log -1 --format=%ct)
rm -rf "$dist" && mkdir "$dist"

# First, because it fails where no tool can build images.
hack/image/images.sh "$IMG" "$dist"
if [ "${BASE_IMAGES:-}" = standin ]; then
  echo "Do not publish dist/: its images are built on stand-ins." >&2
fi

# replace FILE FROM TO replaces a line that must be there once.
replace() {
  if [ "$(grep --count --line-regexp --fixed-strings -- "$2" "$1")" != 1 ]; then
    echo "release.sh: $1 must have the line \"$2\" once." >&2
    exit 1
  fi
  FROM=$2 TO=$3 awk '$0 == ENVIRON["FROM"] { $0 = ENVIRON["TO"] } { print }' "$1" > "$work/replaced"
  cat "$work/replaced" > "$1"
}

echo "Writing install.yaml and the chart …" >&2
"$TOOLS/kustomize" build config/default > "$dist/install.yaml"
replace "$dist/install.yaml" "        image: keyconvoy:latest" "        image: $IMG"

# A chart must have a semantic version, which a commit without a tag has not.
chart_version=${VERSION#v}
if [[ ! $chart_version =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]]; then
  chart_version=0.0.0-g$VERSION
fi
cp -R config/chart "$work/chart"
replace "$work/chart/values.yaml" "  repository: keyconvoy" "  repository: ${IMG%:*}"
replace "$work/chart/Chart.yaml" "appVersion: latest" "appVersion: ${IMG##*:}"
"$TOOLS/helm" package "$work/chart" --version "$chart_version" --destination "$work" >&2
mv "$work/keyconvoy-$chart_version.tgz" "$dist/keyconvoy-chart.tgz"

for platform in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do
  echo "Building the command line for $platform …" >&2
  rm -rf "$work/cli" && mkdir "$work/cli"
  binary=keyconvoy
  if [[ $platform == windows/* ]]; then
    binary=keyconvoy.exe
  fi
  CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=${platform#*/} go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X github.com/keyconvoy/keyconvoy/internal/cli.version=$VERSION" -o "$work/cli/$binary" .
  cp LICENSE "$work/cli"
  tar --create --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --directory "$work/cli" "$binary" LICENSE |
    gzip --no-name > "$dist/keyconvoy-${platform/\//-}.tar.gz"
done

# Of the operator. In a clone, because the tool reads the version from git, and does not know worktrees.
echo "Writing the SBOM …" >&2
git clone --quiet . "$work/source"
"$TOOLS/cyclonedx-gomod" app -json -licenses -std -noserial -notimestamp -output "$dist/keyconvoy.cdx.json" "$work/source"

(cd "$dist" && sha256sum -- * > "$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
ls -l "$dist" >&2
