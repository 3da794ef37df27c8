#!/usr/bin/env bash
# Imports a key from openssl into Keyconvoy, exports a data key to two recipients, and compares their copies. Then it moves the
# data key under a key that the module generates, and rotates that one. It shows each command as a user would type it, and then
# runs it. `make demo` builds what it needs and runs it.
#
#   DEMO_STORE=software   the embedded key store (the default)
#   DEMO_STORE=softhsm    a token of SoftHSM
#
# At the end it stops its control plane and its operator, and deletes its files.
set -euo pipefail
umask 077

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
store=${DEMO_STORE:-software}
export KUBEBUILDER_ASSETS=${KUBEBUILDER_ASSETS:-$root/bin/controlplane}
keyconvoy=${KEYCONVOY:-$root/bin/keyconvoy}
launcher=${CONTROLPLANE_LAUNCHER:-$root/bin/tools/controlplane}
softhsm_library=${SOFTHSM2_LIBRARY:-/usr/lib/softhsm/libsofthsm2.so}

case $store in
  software | softhsm) ;;
  *) echo "DEMO_STORE is software or softhsm, not \"$store\"." >&2; exit 2 ;;
esac
for file in "$keyconvoy" "$launcher" "$KUBEBUILDER_ASSETS/kubectl"; do
  [ -x "$file" ] || { echo "$file is missing; make demo builds it." >&2; exit 2; }
done

# Output.

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi

chapter() { printf '\n%s== %s ==%s\n' "$bold" "$*" "$plain"; }
say()     { printf '%s# %s%s\n' "$dim" "$*" "$plain"; }

# run prints a command and runs it in this shell, so that its variables remain set. If the command fails, the demo ends,
# also for a command that begins with "!", which set -e ignores.
run() {
  printf '\n%s$ %s%s\n' "$bold" "$1" "$plain"
  eval "$1" || { echo "This command failed: $1" >&2; exit 1; }
}

# Start and end.

work=$(mktemp -d)
desk=$work/desk
operator_pid=
operator_log=$desk/operator.log

stop_operator() {
  [ -n "$operator_pid" ] || return 0
  # Until it has ended, because a new process that has not become the operator yet can lose a signal.
  while kill "$operator_pid" 2>/dev/null; do sleep 1; done
  wait "$operator_pid" 2>/dev/null || true
  operator_pid=
}

