package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) lunResize() *cobra.Command {
	var size sizeFlag
	cmd := &cobra.Command{
		Use: "resize NAME --size SIZE", Short: "Make a LUN larger, while it is used", Args: oneName("the name or ID of the LUN"),
		Long: `Make a LUN larger, while it is used. It cannot be made smaller: what lies behind would be lost.

Space is taken in the pools when it is written, not now. Initiators are told at their next command; what they then need:

  Linux       echo 1 > /sys/block/sdX/device/rescan for each path, then multipathd resize map NAME, and grow the file system
  ESXi        rescan the adapter, then increase the datastore
  Windows     Update-HostStorageCache, then extend the volume
  QEMU        block_resize, or at the next start`,
		Example:           "  sanctuary lun resize vm1 --size 20GiB",
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == 0 {
				return &usageError{cmd.CommandPath(), errors.New("say how large: --size 20GiB")}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
				bytes := int64(size)
				l, err := cl.ChangeLUN(cmd.Context(), args[0], api.LUNChange{SizeBytes: &bytes})
				if err != nil {
					return err
				}
				return c.print(l, func(w io.Writer) {
					_, _ = fmt.Fprintf(w, "LUN %s has %s now. Let its initiators look again: see sanctuary lun resize --help\n", l.Name, formatSize(l.SizeBytes))
				})
			})(cmd, args)
		},
	}
	cmd.Flags().Var(&size, "size", "new capacity: a whole number with KiB, MiB, GiB or TiB; a multiple of 4KiB, at most 16TiB")
	return cmd
}
