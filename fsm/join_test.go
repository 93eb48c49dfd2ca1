package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// joinWith makes a token for a node and joins with it.
func (r *region) joinWith(token, name string, key byte) *Join {
	r.t.Helper()
	r.do(&CreateJoinToken{Hash: secretOf(token), Kind: gpuai.IdentityNode, TTL: gpuai.Hour, For: name})
	c := &Join{Token: secretOf(token), Identity: node(name), Key: gpuai.SubjectHash{key}}
	r.do(c)
	return c
}

// Case 34: a used token is good for the key and the name of its first use only, as
// often as its answer is lost, and for nobody once another was used for the node.
func TestCase34UsedTokenIsBound(t *testing.T) {
	r := secured(t)
	a := r.joinWith("a", "n1", 1)
	r.do(a)
	other := *a
	other.Key = gpuai.SubjectHash{9}
	r.refuse(&other, gpuai.Unauthenticated)
	other = *a
	other.Identity = node("n2")
	r.refuse(&other, gpuai.Forbidden)
	before := r.m.Standing(node("n1")).Before
	b := r.joinWith("b", "n1", 2)
	for _, m := range []*Machine{r.m.Fork(), restored(t, r.m)} {
		if res := m.MayJoin(a); res.Code != gpuai.Unauthenticated {
			t.Errorf("a token beside which another was used is answered again: %+v", res)
		}
		if res := m.MayJoin(b); res.Code != gpuai.OK {
			t.Errorf("the newest token: %+v", res)
		}
		if s := m.Standing(node("n1")); s.Good(before) || s.Token != b.Token {
			t.Errorf("%+v", s)
		}
	}
	r.refuse(a, gpuai.Unauthenticated)
	r.do(b)
	// Also for the same host, which has used both.
	c := r.joinWith("c", "n1", 2)
	r.refuse(b, gpuai.Unauthenticated)
	r.do(c)
	r.do(&RevokeIdentity{node("n1")})
	r.refuse(c, gpuai.Forbidden)
}

// Two tokens that are used for one node in one entry, as by two servers: the
// second alone is good.
func TestTokensOfOneEntry(t *testing.T) {
	r := secured(t)
	r.do(&CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour})
	r.do(&CreateJoinToken{Hash: secretOf("b"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour, For: "n1"})
	a := &Join{Token: secretOf("a"), Identity: node("n1"), Key: gpuai.SubjectHash{1}}
	b := &Join{Token: secretOf("b"), Identity: node("n1"), Key: gpuai.SubjectHash{2}}
	for i, res := range r.apply(a, b).Results {
		if res.Code != gpuai.OK {
			t.Fatalf("%d: %+v", i, res)
		}
	}
	if s := r.m.Standing(node("n1")); s.Token != b.Token {
		t.Errorf("%+v", s)
	}
	r.refuse(a, gpuai.Unauthenticated)
}

// A contributor's token for any node is not good for the name of one that is
// another's, also where nobody remembers a join of it.
func TestTokenTakesNobodysNode(t *testing.T) {
	r := secured(t)
	r.node("n1", 1)
	r.do(&CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour, Contributor: "carol"})
	r.refuse(&Join{Token: secretOf("a"), Identity: node("n1"), Key: gpuai.SubjectHash{1}}, gpuai.Conflict)
	r.do(&CreateJoinToken{Hash: secretOf("b"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour})
	r.do(&Join{Token: secretOf("b"), Identity: node("n1"), Key: gpuai.SubjectHash{1}})
}

