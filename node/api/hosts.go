package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// Host is an initiator, or a group of initiators that share one LUN map.
type Host struct {
	Name       string    `json:"name" doc:"Unique name"`
	Target     string    `json:"target" doc:"iSCSI name of the host's own target: it presents all LUNs granted to the host, under their numbers"`
	Initiators []string  `json:"initiators" nullable:"false" doc:"iSCSI names (iqn., eui., naa.)"`
	CHAP       *HostCHAP `json:"chap,omitempty" doc:"How its initiators prove who they are; absent: they are believed. Secrets are never shown"`
	SinglePath bool      `json:"single_path" doc:"Its initiators use one path: they are redirected to a LUN's owner instead of using ALUA"`
	LUNs       []HostLUN `json:"luns" nullable:"false" doc:"What it may use by grant, by number"`
}

// HostCHAP tells the names used in CHAP, without the secrets.
type HostCHAP struct {
	User       string `json:"user" doc:"Name the initiators give"`
	MutualUser string `json:"mutual_user,omitempty" doc:"Name the target gives when it proves itself; empty: it need not"`
}

// HostLUN is a LUN in a host's map.
type HostLUN struct {
	Number uint16 `json:"number" doc:"Logical unit number in the host's own target"`
	LUN    string `json:"lun" doc:"Its name"`
	ID     string `json:"id" doc:"Its UUID"`
}

// HostSpec is what a host should be.
type HostSpec struct {
	Initiators []string  `json:"initiators,omitempty" maxItems:"64" doc:"iSCSI names (iqn., eui., naa.); each may be in one host only" example:"[\"iqn.1998-01.com.vmware:esx1-4a5b6c7d\"]"`
	CHAP       *CHAPSpec `json:"chap,omitempty" doc:"Credentials; absent: none are asked for"`
	SinglePath bool      `json:"single_path,omitempty" doc:"Redirect its initiators to a LUN's owner: for initiators without multipath, like QEMU's own"`
}

// CHAPSpec sets credentials. The secrets carry no rules for the schema on purpose: a schema's error repeats the value.
type CHAPSpec struct {
	User         string `json:"user" doc:"Name the initiators give: 1 to 255 printable ASCII characters without spaces"`
	Secret       string `json:"secret,omitempty" writeOnly:"true" doc:"12 to 255 printable ASCII characters (Windows: 12 to 16); empty: the one it has"`
	MutualUser   string `json:"mutual_user,omitempty" doc:"Name the target gives when it proves itself; empty: it need not"`
	MutualSecret string `json:"mutual_secret,omitempty" writeOnly:"true" doc:"The target's secret, another one than secret; empty: the one it has"`
}

// HostList is what GET /v1/hosts answers.
type HostList struct {
	Hosts []Host `json:"hosts" nullable:"false"`
}

// LUNAccess says who may use a LUN.
type LUNAccess struct {
	Open       bool       `json:"open" doc:"Anyone who reaches a portal may use it, in the LUN's own target"`
	SinglePath bool       `json:"single_path" doc:"While open: initiators that belong to no host are redirected to the owner"`
	Hosts      []LUNGrant `json:"hosts" nullable:"false" doc:"Hosts that may use it"`
}

// LUNGrant is one host that may use a LUN.
type LUNGrant struct {
	Host   string `json:"host" doc:"Name of the host"`
	Number uint16 `json:"number" doc:"Logical unit number in the host's own target; in the LUN's own target it is 0"`
}

// LUNOpen says whether a LUN is open.
type LUNOpen struct {
	Open       bool `json:"open" doc:"Let anyone who reaches a portal use it"`
	SinglePath bool `json:"single_path,omitempty" doc:"While open: redirect initiators that belong to no host to the owner"`
}

// LUNGrantSpec asks for a grant.
type LUNGrantSpec struct {
	Number *uint16 `json:"number,omitempty" maximum:"254" doc:"Logical unit number in the host's own target; absent: one the host has not used, as far as possible"`
}

// LUNChange changes attributes of a LUN; those that are absent stay.
type LUNChange struct {
	NonOptimizedPaths *bool  `json:"non_optimized_paths,omitempty" doc:"Nodes that do not own the LUN serve data by forwarding it to the owner (ALUA Active/Non-optimized) instead of standing by"`
	ZeroDetection     *bool  `json:"zero_detection,omitempty" doc:"Store blocks that initiators write as zeros as unmapped ones, from now on. Every node must run a program that knows it"`
	SizeBytes         *int64 `json:"size_bytes,omitempty" doc:"New capacity in bytes, not less than it has: a multiple of 4096, at most 16 TiB. Initiators are told (unit attention 2Ah/09h)" example:"21474836480"`
}

// HostRequest is part of a request about one host.
type HostRequest struct {
	Hop
	Host string `path:"host" doc:"Name" minLength:"1" maxLength:"63"`
}

type (
	hostPutRequest struct {
		HostRequest
		Create bool `query:"create" doc:"Refuse to replace a host that exists"`
		Body   HostSpec
	}
	hostDeleteRequest struct {
		HostRequest
		Force bool `query:"force" doc:"Delete it although LUNs are granted to it: they are revoked, and its initiators cut off"`
	}
	lunOpenRequest struct {
		LUNRequest
		Body LUNOpen
	}
	lunChangeRequest struct {
		LUNRequest
		Body LUNChange
	}
	grantRequest struct {
		LUNRequest
		Host string `path:"host" doc:"Name of the host" minLength:"1" maxLength:"63"`
		Body LUNGrantSpec
	}
	revokeRequest struct {
		LUNRequest
		Host string `path:"host" doc:"Name of the host" minLength:"1" maxLength:"63"`
	}
)

