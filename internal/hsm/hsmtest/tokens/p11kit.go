//go:build cgo

package tokens

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// p11KitAddress is the environment variable with the address of the server. The client library reads it once.
const p11KitAddress = "P11_KIT_SERVER_ADDRESS"

// p11Kit is held by the test that uses the client library, because a process has one address of the server.
var p11Kit sync.Mutex

// p11KitDir returns the directory of the sockets of this process, which exists while a test uses it.
var p11KitDir = sync.OnceValues(func() (string, error) { return directory("p11-kit") })

// P11KitServer is the process and the connection behind the client library of p11-kit.
type P11KitServer struct {
	*Service
	// Relay is between the client and the server.
	Relay *Relay
}

// P11Kit makes a new SoftHSM token that is reached through p11-kit remoting: the client library connects to a relay, and the relay
// to "p11-kit server", which loads SoftHSM. A test can have one such token, and tests with one run one after the other.
func P11Kit(t testing.TB) (Token, *P11KitServer) {
	t.Helper()
	client := find(t, "/usr/lib/*/pkcs11/p11-kit-client.so", "/usr/lib/pkcs11/p11-kit-client.so")
	behind := SoftHSM(t)
	if !p11Kit.TryLock() {
		t.Fatal("another test of this process uses p11-kit: run them one after the other")
	}
	t.Cleanup(p11Kit.Unlock)
	dir, err := p11KitDir()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	service := &Service{
		Socket: filepath.Join(dir, "server"),
		env:    behind.Env,
	}
	service.ready = func() bool { return accepts(service.Socket) }
	service.args = []string{
		lookPath(t, "p11-kit", "p11-kit"), "server", "-f", "-n", service.Socket, "--provider", behind.Path, "pkcs11:token=" + behind.Label,
	}
	t.Cleanup(func() { service.Kill(t) })
	service.Start(t)
	relay := newRelay(t, filepath.Join(dir, "relay"), service.Socket)
	address := "unix:path=" + filepath.Join(dir, "relay")
	if err := os.Setenv(p11KitAddress, address); err != nil { // with cgo, this also sets the variable of C
		t.Fatal(err)
	}
	return Token{Path: client, Label: behind.Label, PIN: behind.PIN, Env: []string{p11KitAddress + "=" + address}}, &P11KitServer{service, relay}
}
