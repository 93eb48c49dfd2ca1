package doctor

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// servers asks every server how it is, all at once.
func servers(ctx context.Context, c *Config, meet *tls.Config) []ServerFacts {
	out := make([]ServerFacts, len(c.Agent.Servers))
	var wg sync.WaitGroup
	for i, at := range c.Agent.Servers {
		wg.Go(func() {
			bounded, cancel := context.WithTimeout(ctx, c.Patience)
			defer cancel()
			out[i] = askServer(bounded, at, meet)
		})
	}
	wg.Wait()
	return out
}

// askServer asks twice: the first answer's time has that of the connection in it.
func askServer(ctx context.Context, at string, meet *tls.Config) ServerFacts {
	f := ServerFacts{URL: at}
	c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: meet}}
	defer c.CloseIdleConnections()
	_, body, err := get(ctx, c, at+"/healthz")
	if f.Secure = isSecure(err, body); err != nil || f.Secure {
		f.Err = err
		return f
	}
	began := time.Now()
	res, body, err := get(ctx, c, at+"/readyz")
	if err != nil {
		f.Err = err
		return f
	}
	f.Latency = time.Since(began)
	if date, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		// The header has whole seconds, cut off: half of one is its middle.
		f.Offset, f.Dated = began.Add(f.Latency/2).Sub(date.Add(time.Second/2)), true
	}
	var answer struct {
		Server string `json:"server"`
		Detail string `json:"detail"`
	}
	_ = json.Unmarshal(body, &answer) // a proxy's page has none
	f.ID = answer.Server
	if res.StatusCode != http.StatusOK {
		f.Unready = res.Status
		if answer.Detail != "" {
			f.Unready = answer.Detail
		}
	}
	return f
}

func get(ctx context.Context, c *http.Client, at string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		var of *url.Error // it names the URL again
		if errors.As(err, &of) {
			err = of.Err
		}
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", at, err)
	}
	return res, body, nil
}

// ports looks at who listens where, by the kernel's lists: listening to see would
// take a port from a task for a moment.
func ports(c *Config) PortFacts {
	f := PortFacts{Metrics: c.Metrics, First: c.Agent.PortMin, Count: c.Agent.PortCount}
	taken, err := listening("/proc/net/tcp", "/proc/net/tcp6")
	f.Err = err
	if _, port, err := net.SplitHostPort(c.Metrics); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		f.MetricsTaken = err == nil && n > 0 && slices.Contains(taken, uint16(n))
	}
	own := portRanges(strings.ReplaceAll(readLine("/proc/sys/net/ipv4/ip_local_port_range"), "\t", "-"))
	reserved := portRanges(readLine("/proc/sys/net/ipv4/ip_local_reserved_ports"))
	for i := range f.Count {
		p := f.First + i
		if slices.Contains(taken, p) {
			f.Taken = append(f.Taken, p)
		}
		if within(own, p) && !within(reserved, p) {
			f.Exposed++
		}
	}
	return f
}

// portRanges reads "22,29500-29563".
func portRanges(s string) (out [][2]uint16) {
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, ok := strings.Cut(part, "-")
		if !ok {
			hi = lo
		}
		from, err := strconv.ParseUint(lo, 10, 16)
		to, err2 := strconv.ParseUint(hi, 10, 16)
		if err == nil && err2 == nil {
			out = append(out, [2]uint16{uint16(from), uint16(to)})
		}
	}
	return out
}

func within(ranges [][2]uint16, p uint16) bool {
	return slices.ContainsFunc(ranges, func(r [2]uint16) bool { return p >= r[0] && p <= r[1] })
}

// listening returns the TCP ports that somebody listens at, sorted.
func listening(files ...string) (out []uint16, err error) {
	for _, path := range files {
		file, e := os.Open(path)
		if os.IsNotExist(e) {
			continue // no IPv6
		} else if e != nil {
			err = e
			continue
		}
		for s := bufio.NewScanner(file); s.Scan(); {
			field := strings.Fields(s.Text()) // 0: 0100007F:1D2E 00000000:0000 0A …
			if len(field) < 4 || field[3] != "0A" {
				continue
			}
			_, hex, _ := strings.Cut(field[1], ":")
			if p, bad := strconv.ParseUint(hex, 16, 16); bad == nil {
				out = append(out, uint16(p))
			}
		}
		file.Close()
	}
	slices.Sort(out)
	return slices.Compact(out), err
}