// registerAccess registers what says who may use what.
func (s *Server) registerAccess() {
	huma.Register(s.api, reads("list-hosts", "/v1/hosts", "All hosts", "hosts"), s.listHosts)
	huma.Register(s.api, reads("get-host", "/v1/hosts/{host}", "One host and its LUN map", "hosts"), s.getHost)
	put := changes("put-host", http.MethodPut, "/v1/hosts/{host}", "Create or replace a host", "hosts", http.StatusOK, s.toLeader)
	put.Description = "A secret that is left empty stays as it is. Sessions that the change no longer allows are ended."
	huma.Register(s.api, put, s.putHost)
	huma.Register(s.api, changes("delete-host", http.MethodDelete, "/v1/hosts/{host}", "Delete a host", "hosts",
		http.StatusNoContent, s.toLeader), s.deleteHost)
	huma.Register(s.api, changes("set-lun-access", http.MethodPut, "/v1/luns/{lun}/access", "Open a LUN to anyone, or close it", "luns",
		http.StatusOK, s.toLeader), s.setOpen)
	huma.Register(s.api, changes("change-lun", http.MethodPatch, "/v1/luns/{lun}", "Change attributes of a LUN", "luns",
		http.StatusOK, s.toLeader), s.changeLUN)
	huma.Register(s.api, changes("grant-lun", http.MethodPut, "/v1/luns/{lun}/hosts/{host}", "Let a host use a LUN", "luns",
		http.StatusOK, s.toLeader), s.grantLUN)
	huma.Register(s.api, changes("revoke-lun", http.MethodDelete, "/v1/luns/{lun}/hosts/{host}", "Take a LUN from a host", "luns",
		http.StatusOK, s.toLeader), s.revokeLUN)
}

func (s *Server) listHosts(ctx context.Context, _ *request) (*reply[HostList], error) {
	hosts, err := s.svc.Hosts(ctx)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[HostList]{HostList{orEmpty(hosts)}}, nil
}

func (s *Server) getHost(ctx context.Context, in *HostRequest) (*reply[Host], error) {
	return s.host(ctx, in.Host)
}

func (s *Server) host(ctx context.Context, name string) (*reply[Host], error) {
	hosts, err := s.svc.Hosts(ctx)
	if err != nil {
		return nil, asProblem(err)
	}
	for _, h := range hosts {
		if h.Name == name {
			return &reply[Host]{h}, nil
		}
	}
	return nil, NotFound("there is no host %q", name)
}

func (s *Server) putHost(ctx context.Context, in *hostPutRequest) (*reply[Host], error) {
	if err := s.svc.SetHost(ctx, in.Host, in.Body, in.Create); err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	return s.host(ctx, in.Host)
}

func (s *Server) deleteHost(ctx context.Context, in *hostDeleteRequest) (*struct{}, error) {
	if _, err := s.host(ctx, in.Host); err != nil {
		return nil, err
	}
	if err := s.svc.RemoveHost(ctx, in.Host, in.Force); err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	return nil, nil
}

// after returns the LUN as it is after a change of the catalog on this node, its leader; unless the change failed.
func (s *Server) after(ctx context.Context, ref string, err error) (*reply[LUN], error) {
	if err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	l, err := s.lookup(ctx, ref, false)
	if err != nil {
		return nil, asProblem(err)
	}
	// The owner that was asked may not have heard of the change yet; this node has made it.
	if mine, err := s.svc.LUN(ctx, ref); err == nil {
		l.Access, l.NonOptimizedPaths, l.SizeBytes, l.Schedules = mine.Access, mine.NonOptimizedPaths, mine.SizeBytes, mine.Schedules
		l.ZeroDetection = mine.ZeroDetection
	}
	return &reply[LUN]{l}, nil
}

func (s *Server) setOpen(ctx context.Context, in *lunOpenRequest) (*reply[LUN], error) {
	return s.after(ctx, in.LUN, s.svc.OpenLUN(ctx, in.LUN, in.Body))
}

func (s *Server) changeLUN(ctx context.Context, in *lunChangeRequest) (*reply[LUN], error) {
	if in.Body.NonOptimizedPaths == nil && in.Body.SizeBytes == nil && in.Body.ZeroDetection == nil {
		return nil, Invalid("Give at least one attribute.", "nothing to change")
	}
	return s.after(ctx, in.LUN, s.svc.ChangeLUN(ctx, in.LUN, in.Body))
}

func (s *Server) grantLUN(ctx context.Context, in *grantRequest) (*reply[LUN], error) {
	return s.after(ctx, in.LUN, s.svc.GrantLUN(ctx, in.LUN, in.Host, in.Body.Number))
}

func (s *Server) revokeLUN(ctx context.Context, in *revokeRequest) (*reply[LUN], error) {
	return s.after(ctx, in.LUN, s.svc.RevokeLUN(ctx, in.LUN, in.Host))
}
