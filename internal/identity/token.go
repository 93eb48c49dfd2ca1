package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"strings"

	"github.com/gpuai/gpuai"
)

// Parts of tokens, in bytes before they are encoded.
const (
	tokenID     = 8  // 13 characters
	tokenSecret = 20 // 160 bit
	tokenPin    = 20 // of the SHA-256 of the CA's public key
)

const joinPrefix = "gpujoin"

// crockford is the alphabet of tokens: none of i, l, o and u.
var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// A JoinToken lets its holder join a region once, and recognise the region: it
// ends in a hash of the CA's public key.
type JoinToken struct {
	text string
	pin  [tokenPin]byte
}

// NewJoinToken makes a token of the region whose CA has a hash.
func NewJoinToken(ca gpuai.SubjectHash) JoinToken {
	t := JoinToken{}
	copy(t.pin[:], ca[:])
	t.text = strings.Join([]string{
		joinPrefix, crockford.EncodeToString(randomBytes(tokenID)),
		crockford.EncodeToString(randomBytes(tokenSecret)), crockford.EncodeToString(t.pin[:]),
	}, "_")
	return t
}

var errJoinToken = errors.New("this is no join token: one is gpujoin_ID_SECRET_HASH, as 'gpuai token create --join' prints it")

// ParseJoinToken reads a token's text.
func ParseJoinToken(text string) (t JoinToken, err error) {
	text = strings.TrimSpace(text)
	parts := strings.Split(text, "_")
	if len(parts) != 4 || parts[0] != joinPrefix {
		return t, errJoinToken
	}
	for i, size := range []int{tokenID, tokenSecret, tokenPin} {
		b, err := crockford.DecodeString(parts[i+1])
		if err != nil || len(b) != size || crockford.EncodeToString(b) != parts[i+1] {
			return JoinToken{}, errJoinToken
		}
		copy(t.pin[:], b) // the last one's stays
	}
	t.text = text
	return t, nil
}

// Text returns what a person is given, and a request sends. It is a secret.
func (t JoinToken) Text() string { return t.text }

// String returns the token without its secret, for logs.
func (t JoinToken) String() string {
	if parts := strings.Split(t.text, "_"); len(parts) == 4 {
		return parts[0] + "_" + parts[1] + "_[redacted]"
	}
	return "[redacted]"
}

// GoString is String.
func (t JoinToken) GoString() string { return t.String() }

// Hash returns what the region keeps of the token.
func (t JoinToken) Hash() [32]byte { return sha256.Sum256([]byte(t.text)) }

// names reports, in constant time, whether the token names a CA.
func (t JoinToken) names(ca gpuai.SubjectHash) bool {
	return subtle.ConstantTimeCompare(t.pin[:], ca[:tokenPin]) == 1
}
