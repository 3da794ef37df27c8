package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
)

// profile starts a CPU profile, for about as long as n exports take. keep ends it and writes it to NAME.cpu.pprof, and a
// heap profile to NAME.heap.pprof. Without --profiling, keep does nothing.
func (o *operator) profile(ctx context.Context, n int) (keep func(name string) error) {
	if o.pprof == "" {
		return func(string) error { return nil }
	}
	var cpu []byte
	var cpuErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		cpu, cpuErr = fetch(ctx, fmt.Sprintf("%sprofile?seconds=%d", o.pprof, 1+n/250))
	}()
	return func(name string) error {
		heap, err := fetch(ctx, o.pprof+"heap?gc=1")
		<-done
		return errors.Join(err, cpuErr,
			os.MkdirAll(filepath.Dir(name), 0o750),
			os.WriteFile(name+".cpu.pprof", cpu, 0o600), os.WriteFile(name+".heap.pprof", heap, 0o600))
	}
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	body, err := httpGet(ctx, http.DefaultClient, url, "")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}
