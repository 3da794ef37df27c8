//go:build !linux

package process

func restrict(Library) ([]string, error) { return nil, errNoLinux }
