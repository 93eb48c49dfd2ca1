package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai/client"
)

const defaultAddr = "http://127.0.0.1:7470"

// apiFlags are the flags of every command that talks to a server.
type apiFlags struct {
	addr    string
	addrs   []string // addr, split; or the environment's
	output  string
	jq      string
	curl    bool
	timeout time.Duration
}

// Formats of -o.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatName  = "name"
)

var formats = []string{formatTable, formatWide, formatJSON, formatYAML, formatName}

// talks adds the flags of a command that talks to a server.
func (a *app) talks(c *cobra.Command) *cobra.Command {
	c.Flags().DurationVar(&a.api.timeout, "request-timeout", 10*time.Second, "limit of one API call, retries included")
	return a.prints(a.reaches(c))
}

// reaches adds the flags that say which server to talk to.
func (a *app) reaches(c *cobra.Command) *cobra.Command {
	f := c.Flags()
	f.StringVar(&a.api.addr, "addr", "", "servers to talk to, comma-separated (default $GPUAI_ADDR, else "+defaultAddr+")")
	f.BoolVar(&a.api.curl, "curl", false, "print each API call as a curl command to standard error")
	return c
}

// prints adds the flags of a command that prints an object.
func (a *app) prints(c *cobra.Command) *cobra.Command {
	f := c.Flags()
	f.StringVarP(&a.api.output, "output", "o", formatTable, "format: "+strings.Join(formats, ", "))
	f.StringVar(&a.api.jq, "jq", "", "filter the JSON with this jq expression")
	for name, values := range map[string][]string{"output": formats} {
		if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // the flag was added three lines above
		}
	}
	return c
}

// connect returns a client for the servers of the flags and the environment.
func (a *app) connect() (*client.Client, error) { return a.connectWith(client.Config{}) }

// connectOnce returns a client that asks each server once: a command that looks
// for what is down does not wait for it.
func (a *app) connectOnce() (*client.Client, error) {
	return a.connectWith(client.Config{RetryFor: -1})
}

func (a *app) connectWith(cfg client.Config) (*client.Client, error) {
	addr := a.api.addr
	if addr == "" {
		addr = a.getenv("GPUAI_ADDR")
	}
	if addr == "" {
		addr = defaultAddr
	}
	a.api.addrs = nil
	for s := range strings.SplitSeq(addr, ",") {
		u, err := serverURL(s)
		if err != nil {
			return nil, err
		}
		a.api.addrs = append(a.api.addrs, u)
	}
	if err := a.checkFormat(); err != nil {
		return nil, err
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 3 * time.Second}).DialContext
	a.rec = &recorder{next: t, talk: a.err, curl: a.api.curl}
	cfg.Addrs, cfg.HTTP = a.api.addrs, &http.Client{Transport: a.rec}
	return client.New(cfg)
}

// serverURL returns the address of a server as a URL.
func serverURL(s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSpace(s), "/")
	if s != "" && !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "" {
		return "", usageError{fmt.Errorf("the server's address %q is no URL such as %s", s, defaultAddr)}
	}
	return s, nil
}

// call runs one API call within --request-timeout.
func (a *app) call(ctx context.Context, f func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, a.api.timeout)
	defer cancel()
	return f(bounded)
}

// ask connects and makes one call.
func ask[T any](ctx context.Context, a *app, f func(context.Context, *client.Client) (T, error)) (T, error) {
	var out T
	c, err := a.connect()
	if err != nil {
		return out, err
	}
	err = a.call(ctx, func(ctx context.Context) error {
		out, err = f(ctx, c)
		return err
	})
	return out, err
}
