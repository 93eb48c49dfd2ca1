package gpuai_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

const hush = "hush-4711-value"

// A holder has a secret where fmt calls no methods of it.
type holder struct {
	Name   string
	Shown  gpuai.Secret
	hidden gpuai.Secret
	in     map[string]gpuai.Secret
	at     *gpuai.Secret
}

func newHolder() *holder {
	s := gpuai.NewSecret(hush)
	return &holder{Name: "n", Shown: s, hidden: s, in: map[string]gpuai.Secret{"k": s}, at: &s}
}

// RELIABILITY.md, case 37: a secret is in no log, no error, no dump and no
// encoding of what holds it.
func TestCase37SecretsAreNeverPrinted(t *testing.T) {
	h := newHolder()
	said := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%T", "%c", "%e", "%08.3f", "%p", "%!"} {
		for what, v := range map[string]any{"value": h.Shown, "pointer": h.at, "holder": *h, "holders": h, "list": []gpuai.Secret{h.Shown}, "map": h.in} {
			said[verb+" of a "+what] = fmt.Sprintf(verb, v)
		}
	}
	var text, structured bytes.Buffer
	for _, l := range []*slog.Logger{slog.New(slog.NewTextHandler(&text, nil)), slog.New(slog.NewJSONHandler(&structured, nil))} {
		l.Info("m", "secret", h.Shown, "at", h.at, "holder", h, "value", *h, "group", slog.GroupValue(slog.Any("x", h.Shown)))
		l.With("secret", h.Shown).Error("m", "error", fmt.Errorf("no: %v: %w", h, errors.New(h.Shown.String())))
	}
	said["slog as text"], said["slog as JSON"] = text.String(), structured.String()
	for name, v := range map[string]any{"JSON of a value": h.Shown, "JSON of a holder": h, "JSON of a map": h.in} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		said[name] = string(b)
	}
	said["an error"] = fmt.Errorf("login with %s: %w", h.Shown, io.EOF).Error()
	for what, s := range said {
		if strings.Contains(s, "hush") || strings.Contains(s, fmt.Sprintf("%x", hush)) {
			t.Errorf("%s shows the secret: %s", what, s)
		}
	}
	for _, what := range []string{"slog as text", "slog as JSON", "JSON of a holder", "%s of a value", "%x of a value", "%#v of a pointer", "an error"} {
		if !strings.Contains(said[what], gpuai.Redacted) {
			t.Errorf("%s does not say that something is left out: %s", what, said[what])
		}
	}
	if h.Shown.Reveal() != hush || h.hidden.IsZero() || (gpuai.Secret{}).Reveal() != "" || gpuai.NewSecret("").String() != "" {
		t.Error("a secret is not what was put in")
	}
}

// What Go writes of a process that crashes holds no secret either: not of the
// value of the panic, nor of the stacks of all goroutines.
func TestCase37CrashesShowNoSecret(t *testing.T) {
	if mode := os.Getenv("GPUAI_TEST_CRASH"); mode != "" {
		h := newHolder()
		h.Shown = gpuai.NewSecret(os.Getenv("GPUAI_TEST_SECRET"))
		switch mode {
		case "value":
			panic(h.Shown)
		case "holder":
			panic(h)
		default:
			panic(fmt.Errorf("%+v %#v", h, h.Shown))
		}
	}
	const given = "hush-0815-given"
	for _, mode := range []string{"value", "holder", "error"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCase37CrashesShowNoSecret$")
		cmd.Env = append(os.Environ(), "GPUAI_TEST_CRASH="+mode, "GPUAI_TEST_SECRET="+given, "GOTRACEBACK=all")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(string(out), "panic: ") {
			t.Fatalf("%s: it did not crash: %v\n%s", mode, err, out)
		}
		if strings.Contains(string(out), "hush") {
			t.Errorf("%s: the crash shows the secret:\n%s", mode, out)
		}
	}
}

func TestSecretIsReadFromText(t *testing.T) {
	var in struct{ Token gpuai.Secret }
	if err := json.Unmarshal([]byte(`{"Token":"`+hush+`"}`), &in); err != nil || in.Token.Reveal() != hush {
		t.Errorf("%v, %q", err, in.Token.Reveal())
	}
}
