//go:build cgo

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// The pages in docs/ are run as the README is, each in one shell, on a cluster where the README was
// followed as far as “By hand”. Those with two clusters get a second one, with an operator of its own.
//
// PINs are typed at the standard input.

// docsPage is how a page is run. Pages without commands need none.
type docsPage struct {
	file    string
	after   *docsPage // the page that it continues
	without string    // the heading of a section that is left out
	replace []string  // what is not as on the page, in pairs
	other   string    // the second cluster's context; the first's is then called first
	first   string
	stop    bool // the first operator ends before the second begins
	pins    int  // how many PINs are typed
	then    string
	check   func(*testing.T, workplace)
}

// A new installation, an upgrade of it, and the end of it, with what is not as for a person: there is
// another control plane and operator already; no controller completes the end of a namespace, or collects
// what an object owned.
var installPage = docsPage{
	file:    "install.md",
	without: "With Helm", // TestREADME_installsWithHelm runs it
	replace: []string{
		"make build\neval", `
			kubectl apply -k .
			kubectl get deployment keyconvoy-controller-manager -n keyconvoy-system -o yaml > deployment.yaml
			test 1 = $(grep -c -- '- --pkcs11-module=softhsm=/opt/softhsm/lib/libsofthsm2.so' deployment.yaml)
			test 1 = $(grep -c 'reference: registry.example.com/softhsm:v1' deployment.yaml)
			grep -q 'image: registry.example.com/keyconvoy:v1' deployment.yaml
			cd ..
			make build
			eval`,
		"keyconvoy manager >", "keyconvoy manager --help >",
		"kill %1", "wait",
		"kubectl delete -k ../config/crd", `
			(
			  until kubectl get namespace keyconvoy-system -o jsonpath='{.status.phase}' | grep Terminating; do sleep 1; done
			  kubectl get namespace keyconvoy-system -o json | sed 's/"kubernetes"//' |
			    kubectl replace --raw /api/v1/namespaces/keyconvoy-system/finalize -f -
			) &
			kubectl delete -k ../config/crd`,
	},
	then: `
		wait
		! kubectl get crds,clusterroles,validatingadmissionpolicies -o name | grep keyconvoy || false
		! kubectl get namespace keyconvoy-system || false
		test -z "$(kubectl get secret ledger -n team-a -o jsonpath='{.metadata.ownerReferences}')"
		test ExportedDataKey = $(kubectl get secret ledger-rsa -n team-a -o jsonpath='{.metadata.ownerReferences[0].kind}')`,
}

// bringYourOwnKey is that page, but for one of its two sorts of key stores.
func bringYourOwnKey(without string, pins int, replace ...string) docsPage {
	return docsPage{
		file: "bring-your-own-key.md", without: without, pins: pins,
		replace: append(replace,
			"tr A-F a-f", "tr A-F a-f > material.fingerprint",
			"sha256sum", "sha256sum > public.sum",
			"keyconvoy wrap --parameters", `FINGERPRINT="SHA256:$(cut -d' ' -f1 public.sum)"
			test "$FINGERPRINT" = "$(kubectl get importedkey orders -n team-a -o jsonpath='{.status.importParameters.publicKeyFingerprint}')"
			! keyconvoy wrap --parameters orders-object.yaml --fingerprint "$(printf %064d 0)" --in material.bin || false
			keyconvoy wrap --parameters`),
		then: `
			test "$(cat material.fingerprint)" = "$(kubectl get importedkey orders -n team-a -o jsonpath='{.status.materialFingerprint}')"`,
	}
}

// The token's PIN is in a file, because no terminal is there to ask for it. No operator's pod runs, so the check in it runs here.
var hardwareModulesPage = docsPage{
	file: "hardware-modules.md", pins: 1,
	replace: []string{
		"libsofthsm2.so\n", "libsofthsm2.so > tokens.txt\ncat > pin\n",
		"--token keyconvoy --output json", "--token keyconvoy --pin-file pin --output json",
		"--token keyconvoy", "--token keyconvoy --pin-file pin | tee -a softhsm.txt",
		"keyconvoy module check --pkcs11-module nss", "openssl rand -hex 8 > nss-pin\nmkdir nss && certutil -N -d sql:nss -f nss-pin\n" +
			"keyconvoy module check --pkcs11-module nss",
		"--pin-file nss-pin", "--pin-file nss-pin > nss.txt",
		"kubectl exec -it -n keyconvoy-system deployment/keyconvoy-controller-manager -- \\\n  /keyconvoy", "keyconvoy",
		"/opt/softhsm/lib/libsofthsm2.so", "/usr/lib/softhsm/libsofthsm2.so",
	},
	then: `
		grep -q '^keyconvoy .*login required' tokens.txt
		test 2 = $(grep -c '^This token can be a key store' softhsm.txt)
		grep -q 'rejected all 50 attempts' softhsm.txt
		grep -q 'allowed 34 of 50 attempts' nss.txt
		grep -q '^This token can be a key store' nss.txt
		grep -q '"usable": true' report.json
		! grep -q -f pin report.json softhsm.txt || false`,
	check: checkSampleReport,
}

