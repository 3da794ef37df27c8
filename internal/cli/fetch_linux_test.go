package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/testenv/pods"
)

// memory is a directory in memory.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "keyconvoy-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// inPod is a call in a pod, which has the documented permissions unless it has others.
func inPod(t testing.TB, c *pods.Cluster, pod string, has []pods.Permission, args ...string) call {
	t.Helper()
	if has == nil {
		has = []pods.Permission{pods.MayExport, pods.MayRequest, pods.MayFollow}
	}
	account := c.Account(has...)
	return callOf(t, c, c.Pod(pod, account), c.Config(account), args...)
}

func callOf(t testing.TB, c *pods.Cluster, pod fetch.Pod, cfg *rest.Config, args ...string) call {
	t.Helper()
	return call{
		args: append([]string{"fetch", "--kubeconfig", c.Env.Kubeconfig(t, cfg, c.Namespace), "--datakey", pods.DataKey}, args...),
		env:  []string{"POD_NAME=" + pod.Name, "POD_UID=" + string(pod.UID), "POD_NAMESPACE=" + pod.Namespace},
	}
}

func TestFetch_writesTheDataKeyToAFile(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	want := c.Plaintext()
	for sentence, test := range map[string]struct {
		args []string
		text string
	}{
		"rsa": {nil, string(want)},
		"sm2": {[]string{"--wrapping-key-spec", "EC_SM2", "--namespace", c.Namespace}, string(want)},
		"hex": {[]string{"--wrapping-algorithm", "RSAES_OAEP_SHA_1", "--encoding", "hex"}, hex.EncodeToString(want) + "\n"},
	} {
		dir := memory(t)
		file := filepath.Join(dir, "ledger")
		for range 2 { // the second time, the file exists: the init container was restarted
			run := inPod(t, c, "pod-"+sentence, nil, append(test.args, "--output", file)...)
			run.secrets = [][]byte{want}
			if got := run.run(t).succeeds(t); got.out != "" || got.errOut != "" {
				t.Errorf("it prints %q and %q", got.out, got.errOut)
			}
			content, err := os.ReadFile(file)
			if err != nil || string(content) != test.text {
				t.Fatalf("%s: the file does not have the data key: %v", sentence, err)
			}
			info, err := os.Stat(file)
			if err != nil || info.Mode() != 0o400 {
				t.Errorf("the mode is %v, %v", info.Mode(), err)
			}
			if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
				t.Errorf("the directory has %v, %v", all, err)
			}
			c.RemovePod("pod-" + sentence)
		}
	}
	if all := c.Exports(); len(all) != 0 {
		t.Errorf("%d ExportedDataKeys are left", len(all))
	}
}

func TestFetch_writesToMemoryOnly_unlessItIsAllowed(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	want := c.Plaintext()
	inPod(t, c, "pod-1", nil, "--output", "/proc/ledger").run(t).fails(t, 1, "/proc is not in memory", "hint: mount an emptyDir with medium: Memory", "--allow-disk")
	inPod(t, c, "pod-2", nil, "--output", "/dev/shm").run(t).fails(t, 1, "is not a regular file")
	file := filepath.Join(t.TempDir(), "ledger")
	inPod(t, c, "pod-3", nil, "--output", file, "--allow-disk").run(t).succeeds(t)
	if content, err := os.ReadFile(file); err != nil || !bytes.Equal(content, want) {
		t.Errorf("the file does not have the data key: %v", err)
	}
	if n := c.Calls()["ExportDataKey"]; n != 2 { // one by Plaintext
		t.Errorf("the data key was exported %d times", n)
	}
}

