package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// dialsPerSecond bounds how fast a holder opens connections.
const dialsPerSecond = 1_000

// dialer dials from the address that this process is told apart by.
func (o *options) dialer() *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(o.from)}, Timeout: 5 * time.Second}
}

// flood sends submits as fast as they are answered, whatever the answers say.
func (o *options) flood(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: o.dialer().DialContext, MaxIdleConnsPerHost: o.flooders}}
	var taken, refused, failed atomic.Int64
	began := time.Now()
	var wg sync.WaitGroup
	for range o.flooders {
		wg.Go(func() {
			for ctx.Err() == nil {
				switch o.floodOnce(ctx, client) {
				case http.StatusCreated, http.StatusAccepted:
					taken.Add(1)
				case http.StatusTooManyRequests:
					refused.Add(1)
				default:
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	s := time.Since(began).Seconds()
	fmt.Printf("flood of %d connections: %.0f submits a second taken, %.0f refused with 429, %d failed\n",
		o.flooders, float64(taken.Load())/s, float64(refused.Load())/s, failed.Load())
	return nil
}

func (o *options) floodOnce(ctx context.Context, c *http.Client) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+o.addr+"/v1/jobs?hold_anyway=true", strings.NewReader(job))
	if err != nil {
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // what matters is the status
	return resp.StatusCode
}

// hold opens connections and asks for nothing: of every two one is silent, and
// one sends a header that never ends, a byte a second. Those that the server
// closes are opened again.
func (o *options) hold(ctx context.Context) error {
	var open, closed, refused atomic.Int64
	var most int64
	pace := time.NewTicker(time.Second / dialsPerSecond)
	defer pace.Stop()
	room := make(chan struct{}, o.conns)
	for ctx.Err() == nil {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		<-pace.C
		conn, err := o.dialer().DialContext(ctx, "tcp", o.addr)
		if err != nil {
			refused.Add(1)
			<-room
			continue
		}
		most = max(most, open.Add(1))
		slow := open.Load()%2 == 0
		go func() { // ends with the connection, which ends with ctx
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			holdOne(conn, slow)
			stop()
			conn.Close()
			open.Add(-1)
			closed.Add(1)
			<-room
		}()
	}
	fmt.Printf("%d connections held at once, %d closed by the server meanwhile and opened again, %d dials failed\n", most, closed.Load()-open.Load(), refused.Load())
	return nil
}

// holdOne keeps a connection until the server closes it.
func holdOne(conn net.Conn, slow bool) {
	if !slow {
		_, _ = conn.Read(make([]byte, 1)) // there comes nothing but the end
		return
	}
	if _, err := io.WriteString(conn, "GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: "); err != nil {
		return
	}
	for {
		time.Sleep(time.Second)
		if _, err := conn.Write([]byte("a")); err != nil {
			return
		}
	}
}
