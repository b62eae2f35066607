package vfs

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "make testdata/probe anew with the tools named in the test, which must be installed")

// sparse is a device as a list of what is not zero on it.
type sparse struct {
	size int64
	rows map[int64][]byte // by offset; rowBytes each, or as a test puts them
}

const rowBytes = 16

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, row := range s.rows {
		if from := max(at, off); from < min(at+int64(len(row)), off+int64(len(p))) {
			copy(p[from-off:], row[from-at:])
		}
	}
	return len(p), nil
}

func (s *sparse) put(off int64, text string) *sparse {
	if s.rows == nil {
		s.rows = map[int64][]byte{}
	}
	s.rows[off] = []byte(text)
	return s
}

// goldenBytes of either end of an image are kept as golden; less of one that has a secret's random bytes behind its header.
const goldenBytes = 72 << 10

var goldenHead = map[string]int{"luks1": 1 << 10, "luks2": 20 << 10}

// encode writes rows as "offset hex"; a row like the one before is "*".
func encodeGolden(image []byte, size int64, tail []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "size %d\n", size)
	part := func(from int64, data []byte) {
		var last []byte
		for row := range slices.Chunk(data, rowBytes) {
			if bytes.Count(row, []byte{0}) == len(row) {
				last = nil
			} else if bytes.Equal(row, last) {
				b.WriteString("*\n")
			} else {
				fmt.Fprintf(&b, "%x %x\n", from, row)
				last = row
			}
			from += int64(len(row))
		}
	}
	part(0, image)
	part(size-int64(len(tail)), tail)
	return b.String()
}

func decodeGolden(t *testing.T, text string) *sparse {
	t.Helper()
	s := &sparse{rows: map[int64][]byte{}}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if _, err := fmt.Sscanf(lines[0], "size %d", &s.size); err != nil {
		t.Fatal(err)
	}
	var off int64
	var row []byte
	for _, l := range lines[1:] {
		if l == "*" {
			off += rowBytes
		} else if _, err := fmt.Sscanf(l, "%x %x", &off, &row); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		s.rows[off] = slices.Clone(row)
	}
	return s
}

// What programs leave on a disk: made by them, and kept.
func TestProbeKnowsWhatRealToolsWrite(t *testing.T) {
	for name, test := range map[string]struct {
		bytes int64
		make  string // a shell command; $1 is the image
		want  string
	}{
		"ext2":     {8 << 20, "mkfs.ext2 -q -F $1", "ext2, ext3 or ext4 file system (at byte 1080)"},
		"ext4":     {8 << 20, "mkfs.ext4 -q -F $1", "ext2, ext3 or ext4 file system (at byte 1080)"},
		"xfs":      {300 << 20, "mkfs.xfs -q $1", "an XFS file system (at byte 0)"},
		"btrfs":    {128 << 20, "mkfs.btrfs -q $1", "a Btrfs file system (at byte 65600)"},
		"fat12":    {4 << 20, "mkfs.vfat -F 12 $1", "a FAT file system (at byte 54)"},
		"fat16":    {16 << 20, "mkfs.vfat -F 16 $1", "a FAT file system (at byte 54)"},
		"fat32":    {64 << 20, "mkfs.vfat -F 32 $1", "a FAT file system (at byte 82)"},
		"exfat":    {16 << 20, "mkfs.exfat $1", "an exFAT file system (at byte 3)"},
		"ntfs":     {16 << 20, "mkntfs -q -F -f $1", "an NTFS file system (at byte 3)"},
		"swap":     {8 << 20, "mkswap $1", "swap space (at byte 4086)"},
		"mbr":      {8 << 20, "echo 2048,4096 | sfdisk -q --label dos $1", "a partition table (MBR) (at byte 510)"},
		"mbrempty": {8 << 20, "echo label: dos | sfdisk -q $1", "a boot sector, or a partition table without partitions (at byte 510)"},
		"gpt":      {8 << 20, "echo 2048,4096 | sfdisk -q --label gpt $1", "a partition table (GPT) (at byte 512), a partition table (MBR) (at byte 510)"},
		"luks1":    {8 << 20, "echo secret | cryptsetup luksFormat -q --type luks1 --iter-time 10 $1 -", "a LUKS volume (at byte 0)"},
		"luks2":    {32 << 20, "echo secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $1 -", "a LUKS volume (at byte 0), a LUKS volume (at byte 16384)"},
		"lvm": {
			16 << 20, `d=$(losetup -f --show $1); pvcreate -q --devices $d --nohints --config 'devices{scan=["/dev"]}' $d; losetup -d $d`,
			"a physical volume of LVM (at byte 512)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			golden := filepath.Join("testdata", "probe", name+".txt")
			if *update {
				path := filepath.Join(t.TempDir(), "image")
				if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, test.bytes)); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command("bash", "-euc", "set -- "+path+"; "+test.make).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				image, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				head := goldenBytes
				if n, ok := goldenHead[name]; ok {
					head = n
				}
				text := encodeGolden(image[:head], test.bytes, image[test.bytes-goldenBytes:])
				if err := errors.Join(os.MkdirAll(filepath.Dir(golden), 0o755), os.WriteFile(golden, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			image := decodeGolden(t, string(text))
			found, err := probe(image, image.size)
			if err != nil || !strings.Contains(found.String(), test.want) {
				t.Errorf("found %s, %v; want %s", found, err, test.want)
			}
			if _, ours := found.Pool(); ours {
				t.Error("taken for a pool of ours")
			}
		})
	}
}

