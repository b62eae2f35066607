// Package guest tries the product with what a Linux host has: the kernel's iSCSI initiator, dm-multipath, sg3-utils and file
// systems, in a QEMU guest (TestGuest…, which run with SANCTUARY_GUEST=1 only), and with QEMU's own initiator under a guest that
// boots from a LUN.
//
// Invariant: a guest sees two data nodes and a witness, each a process of its own on loopback, at the addresses they advertise
// (10.0.2.2, QEMU's name for the machine it runs on); what it does wrong is the product's fault or the test's, never left
// over from another test: every test has LUNs of its own.
// It judges function and failover. Without KVM a guest is far too slow to say anything about speed.
package guest