leave() {
  local code=$?
  trap - EXIT INT TERM
  if [ "$code" -ne 0 ]; then
    printf '\nThe demo failed (exit code %s).\n' "$code" >&2
    [ ! -s "$operator_log" ] || { echo "The end of the operator's log:" >&2; tail -n 15 "$operator_log" >&2; }
  fi
  echo
  say "Cleaning up: the operator, the control plane, all files …"
  cd /
  stop_operator
  "$launcher" down --kubeconfig "$work/kubeconfig" || true
  rm -rf "$work"
  exit "$code"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The steps.

start_control_plane() {
  chapter "A cluster"
  say "Starting a control plane for the demo (kube-apiserver and etcd, no nodes) …"
  "$launcher" up --kubeconfig "$work/kubeconfig" >/dev/null
  mkdir -p "$desk" "$work/bin"
  ln -s "$keyconvoy" "$work/bin/keyconvoy"
  ln -s "$root/config" "$desk/config"
  export PATH="$work/bin:$KUBEBUILDER_ASSETS:$PATH" KUBECONFIG="$work/kubeconfig"
  cd "$desk"
  run 'kubectl version'
}

install() {
  chapter "Install Keyconvoy"
  run 'kubectl apply -k config/default'
  run 'kubectl wait --for=condition=Established crd --all --timeout=60s >/dev/null'
}

# make_token creates a SoftHSM token, and a Secret with its PIN.
make_token() {
  chapter "A SoftHSM token"
  mkdir "$work/tokens"
  printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/tokens" >"$work/softhsm2.conf"
  export SOFTHSM2_CONF=$work/softhsm2.conf
  run 'openssl rand -hex 8 | tr -d "\n" > pin'
  run 'softhsm2-util --init-token --free --label keyconvoy --pin "$(cat pin)" --so-pin "$(openssl rand -hex 8)"'
  run 'kubectl create secret generic softhsm-pin -n keyconvoy-system --from-file=pin'
}

# operator_kubeconfig writes a kubeconfig with the token instead of the administrator's certificate.
operator_kubeconfig() {
  local user
  user=$(kubectl config view -o jsonpath='{.users[0].name}')
  cp "$KUBECONFIG" operator.kubeconfig
  {
    kubectl config unset "users.$user" --kubeconfig operator.kubeconfig
    kubectl config set-credentials "$user" --token="$(cat token)" --kubeconfig operator.kubeconfig
  } >/dev/null
}

# start_operator runs the built binary with the permissions of the Deployment's ServiceAccount only.
start_operator() {
  chapter "The operator"
  say "This cluster has no node for the Deployment's pod. Therefore the operator runs as a process here, with the"
  say "permissions of the Deployment's ServiceAccount."
  run 'kubectl create token keyconvoy-controller-manager -n keyconvoy-system > token'
  operator_kubeconfig
  run 'kubectl --kubeconfig operator.kubeconfig auth whoami -o jsonpath="{.status.userInfo.username}" && echo'
  local flags='--metrics-bind-address=0 --health-probe-bind-address=0'
  [ "$store" = software ] || flags="--pkcs11-module softhsm=$softhsm_library \
    --pkcs11-allow-path softhsm=\$work/softhsm2.conf --pkcs11-allow-path softhsm=\$work/tokens:rw $flags"
  export POD_NAMESPACE=keyconvoy-system
  run "keyconvoy manager --kubeconfig operator.kubeconfig $flags > operator.log 2>&1 &"
  operator_pid=$!
}

make_key_store() {
  chapter "A key store"
  run 'kubectl apply -f config/samples/namespace.yaml'
  if [ "$store" = software ]; then
    run 'kubectl apply -f config/samples/clusterkeystore_software.yaml'
  else
    run 'kubectl apply -f config/samples/clusterkeystore_pkcs11.yaml'
  fi
  say "Waiting for the operator's self-test of the module …"
  run 'kubectl wait clusterkeystore/main --for=condition=Ready --timeout=120s'
  run 'kubectl get clusterkeystore main -o wide'
  say "What the module can do, as the self-test found, and where plaintext exists during it:"
  run 'kubectl get clusterkeystore main -o go-template='\''{{range .status.capabilities}}{{printf "%-18s %-20s %s\n" .operation .algorithm .custody}}{{end}}'\'
}

import_key() {
  chapter "Bring your own key"
  run 'kubectl apply -f config/samples/importedkey.yaml'
  say "Waiting for a public key to wrap the material under …"
  run "kubectl wait importedkey/payments -n team-a --for=jsonpath='{.status.importParameters.publicKey}' --timeout=120s"
  run 'kubectl get importedkey -n team-a'

  say "You generate and wrap the material outside of the cluster, here with openssl."
  run 'openssl rand -out material.bin 32'
  run "kubectl get importedkey payments -n team-a -o jsonpath='{.status.importParameters.publicKey}' | base64 -d > import.der"
  run "TOKEN=\$(kubectl get importedkey payments -n team-a -o jsonpath='{.status.importParameters.importToken}')"
  run 'openssl pkeyutl -encrypt -pubin -keyform DER -inkey import.der -in material.bin -out material.wrapped \
    -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256'
  run 'kubectl patch importedkey payments -n team-a --type merge \
    -p "{\"spec\":{\"material\":{\"encryptedKeyMaterial\":\"$(base64 -w0 material.wrapped)\",\"importToken\":\"$TOKEN\"}}}"'
  say "Waiting for the module to unwrap it …"
  run 'kubectl wait importedkey/payments -n team-a --for=condition=Ready --timeout=120s'
  run 'kubectl get importedkey -n team-a -o wide'
}

make_data_key() {
  chapter "Generate a data key under it, without showing it"
  run 'kubectl apply -f config/samples/datakey.yaml'
  run 'kubectl wait datakey/ledger -n team-a --for=condition=Ready --timeout=120s'
  run 'kubectl get datakey -n team-a'
}

export_data_key() {
  chapter "Export it to two recipients"
  say "Each recipient generates a key pair and publishes the public key."
  run 'openssl genrsa -out rsa.key 2048'
  run 'openssl genpkey -algorithm SM2 -out sm2.key'
  run 'openssl pkey -in rsa.key -pubout -out rsa.pem && openssl pkey -in sm2.key -pubout -out sm2.pem'
  run 'kubectl create configmap recipients -n team-a --from-file=rsa.pem --from-file=sm2.pem'
  run 'kubectl apply -f config/samples/exporteddatakey_rsa.yaml -f config/samples/exporteddatakey_sm2.yaml'
  run 'kubectl wait exporteddatakey --all -n team-a --for=condition=Ready --timeout=120s'
  run 'kubectl get exporteddatakey -n team-a'
  run 'kubectl get secret -n team-a'
}

unwrap_and_compare() {
  chapter "Decrypt both, and compare"
  say "The RSA recipient, with openssl:"
  run "kubectl get secret ledger-rsa -n team-a -o jsonpath='{.data.exportedDataKey}' | base64 -d > rsa.wrapped"
  run 'openssl pkeyutl -decrypt -inkey rsa.key -in rsa.wrapped -out ledger-from-rsa \
    -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256'
  say "The SM2 recipient, with openssl:"
  run "kubectl get secret ledger-sm2 -n team-a -o jsonpath='{.data.exportedDataKey}' | base64 -d > sm2.wrapped"
  run 'openssl pkeyutl -decrypt -inkey sm2.key -in sm2.wrapped -out ledger-from-sm2'
  say "Or with keyconvoy, which also reads mounted Secrets, and SM2 ciphertexts in formats that openssl cannot read (C1C3C2):"
  run 'keyconvoy unwrap --key-file sm2.key --in sm2.wrapped --out ledger-from-keyconvoy'
  run 'wc -c ledger-from-*'
  run 'cmp ledger-from-rsa ledger-from-sm2'
  run 'cmp ledger-from-rsa ledger-from-keyconvoy'
  [ "$(wc -c <ledger-from-rsa)" -eq 32 ] || { echo "The data key has the wrong length." >&2; exit 1; }
  say "All files contain the same 32 bytes. Does any object in the cluster contain them, or the material?"
  run 'kubectl get secrets,configmaps,clusterkeystores,importedkeys,datakeys,exporteddatakeys -A -o yaml > objects.yaml'
  run '! grep -F -e "$(base64 -w0 ledger-from-rsa)" -e "$(base64 -w0 material.bin)" objects.yaml'
  say "None does."
}

rotate_generated_key() {
  chapter "A key that the module generates, rotated"
  run 'kubectl apply -f config/samples/generatedkey.yaml'
  run 'kubectl wait generatedkey/archive -n team-a --for=condition=Ready --timeout=120s'
  say "The data key of before moves under this key: the module decrypts it under the imported key and encrypts it under the new one."
  run 'kubectl patch datakey ledger -n team-a --type merge \
    -p "{\"spec\":{\"keyRef\":{\"kind\":\"GeneratedKey\",\"name\":\"archive\"},\"reencryption\":{\"policy\":\"OnRotation\"}}}"'
  run "V1=\$(kubectl get generatedkey archive -n team-a -o jsonpath='{.status.primaryVersion}')"
  run "kubectl wait datakey/ledger -n team-a --for=jsonpath='{.status.keyVersionID}'=\$V1 --timeout=120s"
  say "A new version, and the data key follows it."
  run 'kubectl annotate generatedkey archive -n team-a keyconvoy.io/rotate=now'
  run "kubectl wait generatedkey/archive -n team-a --for=jsonpath='{.status.versions[1].state}'=Primary --timeout=120s"
  run "V2=\$(kubectl get generatedkey archive -n team-a -o jsonpath='{.status.primaryVersion}')"
  run "kubectl wait datakey/ledger -n team-a --for=jsonpath='{.status.keyVersionID}'=\$V2 --timeout=120s"
  run 'kubectl get generatedkey,datakey -n team-a'
  say "It is the same data key. A new export of it, for the RSA recipient:"
  run 'sed "s/name: ledger-rsa/name: ledger-new/" config/samples/exporteddatakey_rsa.yaml | kubectl apply -f -'
  run 'kubectl wait exporteddatakey/ledger-new -n team-a --for=condition=Ready --timeout=120s'
  run "kubectl get secret ledger-new -n team-a -o jsonpath='{.data.exportedDataKey}' | base64 -d > rotated.wrapped"
  run 'keyconvoy unwrap --key-file rsa.key --in rotated.wrapped --algorithm RSAES_OAEP_SHA_256 --out ledger-after-rotation'
  run 'cmp ledger-from-rsa ledger-after-rotation'
}

show_custody() {
  chapter "Where plaintext existed"
  run 'kubectl get importedkey,datakey,exporteddatakey -n team-a -o custom-columns=KIND:.kind,NAME:.metadata.name,CUSTODY:.status.custody'
  say "Module:   only inside the cryptographic module."
  say "Host:     in the operator's memory for one call, because the module cannot do this step."
  say "Software: in the operator's memory; the embedded store keeps its keys encrypted in Secrets."
  say "Also in the demo's own files, where you generated the material and the recipients decrypted the data key."
}

start_control_plane
install
[ "$store" = software ] || make_token
start_operator
make_key_store
import_key
make_data_key
export_data_key
unwrap_and_compare
rotate_generated_key
show_custody
