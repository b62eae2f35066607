// Command sanctuary runs a node of the cluster and steers it: a peer-to-peer replicated virtual SAN in one program.
//
// Invariant: what it prints about the data is what the API said, or for "inspect" what package node/inspect found on the disk. It decides nothing itself;
// "run" and "witness" hand over to package node, everything else is a client of the API.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes. They are documented in the help of the root command and do not change.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitBroken  = 3 // the drill found a promise broken
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once, and its children with it
	code := execute(ctx, os.Args[1:], environment{out: os.Stdout, err: os.Stderr, in: os.Stdin, getenv: os.Getenv})
	stop()
	os.Exit(code)
}

// environment is what a command may touch besides the network and the disk: tests bring their own.
type environment struct {
	out, err io.Writer
	in       io.Reader
	getenv   func(string) string
}

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string, env environment) int {
	root := newRoot(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	text, code := explain(err)
	fmt.Fprint(env.err, text) // nothing can be done about a broken stderr
	return code
}
