// Keyconvoy carries keys between cryptographic modules: the operator, and the commands that people
// and pods use beside it.
package main

import (
	"os"

	"github.com/keyconvoy/keyconvoy/internal/cli"
)

func main() {
	os.Exit(cli.Main())
}
