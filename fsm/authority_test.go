package fsm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// authority returns the command that makes the n-th authority of a test.
func authority(n byte) *PutAuthority {
	c := &PutAuthority{
		Hash: gpuai.SubjectHash{n}, Domain: "c0ffee", Certificate: bytes.Repeat([]byte{n}, 300),
		Key: bytes.Repeat([]byte{n, 7}, 60), Retire: gpuai.Hour,
	}
	if n > 1 {
		c.Replaces, c.Cross = gpuai.SubjectHash{n - 1}, bytes.Repeat([]byte{n, 1}, 150)
	}
	return c
}

func secretOf(text string) [32]byte { return sha256.Sum256([]byte(text)) }

func node(name string) gpuai.Identity {
	return gpuai.Identity{Kind: gpuai.IdentityNode, Name: name}
}

func serverNamed(name string) gpuai.Identity {
	return gpuai.Identity{Kind: gpuai.IdentityServer, Name: name}
}

// secured is a region with an authority.
func secured(t testing.TB) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.do(authority(1))
	return r
}

// Below their level, commands of authentication change nothing; at it they need
// an authority.
func TestAuthorityBelowItsLevel(t *testing.T) {
	r := newRegion(t)
	all := []Command{
		authority(1), &CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute},
		&Join{Token: secretOf("a"), Identity: node("n"), Key: gpuai.SubjectHash{1}}, &RevokeIdentity{node("n")}, &RetireAuthority{},
	}
	before := len(snapshotOf(t, r.m))
	for _, c := range all {
		r.refuse(c, gpuai.InvalidSpec)
	}
	if after := snapshotOf(t, r.m); len(after) != before || r.m.HasAuthority() {
		t.Errorf("a region below the level has something of authorities: %d bytes, %d before", len(after), before)
	}
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.refuse(all[1], gpuai.PreconditionFailed)
	r.refuse(all[3], gpuai.PreconditionFailed)
}

// A CA replaces another, which stays trusted for a while: also in a restored
// machine.
func TestAuthorityIsReplaced(t *testing.T) {
	r := secured(t)
	r.do(authority(1)) // a repeated one; it may seal the key anew
	wrong := authority(3)
	r.refuse(wrong, gpuai.Conflict) // it replaces one that does not issue
	if out := r.apply(authority(2)); out.Results[0].Code != gpuai.OK || !out.Trust {
		t.Fatalf("%+v", out)
	}
	r.refuse(authority(1), gpuai.Conflict)
	r.refuse(&RetireAuthority{Hash: gpuai.SubjectHash{1}}, gpuai.PreconditionFailed)
	r.refuse(&RetireAuthority{Hash: gpuai.SubjectHash{2}, Now: true}, gpuai.Conflict)
	r.refuse(&RetireAuthority{Hash: gpuai.SubjectHash{9}}, gpuai.NotFound)
	for _, m := range []*Machine{r.m, r.m.Fork(), restored(t, r.m)} {
		got := m.Authorities()
		if len(got) != 2 || got[0].Hash != (gpuai.SubjectHash{2}) || got[0].RetireAt != 0 || got[1].RetireAt != r.time.Add(gpuai.Hour) ||
			got[1].Domain != "c0ffee" || !bytes.Equal(got[0].Cross, authority(2).Cross) || !bytes.Equal(got[0].Key, authority(2).Key) {
			t.Errorf("%+v", got)
		}
	}
	r.wait(gpuai.Hour)
	r.do(&RetireAuthority{Hash: gpuai.SubjectHash{1}})
	if got := r.m.Authorities(); len(got) != 1 {
		t.Errorf("%+v", got)
	}
	for n := byte(3); n <= 5; n++ {
		r.do(authority(n))
	}
	r.refuse(authority(6), gpuai.TooLarge)
	r.do(&RetireAuthority{Hash: gpuai.SubjectHash{2}, Now: true})
	r.do(authority(6))
}

