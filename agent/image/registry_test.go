package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
	client := &http.Client{Transport: newTransport(true)}
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
