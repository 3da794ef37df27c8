//go:build !linux

package process

func closeInherited() error { return errNoLinux }

func restrict(Library) ([]string, error) { return nil, errNoLinux }
