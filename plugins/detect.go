package plugins

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// vendors lists the drivers that a host's PCI bus tells of: GPUs of the vendor
// that are bound to its kernel driver. A vendor is a line.
var vendors = []struct{ driver, vendor, kernel string }{
	{"amd", "0x1002", "amdgpu"},
	{"nvidia", "0x10de", "nvidia"},
}

// Detect returns the names of the drivers whose devices are on the host below
// root, which is "/" but in tests; sorted. A GPU that is bound to another kernel
// driver, such as vfio-pci or nouveau, does not count.
func Detect(root string) []string {
	dir := filepath.Join(root, "sys/bus/pci/devices")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		for _, v := range vendors {
			if !slices.Contains(out, v.driver) && isGPU(filepath.Join(dir, e.Name()), v.vendor, v.kernel) {
				out = append(out, v.driver)
			}
		}
	}
	slices.Sort(out)
	return out
}

// isGPU reports whether the PCI function in dir is a vendor's display controller
// (class 03) or processing accelerator (12) and bound to its kernel driver.
func isGPU(dir, vendor, kernel string) bool {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	class := read("class")
	bound, err := os.Readlink(filepath.Join(dir, "driver"))
	return err == nil && read("vendor") == vendor && filepath.Base(bound) == kernel &&
		(strings.HasPrefix(class, "0x03") || strings.HasPrefix(class, "0x12"))
}
