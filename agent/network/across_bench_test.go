package network

import (
	"io"
	"net"
	"os"
	"testing"

	"github.com/gpuai/gpuai/agent/network/netspace"
)

// BenchmarkGangTraffic is what a gang's members get of their network, both ends on
// this machine: between two hosts without a mesh, between members on one host, and by a
// mesh. A round trip is one byte there and back.
func BenchmarkGangTraffic(b *testing.B) {
	l := newLAN(b, 2)
	near, beside, far := l.seat(l.hosts[0], training, 0), l.seat(l.hosts[0], training, 1), l.seat(l.hosts[1], training, 2)
	l.told(training, 1, near, beside, far)
	for _, c := range []struct {
		name     string
		from, to *os.File
		addr     string
	}{
		{"hosts", l.hosts[0].space, l.hosts[1].space, l.hosts[1].addr},
		{"member-on-host", near.space, beside.space, training.Addr(1).String()},
		{"mesh", near.space, far.space, training.Addr(2).String()},
	} {
		b.Run(c.name+"/throughput", func(b *testing.B) {
			from, to := l.pair(b, c.from, c.to, c.addr)
			block := make([]byte, 1<<20)
			done := make(chan error, 1)
			go func() {
				_, err := io.CopyN(io.Discard, to, int64(b.N)<<20)
				done <- err
			}()
			b.SetBytes(1 << 20)
			b.ResetTimer()
			for range b.N {
				if _, err := from.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
		b.Run(c.name+"/round-trip", func(b *testing.B) {
			from, to := l.pair(b, c.from, c.to, c.addr)
			go func() { _, _ = io.Copy(to, to) }() // until it is closed
			one := make([]byte, 1)
			b.ResetTimer()
			for range b.N {
				if _, err := from.Write(one); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(from, one); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// pair opens a connection between two namespaces.
func (l *lan) pair(b *testing.B, from, to *os.File, addr string) (here, there net.Conn) {
	b.Helper()
	var listener net.Listener
	l.must(netspace.Within(to, func() (err error) {
		listener, err = net.Listen("tcp", addr+":0")
		return err
	}))
	b.Cleanup(func() { listener.Close() })
	l.must(netspace.Within(from, func() (err error) {
		here, err = net.Dial("tcp", listener.Addr().String())
		return err
	}))
	there, err := listener.Accept()
	l.must(err)
	b.Cleanup(func() {
		here.Close()
		there.Close()
	})
	return here, there
}