// Who joined and never came is forgotten, and so is its name; none of its
// certificates is good from then on, and somebody new may have the name.
func TestIdentitiesAreForgotten(t *testing.T) {
	r := secured(t)
	r.joinWith("a", "never", 1)
	r.joinWith("b", "here", 1)
	r.joinWith("c", "bad", 1)
	r.joinWith("d", "worse", 1)
	r.node("here", 1)
	r.node("worse", 1)
	issued := r.m.Stamp()
	r.do(&RevokeIdentity{node("bad")})
	r.do(&RevokeIdentity{node("worse")})
	revoked := r.m.Stamp()
	r.wait(IdentityKept - gpuai.Minute)
	if s := r.m.Standing(node("bad")); !s.Revoked || r.m.joinTokenSlots.Len() != 0 {
		t.Errorf("%+v; %d join tokens", s, r.m.joinTokenSlots.Len())
	}
	r.do(&RevokeIdentity{node("never")}) // it is known for as long again
	r.wait(2 * gpuai.Minute)
	for name, known := range map[string]bool{"never": true, "here": true, "bad": false, "worse": true} {
		if s := r.m.Standing(node(name)); s.Known != known || s.Good(issued) != (name == "here") || s.Good(revoked) != (name == "here") {
			t.Errorf("%s: %+v", name, s)
		}
	}
	// A certificate that is newer than this server's state, and one of who joined
	// behind a backup, are not judged by who is known.
	if s := r.m.Standing(node("bad")); s.Good(r.m.Stamp()) || !s.Good(r.m.Stamp()+1) {
		t.Errorf("%+v", s)
	}
	r.wait(IdentityKept)
	if n := r.m.identitySlots.Len(); n != 2 {
		t.Errorf("%d identities are kept, want those of the two nodes that have registered", n)
	}
	m := restored(t, r.m)
	if at := m.expiries.n.Get(); *at != 0 || m.NextDeadline() != r.m.NextDeadline() {
		t.Errorf("%d records are to be forgotten", *at)
	}
	r.do(&CreateJoinToken{Hash: secretOf("e"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour})
	r.do(&Join{Token: secretOf("e"), Identity: node("bad"), Key: gpuai.SubjectHash{2}})
	if s := r.m.Standing(node("bad")); s.Good(revoked) || !s.Good(r.m.Stamp()) {
		t.Errorf("who has the name now: %+v", s)
	}
	r.node("bad", 1)
	r.wait(2 * IdentityKept)
	if s := r.m.Standing(node("bad")); !s.Known {
		t.Errorf("a node that came: %+v", s)
	}
}

// A server's identity is forgotten once the server was removed, for good, and not
// before.
func TestServerIdentitiesAreForgotten(t *testing.T) {
	r := secured(t)
	for _, name := range []string{"s1", "s2"} {
		r.do(&CreateJoinToken{Hash: secretOf(name), Kind: gpuai.IdentityServer, TTL: gpuai.Hour})
		r.do(&Join{Token: secretOf(name), Identity: serverNamed(name), Key: gpuai.SubjectHash{1}})
	}
	r.do(&RevokeIdentity{serverNamed("s2")})
	r.wait(2 * IdentityKept)
	if n := r.m.identitySlots.Len(); n != 2 {
		t.Fatalf("%d identities are kept", n)
	}
	r.do(&RetireServer{Server: "s2"})
	r.wait(2 * gpuai.Minute)
	s1, s2 := r.m.Standing(serverNamed("s1")), r.m.Standing(serverNamed("s2"))
	if !s1.Good(r.m.Stamp()) || s2.Known || s2.Good(r.m.Stamp()) || s2.Good(r.m.Stamp()+1) {
		t.Errorf("%+v, %+v", s1, s2)
	}
}

// Case 38: the certificates of who joined behind a backup are good in the epoch
// that it begins, for as long as they can be.
func TestCase38StrangersCertificates(t *testing.T) {
	r := secured(t)
	behind := r.m.Stamp() + 100
	r.restore(testEpoch)
	if s := r.m.Standing(node("n1")); !s.Good(behind) || s.Good(r.m.Stamp()) {
		t.Errorf("%+v", s)
	}
	r.wait(IdentityKept + gpuai.Hour)
	if s := r.m.Standing(node("n1")); s.Good(behind) {
		t.Errorf("long after: %+v", s)
	}
}

// Nodes that live for a moment join for ever: what the region remembers of them
// is what joined within two days.
func TestShortLivedNodesAreForgotten(t *testing.T) {
	hosts, batch := 100_000, 500
	if brief() {
		hosts, batch = 10_000, 50
	}
	r := secured(t)
	r.check = false
	most, strings := uint32(0), r.m.strs.Len()
	for i := 0; i < hosts; i += batch {
		r.time = r.time.Add(gpuai.Hour)
		var tokens, joins []Command
		for j := i; j < i+batch; j++ {
			name := fmt.Sprint("n", j)
			tokens = append(tokens, &CreateJoinToken{Hash: secretOf(name), Kind: gpuai.IdentityNode, TTL: gpuai.MaxJoinTTL})
			joins = append(joins, &Join{Token: secretOf(name), Identity: node(name), Key: secretOf(name)})
		}
		r.made(tokens)
		r.made(joins)
		r.log = nil
		most = max(most, r.m.identitySlots.Len())
		if n := r.m.joinTokenSlots.Len(); int(n) > 2*batch {
			t.Fatalf("%d join tokens are kept", n)
		}
	}
	kept := uint32(batch) * uint32(IdentityKept/gpuai.Hour+1)
	if most > kept || r.m.identities.Len() > kept+uint32(batch) || r.m.strs.Len() != strings {
		t.Errorf("%d identities were kept at a time, in a table of %d, and %d names", most, r.m.identities.Len(), r.m.strs.Len())
	}
	if err := r.m.Check(); err != nil {
		t.Fatal(err)
	}
	// The last go at once: in parts.
	r.time = r.time.Add(2 * IdentityKept)
	for r.m.identitySlots.Len() > 0 {
		before := r.m.identitySlots.Len()
		r.apply(&Tick{})
		if gone := before - r.m.identitySlots.Len(); gone > WorkPerEntry/4/workEnd || gone == 0 {
			t.Fatalf("an entry forgot %d identities", gone)
		}
	}
	if err := r.m.Check(); err != nil {
		t.Fatal(err)
	}
}

// A node that a token gives to another contributor has earned nothing for it yet.
func TestTokenOfAnotherContributor(t *testing.T) {
	r := secured(t)
	r.node("n1", 1)
	r.do(&SetNodeOwner{Node: "n1", Contributor: "ann"})
	r.m.nodes.Mut(0).earned = 7
	r.m.nodes.Mut(0).ask, r.m.nodes.Mut(0).asked = 3, true
	r.m.sp.Commit()
	r.do(&CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour, For: "n1", Contributor: "bob"})
	r.check = false // what the node has earned is not in any books
	r.do(&Join{Token: secretOf("a"), Identity: node("n1"), Key: gpuai.SubjectHash{1}})
	if n := r.m.nodes.Get(0); n.earned != 0 || n.asked || r.m.text(n.owner) != "bob" {
		t.Errorf("the node is %s's, has earned %s and has a price of its own: %v", r.m.text(n.owner), n.earned, n.asked)
	}
	if err := r.m.Check(); err != nil {
		t.Error(err)
	}
}
