package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// hideTyping stops a terminal from showing what is typed, and returns what undoes that. Anything else is left alone.
func hideTyping(in io.Reader) (restore func()) {
	nothing := func() {}
	f, ok := in.(*os.File)
	if !ok {
		return nothing
	}
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nothing // no terminal
	}
	hidden := *old
	hidden.Lflag &^= unix.ECHO
	if unix.IoctlSetTermios(fd, unix.TCSETS, &hidden) != nil {
		return nothing
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) } // nothing can be done about it
}

// isTerminal says whether somebody sees what is written.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
