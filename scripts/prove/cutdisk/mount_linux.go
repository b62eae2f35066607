package cutdisk

import (
	"context"
	"fmt"
	"io"
	"log"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mount shows the disk to programs at an empty directory. It needs root and /dev/fuse. Unmount it with the function returned, once no
// program uses it any more.
func (d *Disk) Mount(dir string) (unmount func() error, err error) {
	cached := time.Hour // nobody but the kernel changes anything
	server, err := fs.Mount(dir, &node{d: d, f: d.root}, &fs.Options{
		EntryTimeout: &cached, AttrTimeout: &cached,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, MaxWrite: 1 << 20, FsName: "cutdisk", Name: "cutdisk", DisableXAttrs: true, Logger: log.New(io.Discard, "", 0)},
	})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return func() error {
		if err := server.Unmount(); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		server.Wait()
		return nil
	}, nil
}

// node is an inode for the kernel.
type node struct {
	fs.Inode
	d *Disk
	f *inode
}

var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeReaddirer = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeAllocater = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
)

// begin takes mu if the power is on and the inode is not broken. Without power it waits for the end of whoever asks.
func (n *node) begin(ctx context.Context) syscall.Errno {
	n.d.mu.Lock()
	switch {
	case !n.d.off && !n.f.broken:
		return 0
	case !n.d.off:
		n.d.mu.Unlock()
		return syscall.EIO
	}
	n.d.mu.Unlock()
	<-ctx.Done()
	return syscall.EINTR
}

func (n *node) end() { n.d.mu.Unlock() }

func (f *inode) attributes(a *fuse.Attr) {
	a.Ino, a.Size, a.Nlink, a.Blksize = f.number, uint64(f.seen.size), 1, pageBytes
	a.Blocks = uint64(len(f.seen.pages)) * pageBytes / sectorBytes
	a.Mode = syscall.S_IFREG | 0o600
	if f.dir {
		a.Mode, a.Nlink = syscall.S_IFDIR|0o700, 2
	}
}

func (n *node) child(ctx context.Context, f *inode, out *fuse.EntryOut) *fs.Inode {
	f.attributes(&out.Attr)
	return n.NewInode(ctx, &node{d: n.d, f: f}, fs.StableAttr{Mode: out.Mode & syscall.S_IFMT, Ino: f.number})
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.begin(ctx); errno != 0 {
		return nil, errno
	}
	defer n.end()
	f := n.f.entries[name]
	if f == nil {
		return nil, syscall.ENOENT
	}
	return n.child(ctx, f, out), 0
}

func (n *node) Create(ctx context.Context, name string, flags, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.begin(ctx); errno != 0 {
		return nil, nil, 0, errno
	}
	defer n.end()
	f := n.f.entries[name]
	switch {
	case f == nil:
		f = n.d.inode(false)
		n.d.name(naming{[]*inode{n.f}, []string{name}, []*inode{f}})
	case f.dir:
		return nil, nil, 0, syscall.EISDIR
	case flags&syscall.O_EXCL != 0:
		return nil, nil, 0, syscall.EEXIST
	case flags&syscall.O_TRUNC != 0:
		n.d.change(f, change{n: -1})
	}
	return n.child(ctx, f, out), nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *node) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.begin(ctx); errno != 0 {
		return nil, errno
	}
	defer n.end()
	if n.f.entries[name] != nil {
		return nil, syscall.EEXIST
	}
	f := n.d.inode(true)
	n.d.name(naming{[]*inode{n.f}, []string{name}, []*inode{f}})
	return n.child(ctx, f, out), 0
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, name, false)
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, name, true)
}