var docsPages = []docsPage{
	installPage,
	hardwareModulesPage,
	bringYourOwnKey("Without an HSM", 1),
	bringYourOwnKey("With an HSM", 0, "name: hsm}", "name: main}"),
	{file: "replace-an-hsm.md", after: ptr.To(bringYourOwnKey("Without an HSM", 0)), pins: 1, then: `
		test -z "$(kubectl get clusterkeystore hsm -o jsonpath='{.status.missingKeys}')"
		kubectl wait importedkey/orders -n team-a --for=condition=Ready --timeout=60s`},
	{file: "export-to-a-pod.md", check: checkLedgerPod},
	{file: "rotate-a-data-key.md", then: `
		test 1 = $(kubectl get datakeys -n team-a -o name | wc -l)
		test ledger-2 = $(kubectl get secret ledger-2 -n team-a -o jsonpath='{.metadata.name}')
		grep -q 'type: keyconvoy.io/data-key' ledger-retired.yaml`},
	{file: "generated-keys.md", then: `
		test 2 = $(kubectl get generatedkey archive -n team-a -o jsonpath='{.status.versions[*].number}' | wc -w)
		kubectl get secret records -n team-a -o jsonpath='{.data.previousCiphertextBlob}' | base64 -d | grep -q .`},
	{file: "gateway.md", then: `
		kubectl get deployment keyconvoy-gateway -n keyconvoy-system -o yaml | grep 'image: registry.example.com/keyconvoy:v1'
		test 32 -le $(kubectl get secret payments-app -n team-a -o jsonpath='{.data.accessKeySecret}' | base64 -d | wc -c)`},
	{file: "distribute.md", then: "cmp shop-one-ledger.key ledger.key"},
	{file: "roles-and-consent.md", then: `
		kubectl create rolebinding bob-writes-exports -n team-a --clusterrole=keyconvoy-exporteddatakey-editor-role --user=bob
		! sed s/ledger-try/bobs-try/ try.yaml | kubectl apply -f - --as bob`},
	{file: "reasons.md"},
	{file: "audit-log.md", replace: []string{ // no pod runs here, so none has a log
		"kubectl logs -n keyconvoy-system deployment/keyconvoy-controller-manager", `echo "{\"requestID\":\"$REQUEST\"}"`,
	}},
	{file: "export-to-another-cluster.md", first: "a", other: "b", pins: 2, then: `
		test Module = $(kubectl --context a get exporteddatakey partner-for-b -n exchange -o jsonpath='{.status.custody}')
		test Module = $(kubectl --context b get importedkey partner -n exchange -o jsonpath='{.status.custody}')`},
	{file: "backup-and-restore.md", first: "old", other: "new", stop: true, then: `
		for context in old new; do
		  kubectl --context $context get datakey ledger -n team-a -o jsonpath='{.status.ciphertextBlob}' > $context.blob
		done
		cmp old.blob new.blob
		kubectl --context new get secret ledger-rsa -n team-a -o jsonpath='{.data.exportedDataKey}' |
		  keyconvoy unwrap --key-file rsa.key --base64 --algorithm RSAES_OAEP_SHA_256 --out restored.key
		cmp restored.key ledger.key`},
}

func TestDocs_commandsWork(t *testing.T) {
	softhsm, nss := tokens.SoftHSMLabelled(t, "keyconvoy"), tokens.FreshNSS(t)
	for _, page := range docsPages {
		t.Run(strings.TrimSuffix(page.file+" but for "+page.without, " but for "), func(t *testing.T) {
			w := newWorkplace(t, testenv.Another(t))
			stop := w.startOperatorUntil(softhsm, nss)
			w.followREADME()
			script := w.script(page)
			kubeconfig := ""
			if page.other != "" {
				kubeconfig = w.addCluster(page, stop, softhsm, nss)
			}
			w.typing(kubeconfig, strings.Repeat(softhsm.PIN+"\n", page.pins), script+page.then)
			if page.check != nil {
				page.check(t, w)
			}
		})
	}
}

