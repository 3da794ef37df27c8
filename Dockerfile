# Both images are Debian: a PKCS#11 module is a shared library that its vendor linked against glibc, and cgo links the
# operator against the same glibc. The digests of the images are those of the manifest lists (all platforms), so that a
# build uses the reviewed content. To update an image, use the digest that docker buildx imagetools inspect NAME:TAG
# prints.
FROM golang:1.26.4-bookworm@sha256:5d2b868674b57c9e48cdd39e891acce4196b6926ca6d11e9c270a8f85106203d AS build
WORKDIR /src

# The dependencies are a separate layer, which remains cached when only code changes.
COPY go.mod go.sum ./
COPY api/go.mod api/go.sum api/
RUN go mod download

COPY main.go ./
COPY api/ api/
COPY controllers/ controllers/
COPY internal/ internal/

ARG VERSION=dev
RUN CGO_ENABLED=1 go build -trimpath \
    -ldflags "-s -w -X github.com/keyconvoy/keyconvoy/internal/cli.version=${VERSION}" \
    -o /keyconvoy .

# The image contains no PKCS#11 module: the software store needs none, and the library of an HSM comes from its vendor. To
# add it, together with the libraries that it needs in addition to libc, mount a volume: one that an init container fills
# from the vendor's image, or a directory of the node. Then allow the library under a name:
#
#   keyconvoy manager --pkcs11-module NAME=/opt/vendor/lib/libpkcs11.so
FROM debian:bookworm-slim@sha256:96e378d7e6531ac9a15ad505478fcc2e69f371b10f5cdf87857c4b8188404716
COPY --from=build /keyconvoy /keyconvoy
# A number, so that the kubelet can verify that it is not root.
USER 65532:65532
ENTRYPOINT ["/keyconvoy"]
CMD ["manager"]