func TestFetch_usedWrongly_saysWhatToDo(t *testing.T) {
	t.Parallel()
	identity := []string{"--pod-name", "p", "--pod-uid", "u", "--pod-namespace", "n"}
	for sentence, test := range map[string]struct {
		args []string
		says string
	}{
		"without a data key":                {[]string{"--output", "/dev/shm/k"}, "datakey"},
		"without a place":                   {[]string{"--datakey", "k"}, "output exec"},
		"with two places":                   {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--exec"}, "exec output"},
		"without a program":                 {[]string{"--datakey", "k", "--exec"}, "a command is required after --"},
		"with a program for nothing":        {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--", "true"}, "requires --exec or --then"},
		"with an unknown type of key":       {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--wrapping-key-spec", "RSA_1024"}, "RSA_2048"},
		"with an unknown algorithm":         {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--wrapping-algorithm", "RSA"}, "SM2PKE"},
		"with algorithms of two kinds":      {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--wrapping-algorithm", "SM2PKE"}, "EC_SM2"},
		"with an unknown encoding":          {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--encoding", "base32"}, "base64"},
		"with no time":                      {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--timeout", "0s"}, "--timeout"},
		"with a signal for nothing":         {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--signal", "HUP", "--process", "p"}, "require --watch"},
		"with a signal without a process":   {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--watch", "--signal", "HUP"}, "process"},
		"with a signal that does not exist": {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--watch", "--signal", "HANGUP", "--process", "p"}, "HUP"},
		"with a command and a signal":       {[]string{"--datakey", "k", "--output", "/dev/shm/k", "--watch", "--then", "--signal", "HUP", "--process", "p", "--", "true"}, "signal then"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			keyconvoy(t, append(append([]string{"fetch"}, identity...), test.args...)...).fails(t, 2, test.says)
		})
	}
	keyconvoy(t, "fetch", "--datakey", "k", "--output", "/dev/shm/k").fails(t, 2, "the pod is unknown", "POD_NAME", "metadata.uid")
}

func TestFetch_withoutPermission_saysWhich(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	inPod(t, c, "pod", []pods.Permission{pods.MayRequest}, "--output", memory(t)+"/k").run(t).
		fails(t, 1, "requires the verb export", "\nhint: grant the pod's ServiceAccount the verbs create, watch and delete")
	inPod(t, c, "pod-2", []pods.Permission{pods.MayRequest, pods.MayExport}, "--watch", "--output", memory(t)+"/k").run(t).
		fails(t, 1, "\nhint: grant the pod's ServiceAccount the verb watch on the DataKey ledger")
}

func TestFetch_interrupted_deletesItsObject(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	for name, args := range map[string][]string{"to-file": {"--output", memory(t) + "/k"}, "exec": {"--exec", "--", "true"}} {
		run := inPod(t, c, name, nil, args...)
		c.Stop(t)
		cmd := run.command(t)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the object", func() bool { return len(c.Exports()) > 0 })
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(errOut.String(), "interrupted") {
			t.Errorf("%s: it ended with %v:\n%s", name, err, errOut.String())
		}
		if all := c.Exports(); len(all) != 0 {
			t.Errorf("%s: %d ExportedDataKeys are left", name, len(all))
		}
		c.Start(t)
	}
}

func TestFetch_exec_passesTheDataKeyToTheProgram(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	want := c.Plaintext()
	run := inPod(t, c, "pod", nil, "--encoding", "hex", "--exec", "--", "sh", "-c",
		`printf '%s ' "$KEYCONVOY_KEY_FD" "$1" "$POD_NAME"; cat <&3; cat /dev/fd/3; ls /proc/self/fd | tr '\n' ' '; exit 7`, "sh", "an argument")
	run.public = true
	got := run.run(t)
	if !strings.HasPrefix(got.out, "3 an argument pod "+hex.EncodeToString(want)+"\n") || got.code != 7 || got.errOut != "" {
		t.Errorf("it exited with %d and printed\n%s\n%s", got.code, got.out, got.errOut)
	}
	// Only the pipe is added to what any program gets: the descriptor of ls itself is 4 then, and not 3.
	usual, err := exec.Command("sh", "-c", `exec 3</dev/null; ls /proc/self/fd | tr '\n' ' '`).Output()
	if err != nil {
		t.Fatal(err)
	}
	if rest := got.out[strings.Index(got.out, "\n")+1:]; rest != string(usual) {
		t.Errorf("the program has the descriptors %s, not %s", rest, usual)
	}
	if all := c.Exports(); len(all) != 0 {
		t.Errorf("%d ExportedDataKeys are left", len(all))
	}
}

func TestFetch_exec_endsAsTheProgramDoes(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	run := func(name string, program ...string) outcome {
		return inPod(t, c, name, nil, append([]string{"--exec", "--"}, program...)...).run(t)
	}
	run("well", "true").succeeds(t)
	if got := run("badly", "false"); got.code != 1 || got.errOut != "" {
		t.Errorf("it exited with %d and printed %s", got.code, got.errOut)
	}
	if got := run("killed", "sh", "-c", "kill -KILL $$"); got.code != 128+9 {
		t.Errorf("it exited with %d", got.code)
	}
	run("missing", "no-such-program").fails(t, 1, "no-such-program")
}

func TestFetch_exec_forwardsSignals(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	cmd := inPod(t, c, "pod", nil, "--exec", "--", "sh", "-c",
		`trap 'echo HUP' HUP; trap 'echo TERM; exit 3' TERM; echo ready; while :; do sleep 0.01; done`).command(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, step := range []struct {
		says string
		then syscall.Signal
	}{{"ready", unix.SIGHUP}, {"HUP", unix.SIGTERM}, {"TERM", 0}} {
		if !lines.Scan() || lines.Text() != step.says {
			t.Fatalf("the program says %q, want %q", lines.Text(), step.says)
		}
		if step.then != 0 {
			if err := cmd.Process.Signal(step.then); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("it exited with %d", code)
	}
}

// As in a container: the command is process 1, and gets processes whose parents have ended.
func TestFetch_exec_asProcess1_reaps(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	cmd := inPod(t, c, "pod", nil, "--exec", "--", "sh", "-c",
		`mount -t proc proc /proc && [ "$(cat /proc/1/comm)" != sh ] || exit 8
		(true & sleep 0.01 &)
		for i in 1 2 3 4 5 6 7 8 9; do (true &); done
		n=0; while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do n=$((n+1)); [ $n -lt 10000 ] || exit 9; done`).command(t)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// proxy is a way to the API server that can be closed and opened.
type proxy struct {
	t        testing.TB
	address  string
	server   string
	mu       sync.Mutex
	listener net.Listener
	open     map[net.Conn]bool
}

func startProxy(t testing.TB, server string) *proxy {
	t.Helper()
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, address: "127.0.0.1:0", server: target.Host, open: map[net.Conn]bool{}}
	p.up()
	t.Cleanup(p.down)
	return p
}

func (p *proxy) up() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.listener, p.address = l, l.Addr().String()
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", p.server)
			if err != nil {
				from.Close()
				continue
			}
			p.mu.Lock()
			p.open[from], p.open[to] = true, true
			p.mu.Unlock()
			go func() { _, _ = io.Copy(from, to) }()
			go func() { _, _ = io.Copy(to, from) }()
		}
	}()
}

func (p *proxy) down() {
	p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
	clear(p.open)
}

func TestFetch_watch_replacesTheFile_alsoAfterAnOutage(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	first := c.Plaintext()
	account := c.Account(pods.MayExport, pods.MayRequest, pods.MayFollow)
	cfg := c.Config(account)
	way := startProxy(t, cfg.Host)
	cfg.Host = "https://" + way.address

	// A server of a name that no other process of this machine has.
	dir := memory(t)
	file, server := filepath.Join(dir, "ledger"), filepath.Join(t.TempDir(), fmt.Sprintf("server-%d", os.Getpid()))
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(server, content, 0o700); err != nil {
		t.Fatal(err)
	}
	// Not HUP: who runs the tests may ignore it, as nohup does, and then a shell cannot trap it.
	told := startLines(t, exec.CommandContext(t.Context(), server, "-c", `trap 'echo told' USR1; echo ready; while :; do sleep 0.01; done`))
	told.wants(t, "ready")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pod := c.Pod("pod", account)
	cmd := callOf(t, c, pod, cfg, "--output", file, "--watch", "--signal", "usr1", "--process", filepath.Base(server)).commandContext(ctx, t)
	errOut := startLines(t, cmd)
	hasKey := func(want []byte) func() bool {
		return func() bool {
			content, err := os.ReadFile(file)
			return err == nil && bytes.Equal(content, want)
		}
	}
	waitFor(t, "the data key", hasKey(first))

	c.ReplaceDataKey()
	second := c.Plaintext()
	waitFor(t, "the second data key", hasKey(second))
	told.wants(t, "told")
	errOut.wants(t, "The DataKey ledger was replaced: "+file+" has the new data key.")

	way.down()
	c.ReplaceDataKey()
	third := c.Plaintext()
	if !hasKey(second)() {
		t.Error("during the outage the file does not have the former data key")
	}
	way.up()
	waitFor(t, "the third data key", hasKey(third))
	told.wants(t, "told")

	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestFetch_watch_runsACommand(t *testing.T) {
	t.Parallel()
	c := pods.Start(t)
	first := c.Plaintext()
	dir := memory(t)
	file := dir + "/ledger"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The command fails the first time.
	script := fmt.Sprintf("echo ran; [ -e %[1]s/again ] || { touch %[1]s/again; exit 3; }; rm %[1]s/again; echo well", dir)
	watching := inPod(t, c, "pod", nil, "--output", file, "--watch", "--then", "--", "sh", "-c", script)
	cmd := watching.commandContext(ctx, t)
	out := startLines(t, cmd)
	waitFor(t, "the data key", func() bool {
		content, err := os.ReadFile(file)
		return err == nil && bytes.Equal(content, first)
	})
	toldAfterAFailure := func() {
		t.Helper()
		for _, line := range []string{"ran", "running sh: exit status 3", "tries again to tell the program", "ran", "well"} {
			out.wants(t, line)
		}
	}
	c.ReplaceDataKey()
	out.wants(t, "has the new data key")
	toldAfterAFailure()

	// The sidecar is started again, and the DataKey was replaced in the meantime.
	if err := errors.Join(cmd.Process.Signal(unix.SIGTERM), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	c.ReplaceDataKey()
	out = startLines(t, watching.commandContext(ctx, t))
	toldAfterAFailure()
}

// lines are what a program prints.
type lines struct{ all chan string }

func startLines(t testing.TB, cmd *exec.Cmd) lines {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	l := lines{make(chan string, 100)}
	go func() {
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			l.all <- scanner.Text()
		}
		close(l.all)
	}()
	return l
}

// wants waits for a line that contains some words.
func (l lines) wants(t testing.TB, words string) {
	t.Helper()
	waitFor(t, "the line "+words, func() bool {
		select {
		case line, open := <-l.all:
			if !open {
				t.Fatalf("the program ended without the line %s", words)
			}
			return strings.Contains(line, words)
		default:
			return false
		}
	})
}
