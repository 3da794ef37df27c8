package hsmtest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Children returns the processes that a process has started and that have not ended, with their last arguments: those of package
// process are the names of libraries.
func Children(parent int) (lastArguments map[int]string, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	lastArguments = map[int]string{}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The fields after the name in parentheses are the state and the parent (proc_pid_stat(5)).
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if fields[0] == "Z" || fields[1] != strconv.Itoa(parent) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		arguments := strings.Split(strings.TrimRight(string(command), "\x00"), "\x00")
		lastArguments[pid] = arguments[len(arguments)-1]
	}
	return lastArguments, nil
}
