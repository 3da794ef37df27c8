#!/usr/bin/env bash
# Makes sure that Debian packages are installed: packages.sh PACKAGE…
# As root on Debian it installs the missing ones. Otherwise it prints the command that installs them.
set -euo pipefail

# A package counts as present if the needed files exist, even if they come from elsewhere.
present() {
  case $1 in
    buildah)   command -v buildah ;;
    ca-certificates) test -e /etc/ssl/certs/ca-certificates.crt ;;
    containernetworking-plugins) test -x /usr/lib/cni/ptp && test -x /usr/lib/cni/host-local ;;
    curl)      command -v curl ;;
    gcc)       command -v gcc ;;
    iproute2)  command -v ip ;;
    libc6-dev) test -e /usr/include/stdlib.h ;;
    libtpm2-pkcs11-1) compgen -G '/usr/lib/*/libtpm2_pkcs11.so.1' ;;
    libtss2-tcti-swtpm0) compgen -G '/usr/lib/*/libtss2-tcti-swtpm.so.0' ;;
    libnss3)   compgen -G '/usr/lib/*/libsoftokn3.so' || compgen -G '/usr/lib/*/nss/libsoftokn3.so' ;;
    libnss3-tools) command -v certutil ;;
    nodejs)    command -v node ;;
    npm)       command -v npm ;;
    opencryptoki) compgen -G '/usr/lib/*/opencryptoki/libopencryptoki.so.0' && test -x /usr/sbin/pkcsslotd && test -x /usr/sbin/pkcsconf ;;
    openssl)   command -v openssl ;;
    p11-kit)   command -v p11-kit && test -x /usr/libexec/p11-kit/p11-kit-server ;;
    p11-kit-modules) compgen -G '/usr/lib/*/pkcs11/p11-kit-client.so' ;;
    runc)      command -v runc ;;
    softhsm2)  test -e /usr/lib/softhsm/libsofthsm2.so && command -v softhsm2-util ;;
    swtpm)     command -v swtpm ;;
    *)         echo "packages.sh: unknown package: $1" >&2; exit 2 ;;
  esac >/dev/null
}

missing=()
for package in "$@"; do
  present "$package" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  {
    echo "Missing: ${missing[*]}. On Debian or Ubuntu, run:"
    echo
    echo "  sudo apt-get update && sudo apt-get install --yes --no-install-recommends ${missing[*]}"
    echo
  } >&2
  exit 1
fi

echo "Installing ${missing[*]} …" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update >&2
apt-get -qq install --yes --no-install-recommends "${missing[@]}" >&2

for package in "${missing[@]}"; do
  if ! present "$package"; then
    echo "$package is installed, but its files are not in the same place as on Debian." >&2
    exit 1
  fi
done

# The tests start their own daemon, and there can be one on a machine.
if [[ " ${missing[*]} " == *" opencryptoki "* ]] && command -v systemctl >/dev/null; then
  systemctl disable --quiet --now pkcsslotd 2>/dev/null || true
fi
