package vfs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Signature is something that lies on a device and can be recognised.
type Signature struct {
	What   string // "an ext2, ext3 or ext4 file system"
	Offset int64  // in bytes, of what it was recognised by
	// Pool is the UUID of a pool of ours, 32 hex digits; empty for everything else.
	Pool string
}

func (s Signature) String() string { return fmt.Sprintf("%s (at byte %d)", s.What, s.Offset) }

// Signatures are what Probe has found: a pool of ours, or anything else, or both never, since the magic of a pool is the first thing on
// its device. None: the device looks empty.
type Signatures []Signature

// Pool returns the UUID of the pool of ours that lies on the device, and whether there is one.
func (s Signatures) Pool() (uuid string, ok bool) {
	if len(s) == 1 && s[0].Pool != "" {
		return s[0].Pool, true
	}
	return "", false
}

func (s Signatures) String() string {
	parts := make([]string, len(s))
	for i, x := range s {
		parts[i] = x.String()
	}
	return strings.Join(parts, ", ")
}

// ForeignError says that a device holds something that taking it would destroy.
type ForeignError struct {
	Path  string
	Found Signatures
}

// Error says what was found, and where.
func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s is not empty: it holds %s", e.Path, e.Found)
}

// Probe looks at what lies on a block device, or an image of one in a file, before it is taken. It claims nothing and changes nothing, so it can be
// asked about a device that is in use as well.
func Probe(path string) (Signatures, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !isBlockDevice(info) && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("look at %s: %w", path, ErrNotDevice)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read-only: nothing to lose
	size := info.Size()
	if isBlockDevice(info) {
		if size, err = deviceSize(f); err != nil {
			return nil, fmt.Errorf("size of %s: %w", path, err)
		}
	}
	found, err := probe(f, size)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	return found, nil
}

func isBlockDevice(info os.FileInfo) bool {
	return info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

// image is a device being looked at. Its first error is kept, and reads after it return zeros.
type image struct {
	r    io.ReaderAt
	size int64
	err  error
}

// at returns n bytes at offset off; zeros where there is no device.
func (m *image) at(off, n int64) []byte {
	b := make([]byte, n)
	if m.err != nil || off < 0 || off+n > m.size {
		return b
	}
	if _, err := m.r.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
		m.err = fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return b
}

// has says whether the bytes of magic stand at off.
func (m *image) has(off int64, magic string) bool {
	return string(m.at(off, int64(len(magic)))) == magic
}

func probe(r io.ReaderAt, size int64) (Signatures, error) {
	m := &image{r: r, size: size}
	if m.has(0, poolMagic) {
		// What else there seems to be is inside of LUNs.
		return Signatures{{What: "a pool of Sanctuary", Pool: hex.EncodeToString(m.at(16, 16))}}, m.err
	}
	var found Signatures
	add := func(what string, off int64) { found = append(found, Signature{What: what, Offset: off}) }
	for _, s := range magics {
		for _, off := range s.at {
			at := off
			if off < 0 {
				at = size + off
			}
			if at >= 0 && m.has(at, s.magic) {
				add(s.what, at)
				break
			}
		}
	}
	for _, look := range lookers {
		if what, off := look(m); what != "" {
			add(what, off)
		}
	}
	if len(found) == 0 {
		if off := m.anything(); off >= 0 {
			add("data of an unknown kind", off)
		}
	}
	return found, m.err
}

// edgeBytes at either end of a device are looked through for anything that is not zero.
const edgeBytes = 1 << 20

// anything returns the offset of the first byte that is not zero at either end of the device, -1 if there is none.
func (m *image) anything() int64 {
	for _, from := range []int64{0, max(0, m.size-edgeBytes)} {
		b := m.at(from, min(edgeBytes, m.size-from))
		if i := slices.IndexFunc(b, func(c byte) bool { return c != 0 }); i >= 0 {
			return from + int64(i)
		}
	}
	return -1
}
