package loadgen

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReadUsage(t *testing.T) {
	full := "# HELP x y\nprocess_cpu_seconds_total 1.5\nother{a=\"b\"} 9\nprocess_resident_memory_bytes 3e+06\n"
	for _, c := range []struct {
		name, body string
		status     int
		want       string
	}{
		{"whole", full, 200, ""},
		{"no process metrics", "other 1\n", 200, "has no process metrics"},
		{"only one", "process_cpu_seconds_total 1\n", 200, "has no process metrics"},
		{"no number", "process_cpu_seconds_total x\n", 200, "invalid syntax"},
		{"not found", "", 404, "404"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/metrics" {
					t.Errorf("it asks for %s", r.URL.Path)
				}
				w.WriteHeader(c.status)
				w.Write([]byte(c.body))
			}))
			defer s.Close()
			u, err := ReadUsage(t.Context(), Access{}, []string{s.URL, s.URL})
			switch {
			case c.want != "":
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), s.URL) {
					t.Errorf("the error is %v", err)
				}
			case err != nil || u.CPUSeconds != 3 || u.RSS != 3e6:
				t.Errorf("got %+v, %v", u, err)
			}
		})
	}
}
