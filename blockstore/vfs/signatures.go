package vfs

import (
	"encoding/binary"
	"slices"
)

// poolMagic begins the header of a pool of ours; package blockstore writes it.
const poolMagic = "SANCPOOL"

// magics are what is recognised by bytes at a fixed place; negative places count from the end of the device. The values are
// those that the programs concerned write, as libblkid (util-linux) and the kernel look for them.
var magics = []struct {
	what  string
	magic string
	at    []int64
}{
	{"a partition table (GPT)", "EFI PART", []int64{512, 4096, -512, -4096}},
	{"an ext2, ext3 or ext4 file system", "\x53\xef", []int64{1080}},
	{"an XFS file system", "XFSB", []int64{0}},
	{"a Btrfs file system", "_BHRfS_M", []int64{64<<10 + 64, 64<<20 + 64}},
	{"an F2FS file system", "\x10\x20\xf5\xf2", []int64{1024}},
	{"a JFS file system", "JFS1", []int64{32 << 10}},
	{"a ReiserFS file system", "ReIsEr", []int64{64<<10 + 52, 8<<10 + 52}},
	{"a NILFS2 file system", "\x34\x34", []int64{1030}},
	{"a GFS2 file system", "\x01\x16\x19\x70", []int64{64 << 10}},
	{"an OCFS2 file system", "OCFSV2", []int64{1024, 2048, 4096}},
	{"an APFS container", "NXSB", []int64{32}},
	{"an HFS+ file system", "H+", []int64{1024}},
	{"a SquashFS image", "hsqs", []int64{0}},
	{"an EROFS image", "\xe2\xe1\xf5\xe0", []int64{1024}},
	{"an NTFS file system", "NTFS    ", []int64{3}},
	{"a ReFS file system", "ReFS\x00\x00\x00\x00", []int64{3}},
	{"an exFAT file system", "EXFAT   ", []int64{3}},
	{"a FAT file system", "FAT32   ", []int64{82}},
	{"a FAT file system", "FAT1", []int64{54}},
	{"an ISO 9660 image", "CD001", []int64{32<<10 + 1}},
	{"a UDF file system", "BEA01", []int64{32<<10 + 1, 34<<10 + 1}},
	{"a VMFS datastore", "\x0d\xd0\x01\xc0", []int64{1 << 20}},
	{"swap space", "SWAPSPACE2", []int64{4<<10 - 10, 8<<10 - 10, 16<<10 - 10, 32<<10 - 10, 64<<10 - 10}},
	{"swap space", "SWAP-SPACE", []int64{4<<10 - 10, 8<<10 - 10, 16<<10 - 10, 32<<10 - 10, 64<<10 - 10}},
	{"a hibernated system", "S1SUSPEND\x00", []int64{4<<10 - 10, 8<<10 - 10, 16<<10 - 10, 32<<10 - 10, 64<<10 - 10}},
	{"a LUKS volume", "LUKS\xba\xbe", []int64{0}},
	{"a LUKS volume", "SKUL\xba\xbe", []int64{16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20}},
	{"a BitLocker volume", "-FVE-FS-", []int64{3}},
	{"a dm-integrity device", "integrt\x00", []int64{0}},
	{"a dm-verity device", "verity\x00\x00", []int64{0}},
	{"a VDO volume", "dmvdo001", []int64{0}},
	{"a Stratis pool", "!Stra0tis\x86\xff\x02^\x41rh", []int64{516, 9 * 512}},
	{"a member of a bcache or bcachefs", "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", []int64{4<<10 + 24}},
	{"a member of a bcache or bcachefs", "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", []int64{4<<10 + 24}},
	{"a disk of Ceph", "bluestore block device", []int64{0}},
	{"a disk of Oracle ASM", "ORCLDISK", []int64{32}},
	{"a Windows dynamic disk", "PRIVHEAD", []int64{0xc00}},
	{"a member of a RAID (DDF)", "\xde\x11\xde\x11", []int64{-512}},
	{"a member of a RAID (Intel)", "Intel Raid ISM Cfg Sig. ", []int64{-1024}},
}

