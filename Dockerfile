# Debian on both sides: a PKCS#11 module is a shared library that its vendor linked against glibc,
# and cgo links us against the same one.
FROM golang:1.26-bookworm AS build
WORKDIR /src

# The dependencies are a layer of their own, which a change of the code leaves alone.
COPY go.mod go.sum ./
RUN go mod download

COPY main.go ./
COPY api/ api/
COPY controllers/ controllers/
COPY internal/ internal/

ARG VERSION=dev
RUN CGO_ENABLED=1 go build -trimpath \
    -ldflags "-s -w -X github.com/keyconvoy/keyconvoy/internal/cli.version=${VERSION}" \
    -o /keyconvoy .

# No module is inside, not even SoftHSM: the software store needs none, and an HSM's library comes
# from its vendor. Bring it in by a volume (that an init container fills from the vendor's image, or
# that is a directory of the node), together with the libraries that it needs beyond libc, and allow
# it by a name:
#
#   keyconvoy manager --pkcs11-module NAME=/opt/vendor/lib/libpkcs11.so
FROM debian:bookworm-slim
COPY --from=build /keyconvoy /keyconvoy
# By number, so that the kubelet can see that it is not root.
USER 65532:65532
ENTRYPOINT ["/keyconvoy"]
CMD ["manager"]
