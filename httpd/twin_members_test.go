package httpd

import (
	"context"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// memberExchanges are those of the routes of members.
var memberExchanges = []exchange{
	{"GET", "/v1/operator/members", "", 200, nil},
	{"GET", "/v1/operator/members?consistency=stale", "", 200, nil},
	{"POST", "/v1/operator/members", `{"server":"s2","address":"127.0.0.1:2"}`, 200, nil},
	{"POST", "/v1/operator/members", `{"server":"s2","address":"127.0.0.1:3"}`, 409, nil},
	{"POST", "/v1/operator/members", `{"server":"s2","addr":"127.0.0.1:2"}`, 400, nil},
	{"POST", "/v1/operator/members/s2/promote", "", 200, nil},
	{"POST", "/v1/operator/members/s2/promote", `{"force":true}`, 400, nil},
	{"POST", "/v1/operator/members/s2/remove", "", 200, nil},
	{"POST", "/v1/operator/members/s3/remove", "", 404, nil},
	{"POST", "/v1/operator/members/s1/remove", "", 409, nil},
}

func TestClientChangesMembers(t *testing.T) {
	c, ctx := connect(t, serve(t, newTwin()).URL), t.Context()
	if l, err := c.AddMember(ctx, gpuai.MemberRequest{Server: "s2", Address: "127.0.0.1:2"}); err != nil || len(l.Members) != 2 {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.PromoteMember(ctx, "s2"); err != nil || !l.Members[1].Voter {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.RemoveMember(ctx, "s2"); err != nil || len(l.Members) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.Members(ctx, true); err != nil || len(l.Removed) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := c.RemoveMember(ctx, "s1"); !is(err, gpuai.Conflict) {
		t.Errorf("the last one: %v", err)
	}
}

func (t *twin) Members(context.Context) gpuai.MemberList {
	t.mu.Lock()
	defer t.mu.Unlock()
	return gpuai.MemberList{Members: slices.Clone(t.members), Removed: slices.Clone(t.removed), Cluster: "c", Index: t.index}
}

func (t *twin) AddMember(_ context.Context, id gpuai.ServerID, addr string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.member(id); i >= 0 {
		return gpuai.NewError(gpuai.Conflict, "server "+string(id)+" is a member already")
	}
	t.members = append(t.members, gpuai.MemberStatus{Server: id, Address: addr})
	return nil
}

func (t *twin) PromoteMember(_ context.Context, id gpuai.ServerID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.member(id)
	if i < 0 {
		return notThere("member " + string(id))
	}
	t.members[i].Voter, t.members[i].Reachable, t.members[i].AppliedIndex = true, true, t.index
	return nil
}

func (t *twin) RemoveMember(_ context.Context, id gpuai.ServerID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.member(id)
	switch {
	case i < 0:
		return notThere("member " + string(id))
	case len(t.members) == 1:
		return gpuai.NewError(gpuai.Conflict, "server "+string(id)+" is the last voter")
	}
	t.members, t.removed = slices.Delete(t.members, i, i+1), append(t.removed, id)
	return nil
}

func (t *twin) member(id gpuai.ServerID) int {
	return slices.IndexFunc(t.members, func(m gpuai.MemberStatus) bool { return m.Server == id })
}
