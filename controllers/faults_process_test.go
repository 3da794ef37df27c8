package controllers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/rpc"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/controllers"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/lease"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// fuse kills the process that it is in, or stops it, right after so many of the operator's outside effects: calls that
// change the module or make something in it, and writes to the API server.
type fuse struct {
	// writing is held for reading from before a write to the API server until it is counted: a holder of
	// it for writing knows that each write is counted whose outcome can be seen.
	writing sync.RWMutex

	mu      sync.Mutex
	last    int            // the effect that it acts after, 0 for none
	signal  syscall.Signal // SIGKILL or SIGSTOP
	effects []string       // since it was armed
}

// moduleEffects are those of the module. ExportDataKey and ReencryptDataKey change nothing in it, but what they make is as good
// as an effect.
var moduleEffects = []string{
	"Authenticate", "CreateWrappingKey", "DestroyWrappingKey", "ImportKey", "GenerateKey", "DestroyKey", "GenerateDataKey", "ReencryptDataKey",
	"ExportDataKey",
}

func (f *fuse) options() []harness.Option {
	return []harness.Option{
		harness.WithModules(func(r *hsmtest.Recorder) {
			for _, method := range moduleEffects {
				r.After(method, func() { f.effect(method) })
			}
		}),
		harness.WithConfig(func(cfg *rest.Config) {
			cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					if r.Method == http.MethodGet || strings.Contains(r.URL.Path, "/events") || strings.Contains(r.URL.Path, "/leases") {
						return next.RoundTrip(r)
					}
					f.writing.RLock()
					defer f.writing.RUnlock()
					response, err := next.RoundTrip(r)
					f.effect(r.Method + " " + r.URL.Path[strings.LastIndex(r.URL.Path, "namespaces/")+len("namespaces/"):])
					return response, err
				})
			})
		}),
	}
}

func (f *fuse) effect(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == 0 {
		return
	}
	fmt.Fprintln(os.Stderr, "Effect:", what)
	if f.effects = append(f.effects, what); len(f.effects) != f.last {
		return
	}
	_ = syscall.Kill(os.Getpid(), f.signal)
	if f.signal == syscall.SIGKILL {
		select {} // nothing follows, whichever thread the system stops last
	}
	f.last = 0 // it goes on
}

func (f *fuse) arm(n int, signal syscall.Signal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last, f.signal, f.effects = n, signal, nil
}

// disarm says which effects there were. From now on nothing is killed.
func (f *fuse) disarm() []string {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = 0
	return f.effects
}

// mortal is an operator that is a process of its own, and can be killed. The operator that it embeds has no
// manager: it is the administrator's side, and the process is asked what its module holds.
type mortal struct {
	*operator
	token tokens.Token // none for the software store
	given string       // a givenOperator
	ends  bool         // the test ends the process itself

	cmd   *exec.Cmd
	calls *rpc.Client
	ended chan struct{} // closed when the process has
}

// The operator's process is this executable, which a variable tells whose operator it is. Requests come through
// its standard input, and answers go through a pipe of its own; its standard output and errors are its log. It ends
// when its input does: at the latest when this process dies.

const (
	operatorVariable = "KEYCONVOY_TEST_OPERATOR"
	answersFile      = 3 // the first of exec.Cmd's ExtraFiles
)

type givenOperator struct {
	Kubeconfig, Namespace, OwnNamespace, Library string
	// Identity is the operator's identity in the election of a leader; empty without an election.
	Identity string
	Timing   lease.Timing
}

func startMortal(t *testing.T, token tokens.Token, change ...func(*givenOperator)) *mortal {
	t.Helper()
	env := testenv.Start(t)
	m := &mortal{operator: &operator{harness.New(t, env, onTokens(commonToken))}, token: token}
	m.Opened(hsmtest.Wrap(elsewhere{m: m}))
	given := givenOperator{
		Kubeconfig: env.Kubeconfig(t, nil, m.Namespace), Namespace: m.Namespace, OwnNamespace: m.OwnNamespace, Library: token.Path,
	}
	for _, c := range change {
		c(&given)
	}
	m.given = harness.JSON(given)
	m.begin(t)
	t.Cleanup(func() {
		m.end(t)
		m.CheckHidden(t)
		if strings.Contains(m.Log.String(), "DATA RACE") {
			t.Error("The operator's process has a data race")
		}
		if t.Failed() {
			t.Logf("The log of the operator's processes:\n%s", m.Log.String())
		}
	})
	return m
}

