package loadgen

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Usage is what servers have used, by their own metrics.
type Usage struct {
	CPUSeconds float64 // of all servers
	RSS        float64 // bytes, the mean of the servers
}

// ReadUsage reads the process metrics of every server.
func ReadUsage(ctx context.Context, addrs []string) (Usage, error) {
	return ReadUsageWith(ctx, http.DefaultClient, addrs)
}

// ReadUsageWith is ReadUsage with a client, which trusts the servers.
func ReadUsageWith(ctx context.Context, c *http.Client, addrs []string) (Usage, error) {
	var u Usage
	for _, a := range addrs {
		cpu, rss, err := processMetrics(ctx, c, a)
		if err != nil {
			return u, fmt.Errorf("reading the metrics of %s: %w", a, err)
		}
		u.CPUSeconds += cpu
		u.RSS += rss / float64(len(addrs))
	}
	return u, nil
}

func processMetrics(ctx context.Context, c *http.Client, addr string) (cpu, rss float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/metrics", nil)
	if err != nil {
		return 0, 0, err
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
