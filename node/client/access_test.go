package client_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

func clientOf(t *testing.T, nodes ...*node) *client.Client {
	t.Helper()
	var addresses []string
	for _, n := range nodes {
		addresses = append(addresses, n.addr())
	}
	c, err := client.New(client.Config{Addresses: addresses, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestRequestsAboutAccess(t *testing.T) {
	n := newNode(t, ok(map[string]any{}))
	c := clientOf(t, n)
	seven, key, on, ctx := uint16(7), uint64(0xabcd0001), true, t.Context()
	for _, call := range []func() error{
		func() error { _, err := c.Hosts(ctx); return err },
		func() error { _, err := c.Host(ctx, "a/b"); return err },
		func() error {
			_, err := c.SetHost(ctx, "esx", api.HostSpec{Initiators: []string{"iqn.x:y"}, CHAP: &api.CHAPSpec{User: "u", Secret: "s"}}, true)
			return err
		},
		func() error { _, err := c.SetHost(ctx, "esx", api.HostSpec{}, false); return err },
		func() error { return c.DeleteHost(ctx, "esx", true) },
		func() error { _, err := c.GrantLUN(ctx, "vm1", "esx", &seven); return err },
		func() error { _, err := c.GrantLUN(ctx, "vm1", "esx", nil); return err },
		func() error { _, err := c.RevokeLUN(ctx, "vm1", "esx"); return err },
		func() error { _, err := c.OpenLUN(ctx, "vm1", api.LUNOpen{Open: true}); return err },
		func() error { _, err := c.ChangeLUN(ctx, "vm1", api.LUNChange{NonOptimizedPaths: &on}); return err },
		func() error { _, err := c.Targets(ctx); return err },
		func() error { return c.CloseSession(ctx, "alpha.17", "iqn.x:y") },
		func() error { _, err := c.Reservations(ctx, "vm1"); return err },
		func() error { _, err := c.PurgeReservations(ctx, "vm1", api.ReservationPurge{Key: &key}); return err },
		func() error { _, err := c.PurgeReservations(ctx, "vm1", api.ReservationPurge{All: true}); return err },
		func() error {
			_, err := c.PurgeReservations(ctx, "vm1", api.ReservationPurge{Initiator: "iqn.x:y"})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"GET /v1/hosts", "GET /v1/hosts/a%2Fb",
		`PUT /v1/hosts/esx?create=true {"initiators":["iqn.x:y"],"chap":{"user":"u","secret":"s"}}`, "PUT /v1/hosts/esx {}",
		"DELETE /v1/hosts/esx?force=true", `PUT /v1/luns/vm1/hosts/esx {"number":7}`, "PUT /v1/luns/vm1/hosts/esx {}", "DELETE /v1/luns/vm1/hosts/esx",
		`PUT /v1/luns/vm1/access {"open":true}`, `PATCH /v1/luns/vm1 {"non_optimized_paths":true}`, "GET /v1/targets",
		"DELETE /v1/sessions/alpha.17?initiator=iqn.x%3Ay", "GET /v1/luns/vm1/reservations", "DELETE /v1/luns/vm1/reservations?key=abcd0001",
		"DELETE /v1/luns/vm1/reservations?all=true", "DELETE /v1/luns/vm1/reservations?initiator=iqn.x%3Ay",
	}
	var got []string
	for _, r := range n.seen() {
		got = append(got, strings.TrimSpace(r))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A delete whose answer was lost has been done when the next attempt finds nothing; one that never got there has not.
func TestWhatIsGoneAfterALostAnswerWasDeleted(t *testing.T) {
	for name, call := range map[string]func(context.Context, *client.Client) error{
		"host":    func(ctx context.Context, c *client.Client) error { return c.DeleteHost(ctx, "esx", false) },
		"session": func(ctx context.Context, c *client.Client) error { return c.CloseSession(ctx, "alpha.17", "iqn.x:y") },
	} {
		gone := refuse(api.NotFound("there is none"))
		if err := call(t.Context(), clientOf(t, newNode(t, hangUp), newNode(t, gone))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var p *api.Problem
		if err := call(t.Context(), clientOf(t, newNode(t, gone))); !errors.As(err, &p) || p.Code != api.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}