// What no tool here makes, from its description.
func TestProbeKnowsWhatIsDescribed(t *testing.T) {
	const size = 64<<20 + 12<<10 // no whole number of 64 KiB, so that places counted from the end are told apart
	for name, test := range map[string]struct {
		put  func(*sparse)
		want string
	}{
		"empty":       {func(*sparse) {}, ""},
		"pool":        {func(s *sparse) { s.put(0, "SANCPOOL\x01\x00\x00\x00\x00\x00\x04\x00"+"0123456789abcdef") }, "a pool of Sanctuary (at byte 0)"},
		"gpt 4k":      {func(s *sparse) { s.put(4096, "EFI PART") }, "a partition table (GPT) (at byte 4096)"},
		"gpt backup":  {func(s *sparse) { s.put(size-512, "EFI PART") }, fmt.Sprintf("a partition table (GPT) (at byte %d)", size-512)},
		"md 1.1":      {func(s *sparse) { s.put(0, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00") }, "a member of a software RAID (md) (at byte 0)"},
		"md 1.2":      {func(s *sparse) { s.put(4096, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00") }, "a member of a software RAID (md) (at byte 4096)"},
		"md 1.0":      {func(s *sparse) { s.put(size-8192, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00") }, fmt.Sprintf("a member of a software RAID (md) (at byte %d)", size-8192)},
		"md 0.90":     {func(s *sparse) { s.put(64<<20-64<<10, "\xfc\x4e\x2b\xa9") }, fmt.Sprintf("a member of a software RAID (md) (at byte %d)", 64<<20-64<<10)},
		"md 0.90 big": {func(s *sparse) { s.put(64<<20-64<<10, "\xa9\x2b\x4e\xfc") }, fmt.Sprintf("a member of a software RAID (md) (at byte %d)", 64<<20-64<<10)},
		"drbd 8":      {func(s *sparse) { s.put(size-4096+60, "\x83\x74\x02\x6b") }, fmt.Sprintf("a disk of DRBD (at byte %d)", size-4096+60)},
		"drbd 8 used": {func(s *sparse) { s.put(size-4096+60, "\x83\x74\x02\x6c") }, fmt.Sprintf("a disk of DRBD (at byte %d)", size-4096+60)},
		"drbd 9":      {func(s *sparse) { s.put(size-4096+52, "\x83\x74\x02\x6d") }, fmt.Sprintf("a disk of DRBD (at byte %d)", size-4096+52)},
		"zfs":         {func(s *sparse) { s.put(128<<10+4096, "\x0c\xb1\xba\x00\x00\x00\x00\x00") }, "a member of a ZFS pool (at byte 135168)"},
		"zfs at end":  {func(s *sparse) { s.put(64<<20-128<<10, "\x00\x00\x00\x00\x00\xba\xb1\x0c") }, "a member of a ZFS pool (at byte 66977792)"},
		"vmfs":        {func(s *sparse) { s.put(1<<20, "\x0d\xd0\x01\xc0") }, "a VMFS datastore (at byte 1048576)"},
		"refs":        {func(s *sparse) { s.put(3, "ReFS\x00\x00\x00\x00").put(510, "\x55\xaa") }, "a ReFS file system (at byte 3)"},
		"bcache":      {func(s *sparse) { s.put(4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81") }, "a member of a bcache or bcachefs (at byte 4120)"},
		"iso":         {func(s *sparse) { s.put(32769, "CD001") }, "an ISO 9660 image (at byte 32769)"},
		"bitlocker":   {func(s *sparse) { s.put(3, "-FVE-FS-").put(510, "\x55\xaa") }, "a BitLocker volume (at byte 3)"},
		"boot code":   {func(s *sparse) { s.put(0, "\xeb\x63\x90").put(510, "\x55\xaa") }, "a boot sector, or a partition table without partitions (at byte 510)"},
		"odd table": {func(s *sparse) {
			s.put(446, "\x7f\x01\x02\x03\x83\x01\x02\x03\x01\x00\x00\x00\x01\x00\x00\x00").put(510, "\x55\xaa")
		}, "a boot sector, or a partition table without partitions (at byte 510)"},
		"unknown":    {func(s *sparse) { s.put(77777, "x") }, "data of an unknown kind (at byte 77777)"},
		"at the end": {func(s *sparse) { s.put(size-1, "x") }, fmt.Sprintf("data of an unknown kind (at byte %d)", size-1)},
		"in a pool":  {func(s *sparse) { s.put(0, "SANCPOOL").put(1<<20, "\x0d\xd0\x01\xc0") }, "a pool of Sanctuary (at byte 0)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &sparse{size: size}
			test.put(s)
			found, err := probe(s, s.size)
			if err != nil || found.String() != test.want {
				t.Errorf("found %q, %v; want %q", found, err, test.want)
			}
		})
	}
	uuid, ok := Signatures{{What: "x", Pool: "30"}}.Pool()
	if !ok || uuid != "30" {
		t.Error(uuid, ok)
	}
}

// Every line of the table is found, by itself, at every place it names.
func TestEveryMagicIsFound(t *testing.T) {
	const size = 80 << 20
	for _, m := range magics {
		for _, off := range m.at {
			at := off
			if off < 0 {
				at += size
			}
			found, err := probe((&sparse{size: size}).put(at, m.magic), size)
			if err != nil || !slices.Contains(found, Signature{What: m.what, Offset: at}) {
				t.Errorf("%s at %d: found %q, %v", m.what, at, found, err)
			}
		}
	}
}

func TestProbeOfADiskThatCannotBeRead(t *testing.T) {
	broken := errors.New("medium error")
	if found, err := probe(failing{broken}, 1<<30); !errors.Is(err, broken) {
		t.Errorf("%q, %v: a disk that cannot be read looks empty", found, err)
	}
	if _, err := Probe(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Probe(os.DevNull); !errors.Is(err, ErrNotDevice) {
		t.Error(err)
	}
	small := filepath.Join(t.TempDir(), "small")
	if err := os.WriteFile(small, []byte("tiny"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := Probe(small); err != nil || found.String() != "data of an unknown kind (at byte 0)" {
		t.Errorf("%q, %v", found, err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }
