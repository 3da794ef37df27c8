// Package process runs each PKCS#11 library in a child process of its own, so that a library that crashes or hangs costs the calls
// in progress and nothing else.
//
// A Provider starts one child per library: this program again, with the command that calls Serve. Parent and child talk over
// socket pairs, so the connections have no names. The child inherits two sockets. Over one it receives a socket for each call that the
// parent makes at the same time as others; over the other it asks the parent whether it may try a PIN, and reports a call that hangs.
// The protocol is net/rpc with CBOR, in frames of a limited size, which the sender wipes after it has sent them.
//
// The parent keeps nothing with which a module could be opened again: neither the PIN nor anything else that the module knows. If
// the child ends, its modules are lost (hsm.Config.Lost), and their callers open them again.
package process
