#!/usr/bin/env bash
# Moves a key from the cryptographic module of one cluster to that of another, and compares the keys in both: cluster A
# has a token of SoftHSM, cluster B a database of NSS. It shows each command as a user would type it, and then runs it.
# `make demo-two-clusters` builds what it needs and runs it.
#
# At the end it stops its control planes and operators, and deletes its tokens and files.
set -euo pipefail
umask 077

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export KUBEBUILDER_ASSETS=${KUBEBUILDER_ASSETS:-$root/bin/controlplane}
keyconvoy=${KEYCONVOY:-$root/bin/keyconvoy}
launcher=${CONTROLPLANE_LAUNCHER:-$root/bin/tools/controlplane}
softhsm_library=${SOFTHSM2_LIBRARY:-/usr/lib/softhsm/libsofthsm2.so}
nss_library=${NSS_LIBRARY:-$(compgen -G '/usr/lib/*/libsoftokn3.so' || compgen -G '/usr/lib/*/nss/libsoftokn3.so' || true)}
nss_library=${nss_library%%$'\n'*}

for file in "$keyconvoy" "$launcher" "$KUBEBUILDER_ASSETS/kubectl"; do
  [ -x "$file" ] || { echo "$file is missing; make demo-two-clusters builds it." >&2; exit 2; }
done
for file in "$softhsm_library" "$nss_library"; do
  [ -e "$file" ] || { echo "A PKCS#11 library is missing: install softhsm2 and libnss3." >&2; exit 2; }
done
for tool in softhsm2-util certutil; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: install softhsm2 and libnss3-tools." >&2; exit 2; }
done

# Output.

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi

chapter() { printf '\n%s== %s ==%s\n' "$bold" "$*" "$plain"; }
say()     { printf '%s# %s%s\n' "$dim" "$*" "$plain"; }

# run prints a command and runs it in this shell, so that its variables remain set. If the command fails, the demo ends.
run() {
  printf '\n%s$ %s%s\n' "$bold" "$1" "$plain"
  eval "$1" || { echo "This command failed: $1" >&2; exit 1; }
}

# Start and end.

work=$(mktemp -d)
desk=$work/desk
declare -A operators=()

