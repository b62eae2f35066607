// Package interop checks a LUN with initiators no one here wrote: libiscsi's tools, qemu-img, e2fsck. The tests run against
// the reference target too: what fails there is a mistake in the check.
//
// It holds tests only. They need real processes and packages of the machine, so they skip unless SANCTUARY_E2E=1; make e2e
// builds the binary and sets it.
package interop
