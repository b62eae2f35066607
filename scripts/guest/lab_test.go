package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sanctuary/scripts/guest/machine"
)

const (
	initiatorName = "iqn.2026-11.local.check:guest"
	buildTime     = 5 * time.Minute // to build the guest, once
	waitTime      = time.Minute     // for anything that takes seconds on an idle machine
	pollEvery     = 50 * time.Millisecond
)

// lab is what all tests share: one cluster and one guest. Tests run one after the other.
type lab struct {
	dir     string // of this run: state and logs
	image   string // directory of scripts/guest/build
	cluster *cluster
	vm      *vm
}

var (
	start  sync.Once
	shared *lab
	broken error // why there is no lab
)

func TestMain(m *testing.M) {
	if os.Getenv("SANCTUARY_GUEST") == "1" && machine.Impossible() == "" && os.Getenv(imageVariable) == "" {
		fmt.Fprintln(os.Stderr, isolate()) // returns only if it failed
		os.Exit(1)
	}
	code := m.Run()
	if shared != nil {
		if err := shared.close(code == 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// useLab skips the test where no guest can run, starts what is shared at the first call, and looks at the kernel's log of the
// guest when the test ends.
func useLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("SANCTUARY_GUEST") != "1" {
		t.Skip("needs a guest: make test-guest")
	}
	if why := machine.Impossible(); why != "" {
		t.Skip("no guest can run here: " + why)
	}
	start.Do(func() { shared, broken = startLab() })
	if broken != nil {
		t.Fatal(broken)
	}
	if err := shared.alive(); err != nil {
		t.Fatal(err)
	}
	shared.watchKernel(t)
	return shared
}

// imageVariable tells the tests where the guest is, once they run in a network of their own.
const imageVariable = "GUEST_IMAGE"

// isolate builds the guest, which needs the machine's network, and starts this program again in a network namespace of its own:
// there 10.0.2.2, where the nodes say they are, can be an address of the host as it is one for the guest, ports collide with
// nobody's, and nothing gets out.
func isolate() error {
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	image, err := machine.Image(ctx, ".")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	args := append([]string{unshare, "--net", "--", self}, os.Args[1:]...)
	return syscall.Exec(unshare, args, append(os.Environ(), imageVariable+"="+image))
}

func startLab() (l *lab, err error) {
	dir, err := os.MkdirTemp(os.Getenv("GUEST_DIR"), "guest-")
	if err != nil {
		return nil, err
	}
	l = &lab{dir: dir, image: os.Getenv(imageVariable)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(false))
			l = nil
		}
	}()
	for _, args := range []string{"link set lo up", "address add " + hostInGuest + "/32 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return l, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	if l.cluster, err = startCluster(filepath.Join(dir, "cluster")); err != nil {
		return l, err
	}
	if l.vm, err = startVM(l, "main"); err != nil {
		return l, err
	}
	err = l.startInitiators()
	return l, err
}

// alive names what of the lab has ended by itself.
func (l *lab) alive() error {
	if err := l.vm.Ended(); err != nil {
		return err
	}
	return l.cluster.ended()
}

// close ends everything. State and logs stay unless all is well.
func (l *lab) close(well bool) error {
	var err error
	if l.vm != nil {
		l.vm.Kill()
	}
	if l.cluster != nil {
		err = l.cluster.close()
	}
	if err != nil || !well {
		return errors.Join(err, fmt.Errorf("state and logs of the guest and the nodes stay in %s", l.dir))
	}
	return os.RemoveAll(l.dir)
}

// until calls check until it returns nil. The end of ctx, a node or the guest ends the test.
func (l *lab) until(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(pollEvery) // a poll of other processes: there is nothing to wait on
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if gone := l.alive(); gone != nil {
			t.Fatalf("%s: %v (%v)", what, gone, err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// soon is until within waitTime.
func (l *lab) soon(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTime)
	defer cancel()
	l.until(ctx, t, what, check)
}
