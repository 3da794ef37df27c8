package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const (
	tokenLabel = "keyconvoy"
	tokenPIN   = "123456"
)

// softhsm is a token in a directory of the node, which a PersistentVolume gives to the operator's pod.
type softhsm struct{ dir string }

// newToken creates an empty token, and the objects that give it to the operator.
func newToken(t *testing.T) softhsm {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "tokens-")
	if err != nil {
		t.Fatal(err)
	}
	s := softhsm{dir}
	conf := filepath.Join(t.TempDir(), "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label="+tokenLabel, "--pin="+tokenPIN, "--so-pin=12345678")
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, out)
	}
	// A volume of type local does not change the owner of files for a user, only for a group.
	run(t, "", "chown", "-R", "65532:65532", dir)
	return s
}

// objects counts the keys in the token: SoftHSM keeps each in a file.
func (s softhsm) objects(t testing.TB) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "*", "*.object"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		if filepath.Base(file) != "token.object" {
			n++
		}
	}
	return n
}

// tokenObjects are the volume with the token, the configuration of the library, and the PIN.
func (s softhsm) tokenObjects() string {
	name := filepath.Base(s.dir)
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {namespace: %[2]s, name: tokens}
  local: {path: %[3]s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: Exists}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: tokens, namespace: %[2]s}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: %[1]s
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: softhsm, namespace: %[2]s}
data:
  softhsm2.conf: |
    directories.tokendir = /var/lib/softhsm/tokens
---
apiVersion: v1
kind: Secret
metadata: {name: softhsm-pin, namespace: %[2]s}
stringData: {pin: "%[4]s"}
`, name, operatorNamespace, s.dir, tokenPIN)
}

// tokenPatch gives the container what SoftHSM needs in addition to its library, as docs/install.md says.
const tokenPatch = `
- {op: add, path: /spec/template/spec/containers/0/args/-, value: --pkcs11-allow-path=softhsm=/etc/softhsm}
- {op: add, path: /spec/template/spec/containers/0/args/-, value: "--pkcs11-allow-path=softhsm=/var/lib/softhsm/tokens:rw"}
- {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: SOFTHSM2_CONF, value: /etc/softhsm/softhsm2.conf}}
- {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: LD_LIBRARY_PATH, value: /opt/softhsm/lib}}
- {op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {name: configuration, mountPath: /etc/softhsm, readOnly: true}}
- {op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {name: tokens, mountPath: /var/lib/softhsm/tokens}}
- {op: add, path: /spec/template/spec/volumes/-, value: {name: configuration, configMap: {name: softhsm}}}
- {op: add, path: /spec/template/spec/volumes/-, value: {name: tokens, persistentVolumeClaim: {claimName: tokens}}}
- {op: add, path: /spec/template/spec/securityContext/fsGroup, value: 65532}
`

// initContainerPatch replaces the image volume of docs/install.md by an init container that copies the library.
const initContainerPatch = `
- op: replace
  path: /spec/template/spec/volumes/0
  value: {name: softhsm, emptyDir: {}}
- op: add
  path: /spec/template/spec/initContainers
  value:
    - name: library
      image: ` + softhsmImage + `
      command: [cp, -r, /lib, /library/]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, runAsUser: 65532}
      volumeMounts: [{name: softhsm, mountPath: /library}]
`

// installWithSoftHSM installs the operator with a token, whose library comes from an image volume as in docs/install.md,
// and with further patches.
func installWithSoftHSM(t *testing.T, patches ...string) softhsm {
	t.Helper()
	fromImage, err := readBlock(filepath.Join(root, "docs/install.md"), "# library.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := newToken(t)
	// An earlier test may have left its token, which its operator no longer uses then.
	install(t, installation{})
	kubectl(t, "delete", "pvc", "--all", "-n", operatorNamespace)
	kubectl(t, "delete", "pv", "--all")
	install(t, installation{patches: append([]string{fromImage, tokenPatch}, patches...), extra: s.tokenObjects()})
	return s
}

func TestPKCS11_libraryFromAnImageVolume(t *testing.T) {
	installWithSoftHSM(t)
	useHSM(t)
}

func TestPKCS11_libraryFromAnInitContainer(t *testing.T) {
	installWithSoftHSM(t, initContainerPatch)
	useHSM(t)
}

// useHSM imports a key into the token and exports a data key under it.
func useHSM(t *testing.T) {
	t.Helper()
	apply(t, clusterKeyStoreHSM)
	t.Cleanup(func() { kubectl(t, "delete", "clusterkeystore", "hsm") })
	kubectl(t, "wait", "clusterkeystore/hsm", "--for=condition=Ready", "--timeout=3m")
	namespace := newNamespace(t)
	newImportedKey(t, namespace, "ClusterKeyStore", "hsm")
	newDataKey(t, namespace, "ClusterKeyStore", "hsm")
	apply(t, fmt.Sprintf(`{apiVersion: keyconvoy.io/v1alpha1, kind: DataKey, metadata: {name: under-imported, namespace: %s},
  spec: {keyRef: {kind: ImportedKey, name: imported}, keySpec: AES_256}}`, namespace))
	waitReady(t, namespace, "datakey/under-imported")
	r := newRecipient(t)
	export := r.export(t, namespace, "export")
	export.Spec.DataKeyRef.Name = "under-imported"
	if err := api.Create(t.Context(), export); err != nil {
		t.Fatal(err)
	}
	waitReady(t, namespace, "exporteddatakey/export")
	if key := r.openByName(t, namespace, "export"); len(key) != 32 {
		t.Errorf("the data key has %d bytes, want 32", len(key))
	}
}

const clusterKeyStoreHSM = `
apiVersion: keyconvoy.io/v1alpha1
kind: ClusterKeyStore
metadata: {name: hsm}
spec:
  type: PKCS11
  pkcs11: {module: softhsm, token: {label: ` + tokenLabel + `}, pinSecretRef: {name: softhsm-pin, key: pin}}
`
