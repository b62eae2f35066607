package machine

import (
	"fmt"
	"os/exec"
	"strings"
)

// Switch is a bridge in this process's network namespace, which ought to be one of its own, with guests and the process on it.
type Switch struct{ ports int }

// NewSwitch makes the bridge; address is the process's, with its length ("10.77.0.1/24").
func NewSwitch(address string) (*Switch, error) {
	return &Switch{}, ip("link set lo up", "link add switch type bridge stp_state 0 forward_delay 0", "link set switch up", "addr add "+address+" dev switch")
}

// Port makes a network device for one more guest.
func (s *Switch) Port() (tap string, err error) {
	tap = fmt.Sprintf("port%d", s.ports)
	s.ports++
	return tap, ip("tuntap add "+tap+" mode tap", "link set "+tap+" master switch up")
}

func ip(commands ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s; it was told %q", err, out, commands)
	}
	return nil
}
