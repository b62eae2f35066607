package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func (c *cli) snapshotSchedule() *cobra.Command {
	var (
		every, prefix string
		keep          int
		off           bool
	)
	cmd := &cobra.Command{
		Use: "schedule LUN [--every TIME --keep N | --off]", Short: "Have snapshots taken and deleted regularly", Args: oneName("the name or ID of the LUN"),
		Long: `Have the LUN's owner take snapshots regularly, and delete the oldest of those it has taken when there are more than --keep. Without
--every and --off the schedules of the LUN are shown.

A LUN may have up to 8 schedules; --name-prefix tells them apart, and begins their snapshots' names (hourly, daily or weekly by
default). Times are counted from Monday 00:00 UTC: every 24h is midnight UTC. What was missed while the LUN had no owner is not
made up for, but for the last one. Snapshots taken by hand are never deleted by a schedule.

--off removes the schedule of that prefix, or all. Its snapshots stay.`,
		Example: `  sanctuary lun snapshot schedule vm1 --every 1h --keep 24
  sanctuary lun snapshot schedule vm1 --every 24h --keep 7
  sanctuary lun snapshot schedule vm1 --every 7d --keep 4
  sanctuary lun snapshot schedule vm1
  sanctuary lun snapshot schedule vm1 --off --name-prefix hourly`,
		ValidArgsFunction: c.completeLUN,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := scheduleOf(every, keep, prefix, off)
			if err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			return c.asking(func(cmd *cobra.Command, cl *client.Client, args []string) error {
				switch {
				case off:
					if _, err := cl.RemoveSchedule(cmd.Context(), args[0], prefix); err != nil {
						return err
					}
				case every != "":
					if _, err := cl.SetSchedule(cmd.Context(), args[0], spec); err != nil {
						return err
					}
				}
				l, err := cl.Schedules(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return c.print(l, func(w io.Writer) { printSchedules(w, l.LUN, l.Schedules) })
			})(cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&every, "every", "", "how often: a number with m, h, d or w, for example 1h or 7d")
	f.IntVar(&keep, "keep", 0, "how many of them to keep, 1 to 256")
	f.StringVar(&prefix, "name-prefix", "", "names the schedule, and begins its snapshots' names (default hourly, daily, weekly or every-…)")
	f.BoolVar(&off, "off", false, "remove the schedule, or all without --name-prefix")
	return cmd
}

// scheduleOf reads the flags of schedule.
func scheduleOf(every string, keep int, prefix string, off bool) (api.Schedule, error) {
	switch {
	case off && (every != "" || keep != 0):
		return api.Schedule{}, errors.New("give --off, or --every and --keep")
	case off:
		return api.Schedule{}, nil
	case every == "" && (keep != 0 || prefix != ""):
		return api.Schedule{}, errors.New("say how often: --every 1h")
	case every == "":
		return api.Schedule{}, nil
	case keep < 1 || keep > 256:
		return api.Schedule{}, errors.New("say how many to keep, 1 to 256: --keep 24")
	}
	d, err := parseInterval(every)
	if err != nil {
		return api.Schedule{}, err
	}
	return api.Schedule{Prefix: prefix, EverySeconds: int64(d / time.Second), Keep: keep}, nil
}

// parseInterval reads a time like 90m, 1h, 1d or 2w.
func parseInterval(text string) (time.Duration, error) {
	bad := fmt.Errorf("--every %q: use a whole number with m, h, d or w, from 1m to 366d, for example 1h or 7d", text)
	var n int64
	var unit string
	if _, err := fmt.Sscanf(text, "%d%s", &n, &unit); err != nil || n < 1 || n > 366*24*60 {
		return 0, bad
	}
	per, ok := map[string]time.Duration{"m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}[unit]
	d := time.Duration(n) * per
	if !ok || d > 366*24*time.Hour {
		return 0, bad
	}
	return d, nil
}
