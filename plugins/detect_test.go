package plugins

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// function puts a function on a tree's PCI bus.
func function(t *testing.T, root, addr, vendor, class, bound string) {
	t.Helper()
	dir := filepath.Join(root, "sys/bus/pci/devices", addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"vendor": vendor, "class": class} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if bound == "" {
		return
	}
	if err := os.Symlink("../../../bus/pci/drivers/"+bound, filepath.Join(dir, "driver")); err != nil {
		t.Fatal(err)
	}
}

func TestDetect(t *testing.T) {
	for name, c := range map[string]struct {
		functions [][3]string // vendor, class, kernel driver
		want      []string
	}{
		"none":             {nil, nil},
		"both":             {[][3]string{{"0x10de", "0x030200", "nvidia"}, {"0x1002", "0x120000", "amdgpu"}, {"0x1002", "0x030000", "amdgpu"}}, []string{"amd", "nvidia"}},
		"passed through":   {[][3]string{{"0x1002", "0x120000", "vfio-pci"}, {"0x10de", "0x030000", "nouveau"}}, nil},
		"not bound":        {[][3]string{{"0x1002", "0x120000", ""}}, nil},
		"the card's sound": {[][3]string{{"0x1002", "0x040300", "snd_hda_intel"}, {"0x10de", "0x040300", "nvidia"}}, nil},
		"another vendor":   {[][3]string{{"0x8086", "0x030000", "i915"}}, nil},
	} {
		root := t.TempDir()
		for i, f := range c.functions {
			function(t, root, "0000:0"+string(rune('0'+i))+":00.0", f[0], f[1], f[2])
		}
		if got := Detect(root); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
