package main

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

func TestShort(t *testing.T) {
	for d, want := range map[gpuai.Duration]string{
		0: "0ms", 999: "999ms", gpuai.Second: "1s", 59 * gpuai.Second: "59s", 724 * gpuai.Second: "12m04s",
		gpuai.Hour: "1h00m", 26*gpuai.Hour + 5*gpuai.Minute: "1d02h",
	} {
		if got := short(d); got != want {
			t.Errorf("%d ms: %s, want %s", d, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	now := time.UnixMilli(1_000_000_000)
	a := &app{now: func() time.Time { return now }}
	for ago, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m",
		2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d",
	} {
		if got := a.age(gpuai.WallTime(now.Add(-ago).UnixMilli())); got != want {
			t.Errorf("%v ago: %s, want %s", ago, got, want)
		}
	}
	if got := a.age(0); got != "" {
		t.Errorf("no time: %s", got)
	}
}

func TestAmounts(t *testing.T) {
	for b, want := range map[gpuai.Bytes]string{
		0: "0B", 1023: "1023B", 1 << 30: "1GiB", 3 << 29: "1.5GiB", 1000: "1000B", 1 << 41: "2TiB", 81559 << 20: "79.6GiB",
	} {
		if got := bytesText(b); got != want {
			t.Errorf("%d: %s, want %s", b, got, want)
		}
	}
	for c, want := range map[gpuai.MilliCPU]string{0: "0", 500: "0.5", 1000: "1", 16250: "16.25"} {
		if got := cpuText(c); got != want {
			t.Errorf("%d: %s, want %s", c, got, want)
		}
	}
	for m, want := range map[gpuai.Micros]string{0: "", 2_500_000: "2.500000", 1: "0.000001"} {
		if got := price(m); got != want {
			t.Errorf("%d: %s, want %s", m, got, want)
		}
	}
	for s, want := range map[string]gpuai.Micros{"0": 0, "1": 1_000_000, "1.25": 1_250_000, "0.000001": 1} {
		if got, err := parsePrice(s); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-1", ".", "1.", "1.1234567", "1e3", "$1", "99999999999999"} {
		if got, err := parsePrice(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
}

func TestNeeds(t *testing.T) {
	alt := func(v, m string, lo, hi gpuai.Bytes) gpuai.GPUAlternative {
		return gpuai.GPUAlternative{Vendor: v, Model: m, MemoryMin: lo, MemoryMax: hi}
	}
	for _, tc := range []struct {
		gpu  gpuai.GPURequest
		want string
	}{
		{gpuai.GPURequest{}, "1 CPU, 1GiB"},
		{gpuai.GPURequest{Count: 2}, "2 GPU, 1 CPU, 1GiB"},
		{gpuai.GPURequest{Count: 1, Share: gpuai.Share{Milli: 250}}, "0.25 GPU, 1 CPU, 1GiB"},
		{gpuai.GPURequest{Count: 2, Any: []gpuai.GPUAlternative{alt("", "", 40*gib, 80*gib)}}, "2 GPU of 40GiB..80GiB, 1 CPU, 1GiB"},
		{gpuai.GPURequest{Count: 2, Any: []gpuai.GPUAlternative{alt("", "", 0, 80*gib)}}, "2 GPU of ..80GiB, 1 CPU, 1GiB"},
		{gpuai.GPURequest{Count: 8, Any: []gpuai.GPUAlternative{alt("", "H100", 0, 0), alt("amd", "", 128*gib, 0)}}, "8 GPU H100 or amd 128GiB.., 1 CPU, 1GiB"},
	} {
		if got := needsText(gpuai.Resources{GPU: tc.gpu, CPU: 1000, Memory: gib}); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
}

// TestColumns checks that a row has the same number of words as the head, and
// that names cannot move the cursor.
func TestColumns(t *testing.T) {
	var b strings.Builder
	if err := columns(&b, [][]string{{"A", "LONGER", "C"}, {"x\x1b[2J", "", "z"}, {"é", "1", ""}}); err != nil {
		t.Fatal(err)
	}
	want := "A      LONGER  C\nx?[2J  -       z\né      1       -\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestShellQuote has a shell read what is quoted.
func TestShellQuote(t *testing.T) {
	for _, s := range []string{"", "a", "it's", `"$HOME" \n`, "a\nb", "'''", "*"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellQuote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q came back as %q, %v", s, out, err)
		}
	}
}

// TestCurl prints a call for a shell, case 37: without the token.
func TestCurl(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://h:1/v1/x?a=b&c=d", strings.NewReader(`{"a":"it's"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer secret")
	var b strings.Builder
	if err := printCurl(&b, req); err != nil {
		t.Fatal(err)
	}
	want := `curl -sS -X POST -H 'Content-Type: application/json' -H "Authorization: Bearer $GPUAI_TOKEN" --data-binary '{"a":"it'\''s"}' 'http://h:1/v1/x?a=b&c=d'` + "\n"
	if b.String() != want {
		t.Errorf("got %s, want %s", b.String(), want)
	}
}

func TestServerURL(t *testing.T) {
	for s, want := range map[string]string{
		"127.0.0.1:7470": "http://127.0.0.1:7470", "http://h:1/": "http://h:1", " https://h ": "https://h", "[::1]:1": "http://[::1]:1",
	} {
		if got, err := serverURL(s); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"", "http://", "ftp://h", "http://h/path", "http://h:port"} {
		if got, err := serverURL(s); err == nil {
			t.Errorf("%q was read as %q", s, got)
		}
	}
}

func TestCheckListen(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:7470": true, "127.1.2.3:0": true, "[::1]:1": true, "localhost:1": true,
		"0.0.0.0:1": false, ":1": false, "10.0.0.1:1": false, "[::]:1": false, "example.org:1": false,
	} {
		if err := checkListen(addr, false); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
		if err := checkListen(addr, true); err != nil {
			t.Errorf("%s with --insecure-plaintext: %v", addr, err)
		}
	}
	for _, addr := range []string{"", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1"} {
		if err := checkListen(addr, true); err == nil {
			t.Errorf("%q was taken", addr)
		}
	}
}
