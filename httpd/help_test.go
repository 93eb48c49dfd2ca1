package httpd

import (
	"testing"

	"github.com/go-json-experiment/json"
)

func decodeAny(text string, into *any) error { return json.Unmarshal([]byte(text), into) }

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// object decodes an answer.
func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var v any
	if err := decodeAny(text, &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v.(map[string]any)
}