// A join token is good once, for one kind, for its time; the same host is
// answered again.
func TestJoinTokens(t *testing.T) {
	r := secured(t)
	key := func(n byte) gpuai.SubjectHash { return gpuai.SubjectHash{n} }
	r.do(&CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute, Contributor: "ann"})
	r.refuse(&CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute}, gpuai.Conflict)
	for _, bad := range []*CreateJoinToken{
		{Hash: secretOf("b"), TTL: gpuai.Minute}, {Hash: secretOf("b"), Kind: 9, TTL: gpuai.Minute},
		{Hash: secretOf("b"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour + 1}, {Hash: secretOf("b"), Kind: gpuai.IdentityNode},
		{Hash: secretOf("b"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute, For: "No"},
		{Hash: secretOf("b"), Kind: gpuai.IdentityServer, TTL: gpuai.Minute, Contributor: "ann"},
	} {
		r.refuse(bad, gpuai.InvalidSpec)
	}
	r.refuse(&Join{Token: secretOf("x"), Identity: node("n1"), Key: key(1)}, gpuai.Unauthenticated)
	r.refuse(&Join{Token: secretOf("a"), Identity: serverNamed("n1"), Key: key(1)}, gpuai.Forbidden)
	r.refuse(&Join{Token: secretOf("a"), Identity: node("N"), Key: key(1)}, gpuai.InvalidSpec)
	first := r.do(&Join{Token: secretOf("a"), Identity: node("n1"), Key: key(1)})
	r.do(&Join{Token: secretOf("a"), Identity: node("n1"), Key: key(1)}) // its answer was lost
	if res := r.refuse(&Join{Token: secretOf("a"), Identity: node("n2"), Key: key(2)}, gpuai.Unauthenticated); !strings.Contains(res.Detail, "used already") {
		t.Errorf("a replayed token: %s", res.Detail)
	}
	r.refuse(&Join{Token: secretOf("a"), Identity: node("n2"), Key: key(1)}, gpuai.Forbidden)
	want := Standing{Known: true, Before: gpuai.StampOf(0, first.Index), Token: secretOf("a"), Contributor: "ann"}
	for _, m := range []*Machine{r.m, restored(t, r.m)} {
		if got := m.Standing(node("n1")); got != want || !got.Good(m.Stamp()) || got.Good(want.Before-1) {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	r.node("n1", 1)
	if n, _ := r.m.Node("n1"); n.Contributor != "ann" {
		t.Errorf("the node of ann's token is %q's", n.Contributor)
	}
	// A token for any node is not good for the name of one that has joined.
	r.do(&CreateJoinToken{Hash: secretOf("c"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute})
	r.refuse(&Join{Token: secretOf("c"), Identity: node("n1"), Key: key(3)}, gpuai.Conflict)
	r.do(&CreateJoinToken{Hash: secretOf("d"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute, For: "n1"})
	r.refuse(&Join{Token: secretOf("d"), Identity: node("n3"), Key: key(3)}, gpuai.Forbidden)
	again := r.do(&Join{Token: secretOf("d"), Identity: node("n1"), Key: key(3)})
	if got := r.m.Standing(node("n1")); got.Good(gpuai.StampOf(0, again.Index-1)) || !got.Good(gpuai.StampOf(0, again.Index)) || got.Contributor != "" {
		t.Errorf("who joined anew has its older certificates: %+v", got)
	}
	r.wait(gpuai.Minute)
	if res := r.refuse(&Join{Token: secretOf("c"), Identity: node("n4"), Key: key(4)}, gpuai.Unauthenticated); !strings.Contains(res.Detail, "expired") {
		t.Errorf("an expired token: %s", res.Detail)
	}
	r.do(&CreateJoinToken{Hash: secretOf("e"), Kind: gpuai.IdentityServer, TTL: gpuai.Minute})
	if n := r.m.joinTokenSlots.Len(); n != 1 {
		t.Errorf("%d join tokens are kept, want the one that has not expired", n)
	}
}

// Case 34: the certificates of a stolen identity are void once it is revoked,
// until it joins again with a token that names it.
func TestCase34RevokedIdentity(t *testing.T) {
	r := secured(t)
	r.refuse(&RevokeIdentity{node("n1")}, gpuai.NotFound)
	r.do(&CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour})
	r.do(&Join{Token: secretOf("a"), Identity: node("n1"), Key: gpuai.SubjectHash{1}})
	if out := r.apply(&RevokeIdentity{node("n1")}); out.Results[0].Code != gpuai.OK || !out.Trust {
		t.Fatalf("%+v", out)
	}
	r.do(&RevokeIdentity{node("n1")})
	for _, m := range []*Machine{r.m, restored(t, r.m)} {
		if s := m.Standing(node("n1")); s.Good(m.Stamp()) || s.Good(m.Stamp()+1000) {
			t.Errorf("a revoked node is good: %+v", s)
		}
	}
	if s := r.m.Standing(serverNamed("n1")); s.Known || !s.Good(r.m.Stamp()) {
		t.Errorf("the server of the same name: %+v", s)
	}
	r.refuse(&Join{Token: secretOf("a"), Identity: node("n1"), Key: gpuai.SubjectHash{1}}, gpuai.Forbidden)
	r.do(&CreateJoinToken{Hash: secretOf("b"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour})
	r.refuse(&Join{Token: secretOf("b"), Identity: node("n1"), Key: gpuai.SubjectHash{2}}, gpuai.Conflict)
	r.do(&CreateJoinToken{Hash: secretOf("c"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour, For: "n1"})
	r.do(&Join{Token: secretOf("c"), Identity: node("n1"), Key: gpuai.SubjectHash{2}})
	if s := r.m.Standing(node("n1")); !s.Good(r.m.Stamp()) {
		t.Errorf("who joined again: %+v", s)
	}
	r.node("n9", 1) // it joined behind a backup that was restored
	r.do(&RevokeIdentity{node("n9")})
	r.do(&RetireServer{Server: "s"})
	if s := r.m.Standing(serverNamed("s")); s.Good(r.m.Stamp()) {
		t.Error("a server that was removed is good")
	}
}

// Case 38: a restored backup keeps authorities and revocations; join tokens are
// gone, and no server of the old region is trusted.
func TestCase38RestoreOfAuthorities(t *testing.T) {
	r := secured(t)
	for i, id := range []gpuai.Identity{node("n1"), node("n2"), serverNamed("s1")} {
		token := secretOf(fmt.Sprint(i))
		r.do(&CreateJoinToken{Hash: token, Kind: id.Kind, TTL: gpuai.Hour})
		r.do(&Join{Token: token, Identity: id, Key: gpuai.SubjectHash{1}})
	}
	r.do(&RevokeIdentity{node("n2")})
	r.do(&CreateJoinToken{Hash: secretOf("open"), Kind: gpuai.IdentityNode, TTL: gpuai.Hour})
	issued := r.m.Stamp()
	r.restore(testEpoch)
	for _, m := range []*Machine{r.m, restored(t, r.m)} {
		n1, n2, s1 := m.Standing(node("n1")), m.Standing(node("n2")), m.Standing(serverNamed("s1"))
		if !n1.Good(issued) || n2.Good(m.Stamp()) || s1.Good(issued) || !s1.Good(m.Stamp()) {
			t.Errorf("n1 %+v, n2 %+v, s1 %+v", n1, n2, s1)
		}
		if a := m.Authorities(); len(a) != 1 || a[0].Domain != "c0ffee" {
			t.Errorf("%+v", a)
		}
	}
	r.refuse(&Join{Token: secretOf("open"), Identity: node("n5"), Key: gpuai.SubjectHash{1}}, gpuai.Unauthenticated)
}

// The bodies of these commands, cut and changed at every byte, are results like
// any others.
func TestAuthorityTakesAnyBytes(t *testing.T) {
	r := secured(t)
	r.check = false
	for _, c := range []Command{
		authority(2), &CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute, For: "n"},
		&Join{Token: secretOf("a"), Identity: node("n"), Key: gpuai.SubjectHash{1}}, &RevokeIdentity{node("n")},
		&RetireAuthority{Hash: gpuai.SubjectHash{1}},
	} {
		body := bodyOf(c)
		for i := range body {
			for _, bad := range [][]byte{body[:i], append(bytes.Clone(body), body[:i+1]...), flipped(body, i)} {
				r.apply(raws{typ: uint8(kindOfCommand(c)), body: bad})
			}
		}
	}
	if err := r.m.Check(); err != nil {
		t.Fatal(err)
	}
	restored(t, r.m)
}

func flipped(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 0xff
	return b
}

// raws is a command of any body.
type raws struct {
	typ  uint8
	body []byte
}

func (c raws) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, c.typ, env, func(b []byte) []byte { return append(b, c.body...) })
}

func kindOfCommand(c Command) CommandKind {
	_, cmds, err := ReadEntry(AppendEntry(nil, Header{}, c.Append(nil, Envelope{})))
	if err != nil {
		panic(err)
	}
	return cmds[0].Kind
}

func TestJoinTokensAreBounded(t *testing.T) {
	r := secured(t)
	r.check = false
	var cmds []Command
	for i := range MaxJoinTokens {
		cmds = append(cmds, &CreateJoinToken{Hash: secretOf(fmt.Sprint(i)), Kind: gpuai.IdentityNode, TTL: gpuai.Minute})
	}
	for len(cmds) > 0 {
		n := min(512, len(cmds))
		r.apply(cmds[:n]...)
		cmds = cmds[n:]
	}
	more := &CreateJoinToken{Hash: secretOf("more"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute}
	r.refuse(more, gpuai.RateLimited)
	r.wait(gpuai.Minute)
	r.do(more)
	if err := r.m.Check(); err != nil {
		t.Error(err)
	}
}

// Tokens that were used leave room for others at once, and are remembered within a
// bound of their own: more hosts than that join within the time of a token.
func TestUsedJoinTokensLeaveRoom(t *testing.T) {
	r := secured(t)
	r.check = false
	const hosts = MaxJoinTokens + MaxUsedJoinTokens/2
	for i := 0; i < hosts; i += 512 {
		var tokens, joins []Command
		for j := i; j < i+512; j++ {
			name, token := fmt.Sprint("n", j), secretOf(fmt.Sprint(j))
			tokens = append(tokens, &CreateJoinToken{Hash: token, Kind: gpuai.IdentityNode, TTL: gpuai.Hour})
			joins = append(joins, &Join{Token: token, Identity: gpuai.Identity{Kind: gpuai.IdentityNode, Name: name}, Key: secretOf(name)})
		}
		for _, cmds := range [][]Command{tokens, joins} {
			for k, res := range r.apply(cmds...).Results {
				if res.Code != gpuai.OK {
					t.Fatalf("host %d: %+v", i+k, res)
				}
			}
		}
	}
	if n := r.m.joinTokenSlots.Len(); n != MaxUsedJoinTokens {
		t.Errorf("%d used tokens are remembered", n)
	}
	forgotten := 0
	for i := range hosts {
		if _, known := r.m.joinTokenSlot(new(secretOf(fmt.Sprint(i)))); !known {
			forgotten++
			if forgotten == 1 {
				r.refuse(&Join{Token: secretOf(fmt.Sprint(i)), Identity: gpuai.Identity{Kind: gpuai.IdentityNode, Name: "late"}, Key: secretOf("late")}, gpuai.Unauthenticated)
			}
		}
	}
	if forgotten != hosts-MaxUsedJoinTokens {
		t.Errorf("%d are forgotten", forgotten)
	}
	if err := r.m.Check(); err != nil {
		t.Error(err)
	}
	restored(t, r.m)
}

// joinCommand returns a random command about who may join.
func (w *walk) joinCommand() Command {
	token := secretOf([]string{"a", "b", "c", "d"}[w.r.IntN(4)])
	id := gpuai.Identity{Kind: gpuai.IdentityKind(w.r.IntN(4)), Name: walkNodes[w.r.IntN(len(walkNodes))]}
	switch w.r.IntN(8) {
	case 0:
		c := authority(byte(1 + w.r.IntN(6)))
		c.Retire = gpuai.Duration(w.r.IntN(60_000))
		if all := w.m.Authorities(); len(all) > 0 && w.r.IntN(4) > 0 {
			c.Replaces = all[0].Hash
		}
		return c
	case 1:
		return &RetireAuthority{Hash: gpuai.SubjectHash{byte(1 + w.r.IntN(6))}, Now: w.r.IntN(3) == 0}
	case 2:
		return &RevokeIdentity{id}
	case 3, 4:
		c := &CreateJoinToken{Hash: token, Kind: id.Kind, TTL: gpuai.Duration(w.r.IntN(90_000)), Contributor: "ann"}
		if w.r.IntN(2) == 0 {
			c.For = id.Name
		}
		if id.Kind != gpuai.IdentityNode || w.r.IntN(2) == 0 {
			c.Contributor = ""
		}
		return c
	}
	return &Join{Token: token, Identity: id, Key: gpuai.SubjectHash{byte(w.r.IntN(3))}}
}
