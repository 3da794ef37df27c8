#!/usr/bin/env bash
# Says whether this machine can run the node of make e2e: exits with 0, or prints the reason and exits with 1.
set -euo pipefail

no() { echo "$1"; exit 1; }

[ "$(uname -s)" = Linux ] || no "It is not Linux."
[ "$(id -u)" -eq 0 ] || no "It needs root."
command -v apt-get >/dev/null || { command -v runc && test -x /usr/lib/cni/ptp; } >/dev/null ||
  no "It has neither apt-get nor runc and the CNI plugins."

# What the node does first: namespaces, and overlays in memory.
unshare --mount --net --pid --ipc --uts --fork bash -euc '
  mount -t tmpfs tmpfs /run
  mkdir /run/upper /run/work
  mount -t overlay -o lowerdir=/var/lib,upperdir=/run/upper,workdir=/run/work overlay /var/lib
' 2>/dev/null || no "Namespaces or mounts are not permitted."

dir=/sys/fs/cgroup
[ -e $dir/cgroup.controllers ] || dir=$dir/memory
cgroup=$dir/keyconvoy-e2e-check
{ mkdir "$cgroup" && rmdir "$cgroup"; } 2>/dev/null || no "Cgroups are not writable in $dir."