// script saves a page's yaml blocks and puts its sh blocks together.
func (w workplace) script(page docsPage) string {
	w.t.Helper()
	s := w.newScript(filepath.Join("docs", page.file))
	if page.after != nil {
		s.text.WriteString(w.script(*page.after))
	}
	for _, b := range s.blocks {
		switch {
		case page.without != "" && b.section == page.without:
			b.used = true
		case b.language == "yaml":
			b.text = strings.NewReplacer(page.replace...).Replace(b.text)
			w.save(b)
		case b.language == "go":
			w.save(b)
		case b.language == "text": // a sample of output, which the page's check compares
			b.used = page.check != nil
		case b.language == "json": // a sample of output
			b.used = json.Valid([]byte(b.text))
		case b.language == "sh":
			s.add(b, page.replace...)
		}
		if !b.used {
			w.t.Errorf("the block of line %d (%s) is not run", b.line, b.language)
		}
	}
	return s.text.String()
}

// The pages share the namespace team-a. After all of them, each export is still there, and the README's pod is
// still taken.
func TestDocs_pagesDoNotBreakOneAnother(t *testing.T) {
	softhsm, nss := tokens.SoftHSMLabelled(t, "keyconvoy"), tokens.FreshNSS(t)
	w := newWorkplace(t, testenv.Another(t))
	w.startOperator(softhsm, nss)
	w.followREADME()
	for _, page := range []docsPage{
		{file: "export-to-a-pod.md"},
		{file: "distribute.md"},
		{file: "roles-and-consent.md"},
		bringYourOwnKey("Without an HSM", 1),
	} {
		w.typing("", strings.Repeat(softhsm.PIN+"\n", page.pins), w.script(page))
	}
	w.bash(`
		kubectl delete pod reader -n team-a --force
		kubectl apply -f reader.yaml
		kubectl wait exporteddatakey --all -n team-a --for=condition=Ready --timeout=60s
		kubectl get secrets ledger-rsa ledger-app-key -n team-a`)
}

func TestDocs_everyPageWithCommandsIsRun(t *testing.T) {
	files, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		runs := slices.ContainsFunc(docsPages, func(p docsPage) bool { return p.file == filepath.Base(file) })
		commands := slices.DeleteFunc(readBlocks(t, file), func(b *block) bool { return b.language == "mermaid" || b.language == "text" })
		if len(commands) > 0 && !runs {
			t.Errorf("%s has commands that no test runs", file)
		}
	}
}

// followREADME does what the README says before “By hand”.
func (w workplace) followREADME() {
	w.t.Helper()
	s := w.newScript("README.md")
	s.text.WriteString("cd ..\n")
	end := s.find("KEY=payments\n").line
	helm := s.find("helm install")
	for _, b := range s.blocks {
		switch {
		case b.language == "yaml":
			w.save(b)
		case b.language == "sh" && b.line < end && b != helm:
			s.add(b)
		}
	}
	w.bash(s.text.String())
}

// addCluster starts the page's second cluster and its operator, and returns a kubeconfig with both.
func (w workplace) addCluster(page docsPage, stop func(), softhsm, nss tokens.Token) string {
	w.t.Helper()
	if page.stop {
		stop()
	}
	other := workplace{w.t, testenv.Another(w.t), w.dir, w.bin, w.releases}
	other.bash("kubectl apply -k ../config/default")
	other.startOperatorUntil(softhsm, nss)
	both := clientcmdapi.NewConfig()
	for name, env := range map[string]*testenv.Env{page.first: w.env, page.other: other.env} {
		one, err := clientcmd.LoadFromFile(env.Kubeconfig(w.t, nil, "default"))
		if err != nil {
			w.t.Fatal(err)
		}
		context := one.Contexts[one.CurrentContext]
		both.Clusters[name], both.AuthInfos[name] = one.Clusters[context.Cluster], one.AuthInfos[context.AuthInfo]
		both.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	}
	file := filepath.Join(w.t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*both, file); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// typing is bash with something typed, and a kubeconfig where that is not "".
func (w workplace) typing(kubeconfig, input, script string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := w.command(ctx, "bash", "-euo", "pipefail", "-x", "-c", script)
	if kubeconfig != "" {
		cmd.Env = append(cmd.Env, "KUBECONFIG="+kubeconfig)
	}
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v after:\n%s", err, out)
	}
}

// checkSampleReport compares the page's sample of a report with the real one.
func checkSampleReport(t *testing.T, w workplace) {
	report, err := os.ReadFile(filepath.Join(w.dir, "softhsm.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range readBlocks(t, "docs/hardware-modules.md") {
		if b.language != "text" {
			continue
		}
		for line := range strings.Lines(b.text) {
			if !bytes.Contains(report, []byte(strings.TrimSpace(line))) {
				t.Errorf("the report has no line %q", line)
			}
		}
	}
}
