package guest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"sanctuary/scripts/guest/machine"
)

const hostInGuest = "10.0.2.2" // this machine's loopback, as QEMU's user networking shows it to a guest

// vm is a running guest.
type vm struct{ *machine.Machine }

// result is what a script in the guest said.
type result = machine.Result

// startVM boots the guest from its own image, and returns when its agent answers.
func startVM(l *lab, name string) (*vm, error) {
	m, err := machine.Start(context.Background(), machine.Config{Name: name, Image: l.image, Logs: l.dir})
	if err != nil {
		return nil, err
	}
	return &vm{m}, nil
}

// sh runs a script that must succeed, and returns what it printed.
func (v *vm) sh(t *testing.T, format string, args ...any) string {
	t.Helper()
	script := "set -e\n" + fmt.Sprintf(format, args...)
	r, err := v.Do(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != 0 {
		t.Fatalf("in the guest, status %d:\n%s\n%s%s", r.Status, strings.TrimPrefix(script, "set -e\n"), r.Out, r.Err)
	}
	return r.Out
}

// try runs a script whose status is the answer.
func (v *vm) try(t *testing.T, format string, args ...any) result {
	t.Helper()
	r, err := v.Do(t.Context(), fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// again is sh for cleaning up: not with the test's context, which has ended by then, and the rest of it goes on.
func (v *vm) again(t *testing.T, format string, args ...any) string {
	t.Helper()
	script := fmt.Sprintf(format, args...)
	r, err := v.Do(context.Background(), script)
	if err != nil || r.Status != 0 {
		t.Errorf("in the guest, status %d, %v:\n%s\n%s%s", r.Status, err, script, r.Out, r.Err)
	}
	return r.Out
}

// background runs a script that must succeed while the test goes on. The function it returns waits for its output.
func (v *vm) background(t *testing.T, format string, args ...any) func() string {
	t.Helper()
	script := "set -e\n" + fmt.Sprintf(format, args...)
	var (
		r    result
		err  error
		done = make(chan struct{})
	)
	ctx := t.Context()
	go func() {
		defer close(done)
		r, err = v.Do(ctx, script)
	}()
	return func() string {
		t.Helper()
		<-done
		if err != nil {
			t.Fatal(err)
		}
		if r.Status != 0 {
			t.Fatalf("in the guest, status %d:\n%s\n%s%s", r.Status, script, r.Out, r.Err)
		}
		return r.Out
	}
}
