package crashdev

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"sanctuary/blockstore/vfs"
)

// Folder is a vfs.Folder of devices in memory, which lose their power together.
type Folder struct {
	mu    sync.Mutex
	power *Power
	files map[string]*Dev
	hook  func(name string, k Kind, off, n int64) error
}

var _ vfs.Folder = (*Folder)(nil)

// NewFolder returns an empty folder.
func NewFolder(power *Power) *Folder { return &Folder{power: power, files: map[string]*Dev{}} }

// SetHook makes every operation on a medium in the folder ask f first, as Dev.SetHook does. Creating one is an Allocate of its length.
func (f *Folder) SetHook(hook func(name string, k Kind, off, n int64) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
	for name, d := range f.files {
		f.hooked(name, d)
	}
}

func (f *Folder) hooked(name string, d *Dev) {
	if hook := f.hook; hook != nil {
		d.SetHook(func(k Kind, off, n int64) error { return hook(name, k, off, n) })
	} else {
		d.SetHook(nil)
	}
}

// List implements vfs.Folder.
func (f *Folder) List() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.power.Lost() {
		return nil, ErrPowerLost
	}
	return slices.Sorted(maps.Keys(f.files)), nil
}

// Create implements vfs.Folder.
func (f *Folder) Create(name string, sizeBytes int64) (vfs.Dev, error) {
	f.mu.Lock()
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		if err := hook(name, Allocate, 0, sizeBytes); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	first, err := f.power.Spend()
	if err != nil && !first {
		return nil, err
	}
	d := New(sizeBytes, f.power)
	f.files[name] = d
	f.hooked(name, d)
	return d, err
}

// Open implements vfs.Folder.
func (f *Folder) Open(name string) (vfs.Dev, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.files[name]
	switch {
	case f.power.Lost():
		return nil, ErrPowerLost
	case d == nil:
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	d.mu.Lock()
	closed, opened := d.closed, d.opened
	d.opened = true
	d.mu.Unlock()
	switch {
	case closed:
		d = d.Clone(f.power)
		d.opened = true
		f.files[name] = d
		f.hooked(name, d)
	case opened:
		return nil, vfs.ErrLocked
	}
	return d, nil
}

// Rename implements vfs.Folder.
func (f *Folder) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.files[from]
	if d == nil {
		return fmt.Errorf("%s: %w", from, fs.ErrNotExist)
	}
	first, err := f.power.Spend()
	if err != nil && !first {
		return err
	}
	delete(f.files, from)
	f.files[to] = d
	f.hooked(to, d)
	return err
}

// Remove implements vfs.Folder.
func (f *Folder) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files[name] == nil {
		return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	first, err := f.power.Spend()
	if err != nil && !first {
		return err
	}
	delete(f.files, name)
	return err
}

// Dev returns the medium of that name, nil if there is none.
func (f *Folder) Dev(name string) *Dev {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files[name]
}

// CloneForCrash returns the folder as a machine might find it after losing power now; Clone, with nothing lost. The original is not changed.
func (f *Folder) CloneForCrash(seed uint64, power *Power) *Folder {
	return f.clone(power, func(d *Dev, i int) *Dev { return d.CloneForCrash(seed+uint64(i)*977, power) })
}

// Clone is CloneForCrash for a process that was killed, not a machine.
func (f *Folder) Clone(power *Power) *Folder {
	return f.clone(power, func(d *Dev, _ int) *Dev { return d.Clone(power) })
}

func (f *Folder) clone(power *Power, of func(d *Dev, i int) *Dev) *Folder {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := NewFolder(power)
	for i, name := range slices.Sorted(maps.Keys(f.files)) {
		out.files[name] = of(f.files[name], i)
	}
	return out
}
