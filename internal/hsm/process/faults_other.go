//go:build !cgo || !linux

package process

func dieOfFaults() {}
