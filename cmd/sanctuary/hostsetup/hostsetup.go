// Package hostsetup says what must be configured on a host so that it can use the cluster's LUNs: commands and files for its
// operating system, with this cluster's addresses and names in them.
//
// Invariant: what it returns can be pasted as it is, except for CHAP secrets, which it never sees: they are placeholders in
// angle brackets. It asks nobody and changes nothing.
package hostsetup

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"text/template"
)

// Vendor and Product are what LUNs say in INQUIRY: client configuration recognises them by it.
const (
	Vendor  = "SANCTRY"
	Product = "Sanctuary LUN"
)

// Client is an operating system or program that uses LUNs.
type Client string

// Clients.
const (
	ESXi      Client = "esxi"
	Multipath Client = "linux-multipath"
	OpenISCSI Client = "open-iscsi"
	Windows   Client = "windows"
	Proxmox   Client = "proxmox"
	QEMU      Client = "qemu"
)

// Clients returns all of them.
func Clients() []Client { return []Client{ESXi, Multipath, OpenISCSI, Windows, Proxmox, QEMU} }

// Setup is what a host is to be connected to.
type Setup struct {
	Cluster string // the cluster's name
	// Host is the host's name in the cluster; empty for LUNs that are open to anyone.
	Host       string
	Initiators []string // iSCSI names the host is known by
	CHAPUser   string   // empty: no credentials are asked for
	MutualUser string   // empty: the target need not prove itself
	NoMD5      bool     // the cluster takes no CHAP with MD5
	SinglePath bool     // the host is sent to the owner and uses one portal
	Targets    []Target // at least one
}

// Target is an iSCSI target the host should log in to.
type Target struct {
	IQN     string
	LUNs    []LUN
	Portals []Portal // at least one
}

// LUN is a LUN of a target.
type LUN struct {
	Number uint16
	Name   string // a-z 0-9 -
	NAA    string // 32 hex digits
	Size   string // for people
}

// Portal is an address of a target.
type Portal struct {
	Node    string
	Address string // host:port; IPv6 in brackets
	Tag     uint16
}

// Host returns the address without port and brackets.
func (p Portal) Host() string { h, _, _ := net.SplitHostPort(p.Address); return h }

// Port returns the TCP port.
func (p Portal) Port() string { _, port, _ := net.SplitHostPort(p.Address); return port }

// initiator is what open-iscsi is set up for.
type initiator struct {
	S         Setup
	Multipath bool
}

//go:embed templates
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"vendor":  func() string { return Vendor },
	"product": func() string { return Product },
	"secret":  func(user string) string { return "<CHAP-SECRET-OF-" + user + ">" },
	// One argument of a command, for a shell and for PowerShell.
	"quote":   func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" },
	"psquote": func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" },
	// What the template iscsid takes.
	"with_multipath":    func(s Setup) initiator { return initiator{s, true} },
	"without_multipath": func(s Setup) initiator { return initiator{s, false} },
}).ParseFS(files, "templates/*.tmpl"))

// Text returns how to set the client up. It ends in a newline.
func Text(c Client, s Setup) (string, error) {
	if err := s.validate(c); err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, string(c)+".tmpl", s); err != nil {
		return "", fmt.Errorf("configuration for %s: %w", c, err)
	}
	return b.String(), nil
}

func (s Setup) validate(c Client) error {
	if !slices.Contains(Clients(), c) {
		return fmt.Errorf("there is no configuration for %q", c)
	}
	if len(s.Targets) == 0 {
		return errors.New("there is no target to log in to")
	}
	for _, t := range s.Targets {
		if len(t.Portals) == 0 {
			return fmt.Errorf("target %s has no portal: no node that holds its data is known", t.IQN)
		}
		for _, p := range t.Portals {
			if _, _, err := net.SplitHostPort(p.Address); err != nil {
				return fmt.Errorf("portal %q of node %s: %w", p.Address, p.Node, err)
			}
		}
	}
	return nil
}

// Portals returns the portals of all targets, each once, in order.
func (s Setup) Portals() []Portal {
	var out []Portal
	for _, t := range s.Targets {
		for _, p := range t.Portals {
			if !slices.ContainsFunc(out, func(o Portal) bool { return o.Address == p.Address }) {
				out = append(out, p)
			}
		}
	}
	return out
}

// LUNs returns the LUNs of all targets.
func (s Setup) LUNs() []LUN {
	var out []LUN
	for _, t := range s.Targets {
		out = append(out, t.LUNs...)
	}
	return out
}

// First returns the first portal of a target.
func (t Target) First() Portal { return t.Portals[0] }

// Title is the first line of every configuration, without the mark of a comment.
func (s Setup) Title(what string) string {
	who := "LUNs that are open to anyone"
	if s.Host != "" {
		who = "host " + s.Host
	}
	return fmt.Sprintf("%s: %s of Sanctuary cluster %s.", what, who, s.Cluster)
}

// Blockdev returns the value of QEMU's -blockdev for a LUN of a target.
func (s Setup) Blockdev(t Target, l LUN) string {
	value := func(v string) string { return strings.ReplaceAll(v, ",", ",,") } // QEMU's way to write a comma in a value
	out := fmt.Sprintf("driver=iscsi,node-name=%s,transport=tcp,portal=%s,target=%s,lun=%d", l.Name, t.First().Address, t.IQN, l.Number)
	if len(s.Initiators) > 0 {
		out += ",initiator-name=" + value(s.Initiators[0])
	}
	if s.CHAPUser != "" {
		out += ",user=" + value(s.CHAPUser) + ",password-secret=chap"
	}
	return out + ",cache.direct=on"
}
