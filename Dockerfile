# Three images, each a target: manager (the default), hsm (with libraries that vendors' libraries often need) and client
# (a static binary for init containers and the CSI driver). Build them with make image.
#
# The base images are Debian: a PKCS#11 module is a shared library that its vendor linked against glibc, and cgo links the
# operator against the same glibc. The digests are those of the manifest lists (all platforms), so that a build uses the
# reviewed content. To update an image, use the digest that docker buildx imagetools inspect NAME:TAG prints.
#
# Nothing here depends on the time or the machine, so two builds of a commit have the same digest.
FROM golang:1.26.4-bookworm@sha256:5d2b868674b57c9e48cdd39e891acce4196b6926ca6d11e9c270a8f85106203d AS source
WORKDIR /src
ENV GOCACHE=/go/build-cache
# The module proxy of the machine, if it has one.
ARG GOPROXY

# The dependencies are a separate layer, which remains cached when only code changes.
COPY go.mod go.sum ./
COPY api/go.mod api/go.sum api/
RUN go mod download

COPY main.go ./
COPY api/ api/
COPY controllers/ controllers/
COPY internal/ internal/

ARG VERSION=dev
ENV GOFLAGS="-trimpath -buildvcs=false" LDFLAGS="-s -w -X github.com/keyconvoy/keyconvoy/internal/cli.version=${VERSION}"

FROM source AS build
RUN CGO_ENABLED=1 go build -ldflags "${LDFLAGS}" -o /out/keyconvoy .

FROM source AS build-client
RUN CGO_ENABLED=0 go build -ldflags "${LDFLAGS}" -o /out/keyconvoy .

FROM debian:bookworm-slim@sha256:96e378d7e6531ac9a15ad505478fcc2e69f371b10f5cdf87857c4b8188404716 AS debian
RUN printf '%s\n' root:x:0:0:root:/root:/usr/sbin/nologin keyconvoy:x:65532:65532:Keyconvoy:/:/usr/sbin/nologin > /passwd && \
    printf '%s\n' root:x:0: keyconvoy:x:65532: > /group && \
    printf '%s\n' 'passwd: files' 'group: files' 'hosts: files dns' > /nsswitch.conf

# The images begin empty and get only what is named here, so they have no shell and no package manager. There are no CA
# certificates, because the operator trusts the certificate authority of its cluster only, and no time zones, because it
# writes UTC.
FROM scratch AS image
ARG VERSION=dev
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="Keyconvoy" \
      org.opencontainers.image.description="Moves keys between HSMs, and to pods, always encrypted" \
      org.opencontainers.image.source="https://github.com/keyconvoy/keyconvoy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# A number, so that the kubelet can verify that it is not root.
USER 65532:65532
ENTRYPOINT ["/keyconvoy"]

# For programs and libraries that need glibc.
FROM image AS runtime
# The path of the dynamic loader is in /lib64 on amd64 and in /lib on arm64. It finds libraries in /lib.
COPY --from=debian /usr/lib/*-linux-gnu/ld-linux-*.so.* /lib64/
# glibc. Libraries that were linked before glibc 2.34 require its former parts by name.
COPY --from=debian \
    /usr/lib/*-linux-gnu/ld-linux-*.so.* \
    /usr/lib/*-linux-gnu/libc.so.6 \
    /usr/lib/*-linux-gnu/libdl.so.2 \
    /usr/lib/*-linux-gnu/libm.so.6 \
    /usr/lib/*-linux-gnu/libnss_dns.so.2 \
    /usr/lib/*-linux-gnu/libnss_files.so.2 \
    /usr/lib/*-linux-gnu/libpthread.so.0 \
    /usr/lib/*-linux-gnu/libresolv.so.2 \
    /usr/lib/*-linux-gnu/librt.so.1 \
    /usr/lib/*-linux-gnu/libutil.so.1 \
    /lib/
COPY --from=debian /passwd /group /nsswitch.conf /etc/
COPY --from=build /out/keyconvoy /keyconvoy

# For fetch in an init container or an image volume, and for the CSI driver, which the DaemonSet runs as root.
FROM image AS client
COPY --from=build-client /out/keyconvoy /keyconvoy
LABEL org.opencontainers.image.title="Keyconvoy client" \
      org.opencontainers.image.description="Fetches data keys into pods"

# No image contains a PKCS#11 module: the software store needs none, and the library of an HSM comes from its vendor. To
# add it, mount a volume: an image, one that an init container fills, or a persistent volume. Then allow the library under
# a name:
#
#   keyconvoy manager --pkcs11-module NAME=/opt/vendor/lib/libpkcs11.so
#
# Many vendors' libraries need more than glibc: the C++ runtime and OpenSSL 3. The first build stage has these.
FROM runtime AS hsm
COPY --from=source \
    /usr/lib/*-linux-gnu/libcrypto.so.3 \
    /usr/lib/*-linux-gnu/libgcc_s.so.1 \
    /usr/lib/*-linux-gnu/libssl.so.3 \
    /usr/lib/*-linux-gnu/libstdc++.so.6 \
    /lib/
CMD ["manager"]

FROM runtime AS manager
CMD ["manager"]
