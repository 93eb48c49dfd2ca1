package loadgen

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// Usage is what servers have used, by their own metrics.
type Usage struct {
	CPUSeconds float64 // of all servers
	RSS        float64 // bytes, the mean of the servers
}

// ReadUsage reads the process metrics of every server.
func ReadUsage(ctx context.Context, acc Access, addrs []string) (Usage, error) {
	var u Usage
	c := acc.http(&http.Transport{DisableKeepAlives: true})
	for _, a := range addrs {
		cpu, rss, err := processMetrics(ctx, c, a, acc.Token)
		if err != nil {
			return u, fmt.Errorf("reading the metrics of %s: %w", a, err)
		}
		u.CPUSeconds += cpu
		u.RSS += rss / float64(len(addrs))
	}
	return u, nil
}

func processMetrics(ctx context.Context, c *http.Client, addr string, token gpuai.Secret) (cpu, rss float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	if token.Reveal() != "" {
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("it answered %s", res.Status)
	}
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), " ")
		switch name {
		case "process_cpu_seconds_total":
			cpu, err = strconv.ParseFloat(value, 64)
		case "process_resident_memory_bytes":
			rss, err = strconv.ParseFloat(value, 64)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	if cpu == 0 || rss == 0 {
		return 0, 0, fmt.Errorf("it has no process metrics")
	}
	return cpu, rss, nil
}
