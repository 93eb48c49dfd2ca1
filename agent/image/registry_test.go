package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A hostileRegistry serves one image, x/y:v1, with a handler for its blobs.
type hostileRegistry struct {
	t        *testing.T
	manifest v1.Manifest
	blob     http.HandlerFunc
}

func (h *hostileRegistry) ref() string {
	h.t.Helper()
	b, err := json.Marshal(h.manifest)
	if err != nil {
		h.t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.Contains(req.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = w.Write(b)
		case strings.Contains(req.URL.Path, "/blobs/"):
			h.blob(w, req)
		}
	}))
	h.t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return strings.TrimPrefix(srv.URL, "http://") + "/x/y:v1"
}

func digestOf(c string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat(c, 64)} }

func hostileManifest(config, layer int64) v1.Manifest {
	return v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: config, Digest: digestOf("a")},
		Layers: []v1.Descriptor{{MediaType: types.OCILayer, Size: layer, Digest: digestOf("b")}},
	}
}

// endless sends until nobody listens, or until 64 MiB: a reader without a bound
// takes it all.
func endless(w http.ResponseWriter, _ *http.Request) {
	for range 64 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			return
		}
	}
}

func TestCase36SizeThatIsNoneIsRefused(t *testing.T) {
	for _, c := range []struct {
		config, layer int64
		want          string
	}{
		{-1, 1, "gives its configuration -1 bytes"}, {-7, 1, "gives its configuration -7 bytes"},
		{maxManifest + 1, 1, "more than"}, {2, -1, "layer 1 has -1 bytes"},
	} {
		t.Run(fmt.Sprintf("Config%dLayer%d", c.config, c.layer), func(t *testing.T) {
			h := &hostileRegistry{t: t, manifest: hostileManifest(c.config, c.layer), blob: endless}
			s := openStore(t, nil)
			_, err := s.Prepare(t.Context(), Request{Image: h.ref()})
			checkRefused(t, s, err, c.want)
		})
	}
}

// Only what the manifest names as a layer may be long, and only when the
// registry has it: not the configuration, nor what is said of an error.
func TestOnlyLayersMayBeLong(t *testing.T) {
	layers := &layerSet{}
	layers.add(digestOf("b").String())
	h := &hostileRegistry{t: t, blob: func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/v2/moved/") {
			http.Redirect(w, req, "/elsewhere/blobs/x", http.StatusTemporaryRedirect)
			return
		}
		if strings.HasPrefix(req.URL.Path, "/v2/broken/") {
			w.WriteHeader(http.StatusInternalServerError)
		}
		endless(w, req)
	}}
	host, _, _ := strings.Cut(h.ref(), "/")
	client := &http.Client{Transport: newTransport(true, idleTime)}
	for path, long := range map[string]bool{
		"/v2/x/y/blobs/" + digestOf("b").String():      true,
		"/v2/moved/y/blobs/" + digestOf("b").String():  true,
		"/v2/x/y/blobs/" + digestOf("a").String():      false,
		"/v2/moved/y/blobs/" + digestOf("a").String():  false,
		"/v2/broken/y/blobs/" + digestOf("b").String(): false,
		"/blobs/token": false,
	} {
		n, err := get(t, client, layers, "http://"+host+path)
		if long && (n != 64<<20 || err != nil) || !long && (n > maxManifest || err == nil) {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
	}
}

// get reads an answer to its end, and returns how long it was.
func get(t *testing.T, client *http.Client, layers *layerSet, url string) (int64, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithValue(t.Context(), layersKey{}, layers), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}

// A registry that stops sending does not keep its request for ever, and one that
// goes on, if slowly, is read to its end.
func TestIdleRegistryIsGivenUp(t *testing.T) {
	more, gone := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		select {
		case <-more:
			_, _ = io.WriteString(w, " more")
		case <-req.Context().Done():
			close(gone)
		}
	}))
	defer srv.Close()
	n, err := get(t, &http.Client{Transport: newTransport(true, 50*time.Millisecond)}, &layerSet{}, srv.URL)
	if n != 4 || !errors.Is(err, errIdle) {
		t.Errorf("%d bytes, %v", n, err)
	}
	<-gone
	close(more)
	if n, err = get(t, &http.Client{Transport: newTransport(true, time.Minute)}, &layerSet{}, srv.URL); n != 9 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// A repository that does not send holds up nobody who has the same image from
// another.
func TestSlowRepositoryHoldsUpNobody(t *testing.T) {
	r := newRegistry(t)
	img := plain(t, "x", 10)
	slow, fast := r.push(t, "team/slow:v1", img), r.push(t, "team/fast:v1", img)
	asked, finish := make(chan struct{}), make(chan struct{})
	inner := r.handler
	var once sync.Once
	slowly := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/slow/blobs/") {
			once.Do(func() { close(asked) })
			<-finish
		}
		inner.ServeHTTP(w, req)
	})
	r.set(func() { r.handler = slowly })
	s := openStore(t, nil)
	late := make(chan error, 1)
	go func() {
		_, err := s.Prepare(context.Background(), Request{Image: slow, Hold: "1"})
		late <- err
	}()
	<-asked
	first := prepare(t, s, fast, "2")
	close(finish)
	if err := <-late; err != nil {
		t.Fatal(err)
	}
	second := prepare(t, s, slow, "3")
	if u := s.Usage(); second.Root != first.Root || len(second.Names) != 2 || u.Images != 1 || len(s.holds) != 3 || s.reserved != 0 {
		t.Errorf("%v and %v: %+v, %d bytes reserved", first, second, u, s.reserved)
	}
}

// The host's services listen at its own addresses, too.
func TestOwnAddressesAreRefused(t *testing.T) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range own {
		a := netip.MustParsePrefix(o.String()).Addr()
		if err := judgeAddress(a, false); !errors.Is(err, errForbiddenAddress) {
			t.Errorf("%s: %v", a, err)
		}
		if err := judgeAddress(a, true); err != nil && !a.IsLinkLocalUnicast() {
			t.Errorf("%s for development: %v", a, err)
		}
	}
	for address, forbidden := range map[string]bool{
		"192.0.2.1": false, "2001:db8::1": false, "::ffff:127.0.0.1": true, "0.0.0.0": true, "169.254.169.254": true, "fd00:ec2::254": true, "fe80::1%lo": true,
	} {
		if err := judgeAddress(netip.MustParseAddr(address), false); errors.Is(err, errForbiddenAddress) != forbidden {
			t.Errorf("%s: %v", address, err)
		}
	}
}
