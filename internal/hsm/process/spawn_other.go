//go:build !linux

package process

import (
	"errors"
	"net"
	"os"
	"os/exec"
)

// SelfCommand is not supported.
const SelfCommand = ""

var errNoLinux = errors.New("a library runs in a process of its own on Linux only: use --pkcs11-in-process")

func socketPair() (*net.UnixConn, *os.File, error) { return nil, nil, errNoLinux }

func connectionOf(*os.File) (*net.UnixConn, error) { return nil, errNoLinux }

func sendFile(*net.UnixConn, *os.File) error { return errNoLinux }

func receiveConnection(*net.UnixConn) (*net.UnixConn, error) { return nil, errNoLinux }

func (c *child) run(_ *exec.Cmd, started chan<- error) { started <- errNoLinux }

func describeEnd(*os.ProcessState) (how, cause string) { return "ended", "unknown" }