func (n *node) remove(ctx context.Context, name string, dir bool) syscall.Errno {
	if errno := n.begin(ctx); errno != 0 {
		return errno
	}
	defer n.end()
	switch f := n.f.entries[name]; {
	case f == nil:
		return syscall.ENOENT
	case f.dir && !dir:
		return syscall.EISDIR
	case !f.dir && dir:
		return syscall.ENOTDIR
	case len(f.entries) > 0:
		return syscall.ENOTEMPTY
	}
	n.d.name(naming{[]*inode{n.f}, []string{name}, []*inode{nil}})
	return 0
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if errno := n.begin(ctx); errno != 0 {
		return errno
	}
	defer n.end()
	target, ok := to.(*node)
	f := n.f.entries[name]
	switch {
	case !ok || flags&^unix.RENAME_NOREPLACE != 0:
		return syscall.EINVAL
	case f == nil:
		return syscall.ENOENT
	case target.f.entries[newName] == f:
		return 0
	case target.f.entries[newName] != nil && flags != 0:
		return syscall.EEXIST
	}
	if old := target.f.entries[newName]; old != nil && (old.dir != f.dir || len(old.entries) > 0) {
		return syscall.ENOTEMPTY
	}
	n.d.name(naming{[]*inode{target.f, n.f}, []string{newName, name}, []*inode{f, nil}})
	return 0
}

func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	if errno := n.begin(ctx); errno != 0 {
		return nil, errno
	}
	defer n.end()
	var list []fuse.DirEntry
	for name, f := range n.f.entries {
		e := fuse.DirEntry{Name: name, Ino: f.number, Mode: syscall.S_IFREG}
		if f.dir {
			e.Mode = syscall.S_IFDIR
		}
		list = append(list, e)
	}
	return fs.NewListDirStream(list), 0
}

func (n *node) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if errno := n.begin(ctx); errno != 0 {
		return errno
	}
	defer n.end()
	n.f.attributes(&out.Attr)
	return 0
}

func (n *node) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if errno := n.begin(ctx); errno != 0 {
		return errno
	}
	defer n.end()
	if size, ok := in.GetSize(); ok && int64(size) != n.f.seen.size {
		n.d.change(n.f, change{off: int64(size), n: -1})
	}
	n.f.attributes(&out.Attr)
	return 0
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.begin(ctx); errno != 0 {
		return nil, 0, errno
	}
	defer n.end()
	if flags&syscall.O_TRUNC != 0 {
		n.d.change(n.f, change{n: -1})
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *node) Read(ctx context.Context, _ fs.FileHandle, dst []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if errno := n.begin(ctx); errno != 0 {
		return nil, errno
	}
	defer n.end()
	return fuse.ReadResultData(dst[:n.f.seen.read(off, dst)]), 0
}

func (n *node) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if errno := n.begin(ctx); errno != 0 {
		return 0, errno
	}
	defer n.end()
	n.d.change(n.f, change{off: off, data: append(make([]byte, 0, len(data)), data...)})
	return uint32(len(data)), 0
}

// Fsync is fsync and fdatasync, of files and directories.
func (n *node) Fsync(ctx context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	if errno := n.begin(ctx); errno != 0 {
		return errno
	}
	defer n.end()
	n.d.sync(n.f)
	return 0
}

func (n *node) Allocate(ctx context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if errno := n.begin(ctx); errno != 0 {
		return errno
	}
	defer n.end()
	end := int64(off + size)
	switch {
	case mode&unix.FALLOC_FL_PUNCH_HOLE != 0:
		if length := min(end, n.f.seen.size) - int64(off); length > 0 {
			n.d.change(n.f, change{off: int64(off), n: length})
		}
	case mode&^unix.FALLOC_FL_KEEP_SIZE != 0:
		return syscall.EOPNOTSUPP
	case mode == 0 && end > n.f.seen.size:
		n.d.change(n.f, change{off: end, n: -1})
	}
	return 0
}

func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	const blocks = 64 << 30 / pageBytes
	out.Bsize, out.Frsize, out.NameLen = pageBytes, pageBytes, 255
	out.Blocks, out.Bfree, out.Bavail, out.Files, out.Ffree = blocks, blocks, blocks, 1<<20, 1<<20
	return 0
}