// begin starts the operator's process, and again when it has been killed.
func (m *mortal) begin(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.Command(self, childTest)
	m.cmd.Env = append(os.Environ(), append(m.token.Env, operatorVariable+"="+m.given)...)
	m.cmd.Stdout = &m.Log
	m.cmd.Stderr = m.cmd.Stdout
	commands, err := m.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, answering, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m.cmd.ExtraFiles = []*os.File{answering}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = answering.Close() // it is the process's own
	m.calls, m.ended = rpc.NewClient(duplex{answers, commands}), make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait() // the waiter for the end reads how it came
	}(m.cmd, m.ended)
}

// end ends the process, which then checks statuses and caches as every operator of a test does.
func (m *mortal) end(t *testing.T) {
	t.Helper()
	_ = m.calls.Close()
	select {
	case <-m.ended:
		if !m.ends && !m.cmd.ProcessState.Success() {
			t.Errorf("The operator's process ended with %s", m.cmd.ProcessState)
		}
	case <-time.After(2 * harness.Patience):
		_ = m.cmd.Process.Kill()
		t.Error("The operator's process does not end")
	}
}

// call asks the process. There is no answer when it is dead, or dies of the question.
func (m *mortal) call(method string, argument, answer any) error {
	call := m.calls.Go("Operator."+method, argument, answer, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		return call.Error
	case <-time.After(2 * harness.Patience):
		return errors.New("the operator's process does not answer " + method)
	}
}

// arm has the process die right after n effects from now; with 0 it is dead already.
func (m *mortal) arm(t *testing.T, n int) {
	t.Helper()
	if err := m.call("Arm", n, &[]string{}); err != nil {
		select {
		case <-m.ended: // an effect came before the answer, and disarm finds that it was killed
			return
		case <-time.After(harness.Patience):
			t.Fatalf("the fuse is not armed: %v", err)
		}
	}
	if n == 0 {
		m.kill()
	}
}

// kill kills the process with SIGKILL.
func (m *mortal) kill() {
	_ = m.cmd.Process.Kill()
	<-m.ended
}

// freezeAfter has the process stop with SIGSTOP right after n effects from now.
func (m *mortal) freezeAfter(t *testing.T, n int) {
	t.Helper()
	if err := m.call("Freeze", n, &[]string{}); err != nil {
		t.Fatalf("the fuse is not armed: %v", err)
	}
}

// frozen waits until the process is stopped.
func (m *mortal) frozen(t *testing.T) {
	t.Helper()
	harness.Eventually(t, func() string {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		// The state follows the name of the program, which is in parentheses.
		if state := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))[0]; state != "T" {
			return "the process is in state " + state
		}
		return ""
	})
}

// disarm says whether the process was killed, and otherwise which effects there were.
func (m *mortal) disarm(t *testing.T) (killed bool, effects []string) {
	t.Helper()
	err := m.call("Disarm", 0, &effects)
	if err == nil {
		return false, effects
	}
	select {
	case <-m.ended:
	case <-time.After(harness.Patience):
		t.Fatalf("the process lives and does not disarm its fuse: %v", err)
	}
	_ = m.calls.Close()
	if how, ok := m.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !how.Signaled() || how.Signal() != syscall.SIGKILL {
		t.Fatalf("the operator's process was not killed, but: %s", m.cmd.ProcessState)
	}
	return true, nil
}

// settled waits until the process that runs now has looked at an object, and looks no more.
func (m *mortal) settled(t *testing.T, object client.Object) {
	t.Helper()
	if object == nil {
		return
	}
	of := m.ReconcileOf(t, object)
	harness.Eventually(t, func() string {
		var counts [2]int
		if err := m.call("Reconciles", of, &counts); err != nil {
			t.Fatal(err)
		}
		if counts[0] == 0 || counts[0] != counts[1] {
			return fmt.Sprintf("%s: %d reconciles began, %d are over", of, counts[0], counts[1])
		}
		return ""
	})
}

func (m *mortal) isDead() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// elsewhere is the module of the operator's process, as far as tests ask it.
type elsewhere struct {
	hsm.Module
	m *mortal
}

// FindKey implements hsm.Module.
func (e elsewhere) FindKey(_ context.Context, id uuid.UUID) (hsm.Key, error) {
	var found []hsm.Key
	if err := e.m.call("FindKey", id, &found); err != nil {
		return hsm.Key{}, err
	}
	if len(found) == 0 {
		return hsm.Key{}, hsm.Errorf(hsm.NotFound, "The module does not hold it.")
	}
	return found[0], nil
}