// lookers recognise what takes more than a comparison. They return what it is, "" if it is not there.
var lookers = []func(*image) (what string, off int64){lookLVM, lookMD, lookDRBD, lookZFS, lookMBR}

// lookLVM finds the label of a physical volume, which may be in any of the first four sectors.
func lookLVM(m *image) (string, int64) {
	for off := int64(0); off < 4*512; off += 512 {
		if m.has(off, "LABELONE") && m.has(off+24, "LVM2 001") {
			return "a physical volume of LVM", off
		}
	}
	return "", 0
}

// mdMagic is the magic of a superblock of Linux's software RAID.
const mdMagic = 0xa92b4efc

// lookMD finds md's superblocks: of version 1.1, 1.2 and 1.0 at the beginning, 4 KiB behind it and near the end, and of version
// 0.90 near the end in the byte order of the machine that wrote it.
func lookMD(m *image) (string, int64) {
	const what = "a member of a software RAID (md)"
	for _, off := range []int64{0, 4 << 10, (m.size/512 - 16) &^ 7 * 512} {
		if b := m.at(off, 8); binary.LittleEndian.Uint32(b) == mdMagic && binary.LittleEndian.Uint32(b[4:]) == 1 {
			return what, off
		}
	}
	off := m.size&^(64<<10-1) - 64<<10
	if b := m.at(off, 4); binary.LittleEndian.Uint32(b) == mdMagic || binary.BigEndian.Uint32(b) == mdMagic {
		return what, off
	}
	return "", 0
}

// lookDRBD finds internal metadata of DRBD: in the last 4 KiB, a magic in big endian, whose last digit is the version, behind seven
// numbers and the flags (version 8) or six and the flags (version 9).
func lookDRBD(m *image) (string, int64) {
	off := m.size&^4095 - 4096
	for _, at := range []int64{60, 52} {
		if x := binary.BigEndian.Uint32(m.at(off+at, 4)); x >= 0x83740267 && x <= 0x8374026f {
			return "a disk of DRBD", off + at
		}
	}
	return "", 0
}

// lookZFS finds an uberblock in any of the four labels of 256 KiB: two at the beginning, two at the end. Which of the slots of an
// uberblock ring are used depends on the sector size; the smallest slot has 1 KiB.
func lookZFS(m *image) (string, int64) {
	const label, ring, slot, magic = 256 << 10, 128 << 10, 1 << 10, 0x00bab10c
	end := m.size / label * label
	for _, l := range []int64{0, label, end - 2*label, end - label} {
		if l < 0 {
			continue
		}
		b := m.at(l+ring, ring)
		for i := 0; i < len(b); i += slot {
			if binary.LittleEndian.Uint64(b[i:]) == magic || binary.BigEndian.Uint64(b[i:]) == magic {
				return "a member of a ZFS pool", l + ring + int64(i)
			}
		}
	}
	return "", 0
}

// lookMBR finds a partition table of the old kind. Boot sectors of FAT and NTFS end with the same two bytes, and have code
// where the table would be: they are known by their names.
func lookMBR(m *image) (string, int64) {
	b := m.at(0, 512)
	if b[510] != 0x55 || b[511] != 0xaa {
		return "", 0
	}
	plausible, used := true, false
	for e := range slices.Chunk(b[446:510], 16) {
		kind, start, count := e[4], binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		empty := kind == 0 && start == 0 && count == 0
		plausible = plausible && (e[0] == 0 || e[0] == 0x80) && (empty || kind != 0 && count > 0)
		used = used || !empty
	}
	switch {
	case plausible && used:
		return "a partition table (MBR)", 510
	case slices.ContainsFunc([]string{"NTFS    ", "ReFS\x00\x00\x00\x00", "EXFAT   ", "-FVE-FS-"}, func(name string) bool { return m.has(3, name) }),
		m.has(54, "FAT"), m.has(82, "FAT"):
		return "", 0
	}
	return "a boot sector, or a partition table without partitions", 510
}