leave() {
  local code=$? cluster
  trap - EXIT INT TERM
  if [ "$code" -ne 0 ]; then
    printf '\nThe demo failed (exit code %s).\n' "$code" >&2
    for cluster in a b; do
      [ ! -s "$desk/operator-$cluster.log" ] || {
        echo "The end of the log of $cluster's operator:" >&2
        tail -n 15 "$desk/operator-$cluster.log" >&2
      }
    done
  fi
  echo
  say "Cleaning up: the operators, the control planes, the tokens, all files …"
  cd /
  for cluster in "${!operators[@]}"; do
    # Until it has ended, because a new process that has not become the operator yet can lose a signal.
    while kill "${operators[$cluster]}" 2>/dev/null; do sleep 1; done
    wait "${operators[$cluster]}" 2>/dev/null || true
  done
  for cluster in a b; do
    "$launcher" down --kubeconfig "$work/$cluster.kubeconfig" || true
  done
  rm -rf "$work"
  exit "$code"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

ka() { kubectl --kubeconfig "$work/a.kubeconfig" "$@"; }
kb() { kubectl --kubeconfig "$work/b.kubeconfig" "$@"; }

# The steps.

start_clusters() {
  chapter "Two clusters"
  say "Starting two control planes for the demo (kube-apiserver and etcd, no nodes) …"
  local cluster
  for cluster in a b; do
    "$launcher" up --kubeconfig "$work/$cluster.kubeconfig" >/dev/null
  done
  mkdir -p "$desk" "$work/bin"
  ln -s "$keyconvoy" "$work/bin/keyconvoy"
  ln -s "$root/config" "$desk/config"
  export PATH="$work/bin:$KUBEBUILDER_ASSETS:$PATH"
  cd "$desk"
  say "ka is kubectl for cluster A, kb for cluster B."
  for cluster in a b; do
    run "k$cluster apply -k config/default >/dev/null"
    run "k$cluster wait --for=condition=Established crd --all --timeout=60s >/dev/null"
    run "k$cluster apply -f config/samples/namespace.yaml"
  done
}

make_tokens() {
  chapter "A module for each"
  say "Cluster A has a token of SoftHSM."
  mkdir "$work/tokens"
  printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/tokens" >"$work/softhsm2.conf"
  export SOFTHSM2_CONF=$work/softhsm2.conf
  run 'openssl rand -hex 8 | tr -d "\n" > pin-a'
  run 'softhsm2-util --init-token --free --label keyconvoy --pin "$(cat pin-a)" --so-pin "$(openssl rand -hex 8)"'
  run 'ka create secret generic pin -n keyconvoy-system --from-file=pin=pin-a'
  say "Cluster B has a database of NSS, another implementation."
  run 'openssl rand -hex 8 | tr -d "\n" > pin-b'
  run 'mkdir nss && certutil -N -d sql:nss -f pin-b'
  run 'kb create secret generic pin -n keyconvoy-system --from-file=pin=pin-b'
}

# operator_kubeconfig writes a kubeconfig with a ServiceAccount's token instead of the administrator's certificate.
operator_kubeconfig() {
  local to=operator-$1.kubeconfig user
  user=$("k$1" config view -o jsonpath='{.users[0].name}')
  cp "$work/$1.kubeconfig" "$to"
  {
    kubectl config unset "users.$user" --kubeconfig "$to"
    kubectl config set-credentials "$user" --kubeconfig "$to" \
      --token="$("k$1" create token keyconvoy-controller-manager -n keyconvoy-system)"
  } >/dev/null
}

# start_operators runs the built binary once for each cluster, like the Deployment there.
start_operators() {
  chapter "An operator for each"
  say "The clusters have no nodes for the Deployments' pods. Therefore each operator runs as a process here, with the"
  say "permissions of its Deployment's ServiceAccount, and with access to its own module only."
  operator_kubeconfig a
  operator_kubeconfig b
  export POD_NAMESPACE=keyconvoy-system
  run "keyconvoy manager --kubeconfig operator-a.kubeconfig --metrics-bind-address=0 --health-probe-bind-address=0 \\
    --pkcs11-module hsm=$softhsm_library \\
    --pkcs11-allow-path hsm=\$work/softhsm2.conf --pkcs11-allow-path hsm=\$work/tokens:rw > operator-a.log 2>&1 &"
  operators[a]=$!
  run "keyconvoy manager --kubeconfig operator-b.kubeconfig --metrics-bind-address=0 --health-probe-bind-address=0 \\
    --pkcs11-module hsm=$nss_library --pkcs11-allow-path hsm=\$PWD/nss:rw \\
    --pkcs11-parameters \"hsm=configdir='sql:\$PWD/nss' certPrefix='' keyPrefix='' secmod='secmod.db' flags=\" > operator-b.log 2>&1 &"
  operators[b]=$!
}

make_key_stores() {
  chapter "Key stores that allow no plaintext outside of their module"
  local cluster label
  for cluster in a b; do
    label=keyconvoy
    [ "$cluster" = a ] || label='NSS Certificate DB'
    run "k$cluster apply -f - <<EOF
apiVersion: keyconvoy.io/v1alpha1
kind: ClusterKeyStore
metadata: {name: main}
spec:
  type: PKCS11
  pkcs11:
    module: hsm
    token: {label: $label}
    pinSecretRef: {name: pin, key: pin}
  custody: ModuleOnly
EOF"
  done
  say "Waiting for the self-tests of the modules …"
  for cluster in a b; do
    run "k$cluster wait clusterkeystore/main --for=condition=Ready --timeout=120s"
  done
  run "ka get clusterkeystore main -o jsonpath='{.status.module}{\"\\n\"}'"
  run "kb get clusterkeystore main -o jsonpath='{.status.module}{\"\\n\"}'"
}

# imported_key applies an ImportedKey and waits for its public key.
imported_key() { # CLUSTER NAME
  run "k$1 apply -n team-a -f - <<EOF
apiVersion: keyconvoy.io/v1alpha1
kind: ImportedKey
metadata: {name: $2}
spec:
  keyStoreRef: {kind: ClusterKeyStore, name: main}
  keySpec: AES_256
  importParameters: {wrappingKeySpec: RSA_2048, wrappingAlgorithm: RSAES_OAEP_SHA_1}
EOF"
  run "k$1 wait importedkey/$2 -n team-a --for=jsonpath='{.status.importParameters.publicKey}' --timeout=120s"
}

make_key_in_a() {
  chapter "Cluster A generates a key, without showing it"
  say "You import its master key, as in make demo:"
  imported_key a master
  run 'openssl rand -out master.bin 32'
  run 'keyconvoy wrap --kubeconfig ../a.kubeconfig --key master -n team-a --in master.bin --apply'
  run 'ka wait importedkey/master -n team-a --for=condition=Ready --timeout=120s'
  say "A's module generates the key that will be moved:"
  run 'ka apply -n team-a -f - <<EOF
apiVersion: keyconvoy.io/v1alpha1
kind: DataKey
metadata: {name: traveller}
spec:
  keyRef: {kind: ImportedKey, name: master}
  keySpec: AES_256
EOF'
  run 'ka wait datakey/traveller -n team-a --for=condition=Ready --timeout=120s'
}

# export_data_key exports the data key traveller to a public key or to an ImportedKey.
export_data_key() { # NAME PUBLICKEY
  run "ka apply -n team-a -f - <<EOF
apiVersion: keyconvoy.io/v1alpha1
kind: ExportedDataKey
metadata: {name: $1}
spec:
  dataKeyRef: {name: traveller}
  publicKey: {$2}
  wrappingKeySpec: RSA_2048
  wrappingAlgorithm: RSAES_OAEP_SHA_1
EOF"
  run "ka wait exporteddatakey/$1 -n team-a --for=condition=Ready --timeout=120s"
}

# import_export sets the material of an ImportedKey to what A exported.
import_export() { # CLUSTER KEY EXPORT
  run "MATERIAL=\$(ka get secret $3 -n team-a -o jsonpath='{.data.exportedDataKey}')"
  run "TOKEN=\$(k$1 get importedkey $2 -n team-a -o jsonpath='{.status.importParameters.importToken}')"
  run "k$1 patch importedkey $2 -n team-a --type merge \\
    -p \"{\\\"spec\\\":{\\\"material\\\":{\\\"encryptedKeyMaterial\\\":\\\"\$MATERIAL\\\",\\\"importToken\\\":\\\"\$TOKEN\\\"}}}\""
  run "k$1 wait importedkey/$2 -n team-a --for=condition=Ready --timeout=120s"
}

travel() {
  chapter "Move it from module to module"
  say "B creates an ImportedKey, and its module publishes a public key:"
  imported_key b arriving
  run "RECIPIENT=\$(kb get importedkey arriving -n team-a -o jsonpath='{.status.importParameters.publicKey}')"
  say "A's module encrypts the data key under it. Only the result leaves the cluster:"
  export_data_key to-b 'type: Blob, blob: $RECIPIENT'
  run 'ka get exporteddatakey -n team-a'
  say "In B the result is the wrapped material, unchanged. B's module decrypts it inside itself:"
  import_export b arriving to-b
  run 'kb get importedkey -n team-a -o wide'
}

compare() {
  chapter "Both modules have the same key"
  say "A module reveals the fingerprint of a master key, but not the key. To compare, A imports the data key as a master key:"
  imported_key a twin
  export_data_key to-twin 'type: ImportedKeyRef, importedKeyRef: {name: twin}'
  import_export a twin to-twin
  run "ka get importedkey twin -n team-a -o jsonpath='{.status.materialFingerprint}{\"\\n\"}' | tee fingerprint-a"
  run "kb get importedkey arriving -n team-a -o jsonpath='{.status.materialFingerprint}{\"\\n\"}' | tee fingerprint-b"
  run 'cmp fingerprint-a fingerprint-b'
  [ "$(wc -c <fingerprint-a)" -eq 33 ] || { echo "This is not a fingerprint." >&2; exit 1; }
  say "They are equal. Where did plaintext exist?"
  run 'ka get datakey,exporteddatakey,importedkey -n team-a -o custom-columns=KIND:.kind,NAME:.metadata.name,CUSTODY:.status.custody'
  run 'kb get importedkey -n team-a -o custom-columns=KIND:.kind,NAME:.metadata.name,CUSTODY:.status.custody'
  say "Module: only inside the two cryptographic modules."
}

start_clusters
make_tokens
start_operators
make_key_stores
make_key_in_a
travel
compare