// ListWrappingKeys implements hsm.Module.
func (e elsewhere) ListWrappingKeys(context.Context) ([]hsm.WrappingKey, error) {
	var listed []listedPair
	err := e.m.call("ListPairs", 0, &listed)
	pairs := make([]hsm.WrappingKey, len(listed))
	for i, l := range listed {
		pairs[i] = hsm.WrappingKey{ID: l.ID, Owner: l.Owner, NotAfter: l.NotAfter}
	}
	return pairs, err
}

// listedPair is what of a pair goes from process to process.
type listedPair struct {
	ID, Owner uuid.UUID
	NotAfter  time.Time
}

// duplex is two pipes as one connection.
type duplex struct {
	io.ReadCloser
	io.WriteCloser
}

func (d duplex) Close() error { return errors.Join(d.ReadCloser.Close(), d.WriteCloser.Close()) }

// childTest runs the one test that is other things in other processes: see beChild.
const childTest = "-test.run=^TestOperator_killedAfterEachEffect_goesOnWhereItWas$"

// beChild is what this process was started for by a test, if by one, and says whether that was so.
func beChild(t *testing.T) bool {
	t.Helper()
	for name, be := range map[string]func(*testing.T, string){operatorVariable: beOperator, listedToken: listGivenToken} {
		if variable := os.Getenv(name); variable != "" {
			be(t, variable)
			return true
		}
	}
	return false
}

// beOperator is the process that begin starts: the operator, with a fuse, until its input ends.
func beOperator(t *testing.T, variable string) {
	var given givenOperator
	if err := json.Unmarshal([]byte(variable), &given); err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", given.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if err := eventsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	administrator, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	var f fuse
	options := append(f.options(),
		onTokens(func(string) tokens.Token { return tokens.Token{Path: given.Library} }),
		harness.WithNamespaces(given.Namespace, given.OwnNamespace),
		harness.WithLogTo(os.Stderr),
	)
	if given.Identity != "" {
		options = append(options, electing(lease.Options{Identity: given.Identity, Timing: given.Timing}))
	}
	o := startOperatorOn(t, &testenv.Env{Config: cfg, Client: administrator}, options...)
	server := rpc.NewServer()
	if err := server.RegisterName("Operator", &answering{o, &f}); err != nil {
		t.Fatal(err)
	}
	server.ServeConn(duplex{os.Stdin, os.NewFile(answersFile, "answers")})
}

// answering is what the operator's process is asked.
type answering struct {
	operator *operator
	fuse     *fuse
}

// Arm has the fuse kill after n effects from now, once the operator serves.
func (a *answering) Arm(n int, _ *[]string) error {
	_, err := a.module()
	a.fuse.arm(n, syscall.SIGKILL)
	return err
}

// Freeze has the fuse stop the process after n effects from now, once the operator serves.
func (a *answering) Freeze(n int, _ *[]string) error {
	_, err := a.module()
	a.fuse.arm(n, syscall.SIGSTOP)
	return err
}

// Disarm returns the effects.
func (a *answering) Disarm(_ int, effects *[]string) error {
	*effects = a.fuse.disarm()
	return nil
}

// Reconciles returns how many reconciles of an object began, and how many of them are over.
func (a *answering) Reconciles(of string, counts *[2]int) error {
	counts[0], counts[1] = a.operator.ReconcilesOf(of)
	return nil
}

// FindKey returns the key, or none.
func (a *answering) FindKey(id uuid.UUID, found *[]hsm.Key) error {
	module, err := a.module()
	if err != nil {
		return err
	}
	key, err := module.FindKey(context.Background(), id)
	if hsm.KindOf(err) == hsm.NotFound {
		return nil
	}
	*found = []hsm.Key{key}
	return err
}

// ListPairs returns the wrapping pairs.
func (a *answering) ListPairs(_ int, listed *[]listedPair) error {
	module, err := a.module()
	if err != nil {
		return err
	}
	pairs, err := module.ListWrappingKeys(context.Background())
	for _, p := range pairs {
		*listed = append(*listed, listedPair{p.ID, p.Owner, p.NotAfter})
	}
	return err
}

// module waits until the operator has opened its module.
func (a *answering) module() (*hsmtest.Recorder, error) {
	tick := time.NewTicker(harness.Interval)
	defer tick.Stop()
	deadline := time.After(harness.Patience)
	for {
		if all := a.operator.Modules(); len(all) > 0 {
			return all[len(all)-1], nil
		}
		select {
		case <-deadline:
			return nil, errors.New("the operator has opened no module")
		case <-tick.C:
		}
	}
}
