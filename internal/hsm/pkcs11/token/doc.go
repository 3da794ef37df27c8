// Package token connects to one token of a PKCS#11 library: it loads and initializes the library, finds the token, logs in,
// keeps a pool of sessions and reconnects after a failure. Its callers see one method, Token.Do, which runs an operation in a
// Session.
//
// A process initializes a library once, however many tokens it uses. Each C_Initialize begins a new generation of the
// library: session handles, object handles and slot numbers of earlier generations are invalid.
package token
