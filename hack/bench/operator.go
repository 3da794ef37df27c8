package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// operator is a process of the built binary, with the flags of config/manager.
type operator struct {
	cluster *cluster
	cmd     *exec.Cmd
	log     *os.File
	metrics string // the address of its metrics
	pprof   string // the address of its profiles; empty without profiles
	bearer  string // the token of an account that may read them
	started time.Time

	mu     sync.Mutex
	synced time.Time     // when the export workers started, after the caches were filled
	ready  chan struct{} // closed then
	ended  chan struct{} // closed when the process has ended
}

// workersStarted is in the line that controller-runtime logs when the caches of a controller are filled. The log of the
// binary is in JSON.
const workersStarted, ofExports = `"msg":"Starting workers"`, `"controller":"exporteddatakey"`

// startOperator starts the operator and returns at once.
func (c *cluster) startOperator(ctx context.Context, s *store, profiling bool) (*operator, error) {
	kubeconfig, err := c.operatorKubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	bearer, err := c.token(ctx, namespace, "scraper")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	o := &operator{
		cluster: c, bearer: bearer, metrics: "https://" + ports[0] + "/metrics",
		ready: make(chan struct{}), ended: make(chan struct{}),
	}
	args := append([]string{
		"manager", "--kubeconfig", kubeconfig,
		"--leader-elect", "--metrics-bind-address", ports[0], "--health-probe-bind-address", ports[1],
		"--zap-log-level", "1", // the level of the line with workersStarted
	}, s.flags...)
	if profiling {
		o.pprof = "http://" + ports[2] + "/debug/pprof/"
		args = append(args, "--profiling", ports[2])
	}
	o.cmd = exec.Command(c.tools.keyconvoy, args...)
	o.cmd.Env = append(append(os.Environ(), "POD_NAMESPACE="+operatorNamespace), s.env...)
	// If the benchmark is killed, the operator must end too.
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := o.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if o.log, err = os.Create(filepath.Join(c.dir, "operator.log")); err != nil {
		return nil, err
	}
	o.started = time.Now()
	if err := o.cmd.Start(); err != nil {
		return nil, err
	}
	go o.follow(stderr)
	return o, nil
}

func (o *operator) follow(log io.Reader) {
	defer close(o.ended)
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(o.log, lines.Text())
		if strings.Contains(lines.Text(), workersStarted) && strings.Contains(lines.Text(), ofExports) {
			o.mu.Lock()
			o.synced = time.Now()
			o.mu.Unlock()
			close(o.ready)
		}
	}
	_ = o.cmd.Wait()
}

// waitReady waits until the caches are filled and the workers have started, and returns the time since the start of the
// process.
func (o *operator) waitReady(ctx context.Context) (time.Duration, error) {
	select {
	case <-o.ready:
		return o.sync().Sub(o.started), nil
	case <-o.ended:
		return 0, fmt.Errorf("the operator has ended:\n%s", o.lastWords())
	case <-time.After(2 * time.Minute):
		return 0, errors.New("the operator did not fill its caches within two minutes")
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (o *operator) sync() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.synced
}

func (o *operator) lastWords() string {
	text, err := os.ReadFile(o.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// stop ends the operator with the same signal as a rollout.
func (o *operator) stop() error {
	if err := o.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-o.ended:
	case <-time.After(30 * time.Second):
		_ = o.cmd.Process.Kill()
		return errors.New("the operator did not end within 30 s")
	}
	return o.log.Close()
}

// usage is the resources that a process has used since its start.
type usage struct {
	cpu  time.Duration
	peak uint64 // bytes of resident memory, at most
}

// clockTick is USER_HZ, which is fixed in Linux's interface to user space (proc(5)).
const clockTick = 100

func (o *operator) usage() (usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(o.cmd.Process.Pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return usage{}, err
	}
	// The second field, a name in parentheses, may contain spaces. The third field follows it.
	fields := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))
	var ticks int
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		if err != nil {
			return usage{}, err
		}
		ticks += n
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return usage{}, err
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		return usage{}, err
	}
	return usage{cpu: time.Duration(ticks) * time.Second / clockTick, peak: kib << 10}, nil
}

// freePorts returns free addresses on the loopback interface.
func freePorts(n int) ([]string, error) {
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:gocritic // keeps all open until the end, so that they differ
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

func httpGet(ctx context.Context, c *http.Client, url, bearer string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return resp.Body, nil
}
