package identity

import (
	"bytes"
	"errors"
	"testing"
)

func TestEnvelope(t *testing.T) {
	ring := NewKeyring()
	const aad = "secret/acme/token"
	seal, box := ring.SealEnvelope(aad, []byte("hunter2"))
	if bytes.Contains(box, []byte("hunter2")) || SealID(seal) != ring.ActiveID() {
		t.Fatalf("sealed %q under %x, not %x", box, SealID(seal), ring.ActiveID())
	}
	next := ring.Rotate()
	anew, err := next.Reseal(aad, seal)
	if err != nil || SealID(anew) != next.ActiveID() || SealID(anew) == SealID(seal) {
		t.Fatalf("resealed under %x: %v", SealID(anew), err)
	}
	for _, s := range [][]byte{seal, anew} {
		if plain, err := next.OpenEnvelope(aad, s, box); err != nil || string(plain) != "hunter2" {
			t.Fatalf("%q: %v", plain, err)
		}
	}
	if _, err := ring.OpenEnvelope(aad, anew, box); !errors.Is(err, ErrKeyring) {
		t.Fatalf("a keyring without the key opens it: %v", err)
	}
	_, other := ring.SealEnvelope(aad, []byte("other"))
	flipped := bytes.Clone(box)
	flipped[len(flipped)-1]++
	for name, c := range map[string]struct {
		aad       string
		seal, box []byte
	}{
		"another name":    {"secret/acme/other", seal, box},
		"another's box":   {aad, seal, other},
		"a changed box":   {aad, seal, flipped},
		"a short box":     {aad, seal, box[:5]},
		"a short seal":    {aad, seal[:10], box},
		"nothing":         {aad, nil, nil},
		"a box for a key": {aad, ring.Seal(aad, []byte("short")), box},
	} {
		if plain, err := ring.OpenEnvelope(c.aad, c.seal, c.box); !errors.Is(err, ErrKeyring) || plain != nil {
			t.Errorf("%s: opened %q, %v", name, plain, err)
		}
	}
}
