package cdi

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/specs-go"
)

// Edits are what devices add to a sandbox.
type Edits struct {
	Env    map[string]string
	Nodes  []Node
	Mounts []Mount
	// Libraries are the directories, in the sandbox, of shared libraries among
	// Mounts.
	Libraries []string
	// Hooks are the specifications whose hooks are left out.
	Hooks []string
}

// A Node is a device file.
type Node struct {
	Path         string // in the sandbox
	Block        bool
	Major, Minor uint32
	Permissions  string // of "rwm"; "" permits nothing
}

// A Mount is a file or directory of the host.
type Mount struct {
	HostPath, Path string
	Writable       bool // only if the specification says "rw"
	NoExec         bool
}

// add adds the edits of a specification or of one device of it.
func (e *Edits) add(from *specs.ContainerEdits, spec string) error {
	switch {
	case len(from.NetDevices) > 0:
		return errors.New("it moves a network interface of the host into the sandbox, which is not supported")
	case from.IntelRdt != nil:
		return errors.New("it sets Intel RDT, which is not supported")
	}
	if len(from.Hooks) > 0 && !slices.Contains(e.Hooks, spec) {
		e.Hooks = append(e.Hooks, spec)
	}
	for _, v := range from.Env {
		if e.Env == nil {
			e.Env = map[string]string{}
		}
		name, value, _ := strings.Cut(v, "=")
		e.Env[name] = value
	}
	for _, d := range from.DeviceNodes {
		n, err := node(d)
		if err != nil {
			return err
		}
		e.Nodes = slices.DeleteFunc(e.Nodes, func(o Node) bool { return o.Path == n.Path })
		e.Nodes = append(e.Nodes, n)
	}
	for _, m := range from.Mounts {
		n, err := mount(m)
		if err != nil {
			return err
		}
		e.Mounts = slices.DeleteFunc(e.Mounts, func(o Mount) bool { return o.Path == n.Path })
		e.Mounts = append(e.Mounts, n)
	}
	return nil
}

// node fills from the host's file what a specification leaves open. Owner, mode
// and groups are not taken over: each task has a file of its own.
func node(d *specs.DeviceNode) (Node, error) {
	n := Node{Path: path.Clean(d.Path), Permissions: "rw"}
	host := d.HostPath
	if host == "" {
		host = d.Path
	}
	if !path.IsAbs(n.Path) || !filepath.IsAbs(host) {
		return n, fmt.Errorf("the device file %q is not absolute", d.Path)
	}
	switch d.Permissions {
	case "":
	case "none":
		n.Permissions = ""
	default:
		n.Permissions = d.Permissions
	}
	var st unix.Stat_t
	err := unix.Stat(host, &st)
	kind := st.Mode & unix.S_IFMT
	switch {
	case d.Type == "p":
		return n, fmt.Errorf("%s is a named pipe, which is not supported", host)
	case err != nil && (d.Type == "" || d.Major == 0):
		return n, fmt.Errorf("the device file %s: %w", host, err)
	case err != nil: // the driver makes it at the first use
		n.Block, n.Major, n.Minor = d.Type == "b", uint32(d.Major), uint32(d.Minor)
		return n, nil
	case kind != unix.S_IFCHR && kind != unix.S_IFBLK:
		return n, fmt.Errorf("%s is no device file", host)
	}
	n.Block, n.Major, n.Minor = kind == unix.S_IFBLK, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	if d.Type != "" && (d.Type == "b") != n.Block || d.Major != 0 && (int64(n.Major) != d.Major || int64(n.Minor) != d.Minor) {
		return n, fmt.Errorf("the specification says that %s is %s %d:%d, and it is %d:%d: the specification is outdated", host, d.Type, d.Major, d.Minor, n.Major, n.Minor)
	}
	return n, nil
}

// options are the mount options that change nothing, since every mount of a
// sandbox has them or is a bind.
var options = []string{"ro", "bind", "rbind", "nosuid", "nodev", "private", "rprivate", "slave", "rslave"}

func mount(m *specs.Mount) (Mount, error) {
	n := Mount{HostPath: m.HostPath, Path: path.Clean(m.ContainerPath)}
	switch {
	case m.Type != "" && m.Type != "bind" && m.Type != "none":
		return n, fmt.Errorf("the mount of %s is of type %q, only bind is supported", m.ContainerPath, m.Type)
	case !path.IsAbs(n.Path) || n.Path == "/" || !filepath.IsAbs(m.HostPath):
		return n, fmt.Errorf("the mount of %q at %q is not of absolute paths", m.HostPath, m.ContainerPath)
	}
	for _, o := range m.Options {
		switch {
		case o == "rw":
			n.Writable = true
		case o == "noexec":
			n.NoExec = true
		case !slices.Contains(options, o):
			return n, fmt.Errorf("the mount of %s has the option %q, which is not supported", m.ContainerPath, o)
		}
	}
	if _, err := os.Stat(n.HostPath); err != nil {
		return n, fmt.Errorf("the mount of %s: %w", m.ContainerPath, err)
	}
	return n, nil
}

// findLibraries mounts each shared library under its SONAME too, which is the
// name that programs are linked to and a hook would make a link of.
func (e *Edits) findLibraries() {
	at := map[string]bool{}
	for _, m := range e.Mounts {
		at[m.Path] = true
	}
	for _, m := range slices.Clone(e.Mounts) {
		if !strings.Contains(path.Base(m.Path), ".so") {
			continue
		}
		name := soname(m.HostPath)
		if name == "" {
			continue
		}
		dir := path.Dir(m.Path)
		if !slices.Contains(e.Libraries, dir) {
			e.Libraries = append(e.Libraries, dir)
		}
		if m.Path = path.Join(dir, name); !at[m.Path] {
			at[m.Path] = true
			e.Mounts = append(e.Mounts, m)
		}
	}
	slices.Sort(e.Libraries)
}

// soname returns the SONAME of a shared library, or "".
func soname(file string) string {
	f, err := elf.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	names, err := f.DynString(elf.DT_SONAME)
	if err != nil || len(names) != 1 || names[0] != path.Base(names[0]) || names[0] == "." || names[0] == ".." {
		return ""
	}
	return names[0]
}
