package cdi

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// dirs returns a finder with one host's and one driver's directory.
func dirs(t *testing.T) (f Finder, host, driver string) {
	t.Helper()
	host, driver = filepath.Join(t.TempDir(), "host"), filepath.Join(t.TempDir(), "driver")
	for _, d := range []string{host, driver} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Finder{Host: []string{host}, Drivers: []string{driver}}, host, driver
}

func write(t *testing.T, path, body string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

const head = `{"cdiVersion":"0.6.0","kind":"example.com/gpu",`

func TestHostsSpecificationsComeFirst(t *testing.T) {
	f, host, driver := dirs(t)
	write(t, filepath.Join(driver, "a.json"), head+`"devices":[
		{"name":"0","containerEdits":{"env":["FROM=driver"]}},
		{"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/one","hostPath":"/dev/null","permissions":"r"},{"path":"/dev/none","hostPath":"/dev/zero","permissions":"none"}]}}]}`)
	write(t, filepath.Join(host, "a.yaml"), `
cdiVersion: "0.6.0"
kind: example.com/gpu
containerEdits:
  env: [ALL=yes]
  mounts:
  - {hostPath: /etc/hostname, containerPath: /etc/one, options: [ro, rbind]}
  - {hostPath: /etc, containerPath: /etc/two/../own, options: [rw, noexec]}
devices:
- name: "0"
  containerEdits: {env: [FROM=host], deviceNodes: [{path: /dev/null}]}
`)
	got, err := f.Resolve([]string{"example.com/gpu=0", "example.com/gpu=1"})
	want := Edits{
		Env: map[string]string{"ALL": "yes", "FROM": "host"},
		Nodes: []Node{
			{Path: "/dev/null", Major: 1, Minor: 3, Permissions: "rw"}, {Path: "/dev/one", Major: 1, Minor: 3, Permissions: "r"},
			{Path: "/dev/none", Major: 1, Minor: 5},
		},
		Mounts: []Mount{{HostPath: "/etc/hostname", Path: "/etc/one"}, {HostPath: "/etc", Path: "/etc/own", Writable: true, NoExec: true}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n%+v, want\n%+v", err, got, want)
	}
}

func TestUnresolvedNameSaysWhereItWasLookedFor(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"no such device": {`"devices":[{"name":"1","containerEdits":{"env":["A=b"]}}]}`, "no CDI specification has the device example.com/gpu=0"},
		"damaged":        {`"devices":[`, "cannot be used: failed to"},
		"no device file": {`"devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/no-such"}]}}]}`, "/dev/no-such"},
		"another device": {`"devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/null","type":"c","major":1,"minor":5}]}}]}`, "outdated"},
		"no device":      {`"devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/etc/hostname"}]}}]}`, "no device file"},
		"pipe":           {`"devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/x","type":"p"}]}}]}`, "named pipe"},
		"relative":       {`"devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"dev/null"}]}}]}`, "not absolute"},
		"no host file":   {`"devices":[{"name":"0","containerEdits":{"mounts":[{"hostPath":"/no-such","containerPath":"/a"}]}}]}`, "/no-such"},
		"proc":           {`"devices":[{"name":"0","containerEdits":{"mounts":[{"hostPath":"proc","containerPath":"/a","type":"proc"}]}}]}`, "only bind"},
		"shared":         {`"devices":[{"name":"0","containerEdits":{"mounts":[{"hostPath":"/etc","containerPath":"/a","options":["rshared"]}]}}]}`, `option "rshared"`},
		"RDT":            {`"devices":[{"name":"0","containerEdits":{"intelRdt":{"closID":"x"}}}]}`, "Intel RDT"},
	} {
		t.Run(name, func(t *testing.T) {
			f, host, driver := dirs(t)
			write(t, filepath.Join(driver, "a.json"), strings.Replace(head, "0.6.0", "0.7.0", 1)+c.spec)
			_, err := f.Resolve([]string{"example.com/gpu=0"})
			var no *UnresolvedError
			if !errors.As(err, &no) || no.Name != "example.com/gpu=0" || !strings.Contains(err.Error(), c.want) ||
				!strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), driver) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSpecificationThatOthersMayWriteIsRefused(t *testing.T) {
	f, host, _ := dirs(t)
	file := filepath.Join(host, "a.json")
	write(t, file, head+`"devices":[{"name":"0","containerEdits":{"env":["A=b"]}}]}`)
	for _, path := range []string{file, host} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Resolve([]string{"example.com/gpu=0"}); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("%s: %v", path, err)
		}
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Resolve([]string{"example.com/gpu=0"}); err != nil {
		t.Error(err)
	}
}

// A library has its SONAME without the hook that would make a link of it.
func TestHooksAreLeftOutAndLibrariesFound(t *testing.T) {
	libraries, err := exec.Command("sh", "-c", "readlink -f $(ls /lib/*-linux-gnu*/libz.so.1.* /lib/*-linux-gnu*/libzstd.so.1.* /lib/*-linux-gnu*/liblzma.so.5.* 2>/dev/null | head -1)").Output()
	library := strings.TrimSpace(string(libraries))
	if err != nil || library == "" {
		t.Skip("this host has no library to look at")
	}
	f, host, _ := dirs(t)
	spec := filepath.Join(host, "a.json")
	write(t, spec, head+`"containerEdits":{"hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook","args":["x","update-ldcache"]}],
		"mounts":[{"hostPath":"`+library+`","containerPath":"/usr/lib/gpu/libgpu.so.550"}]},"devices":[{"name":"0","containerEdits":{"env":["A=b"]}}]}`)
	got, err := f.Resolve([]string{"example.com/gpu=0"})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Hooks, []string{spec}) || !reflect.DeepEqual(got.Libraries, []string{"/usr/lib/gpu"}) {
		t.Errorf("%+v", got)
	}
	if name := soname(library); len(got.Mounts) != 2 || got.Mounts[1] != (Mount{HostPath: library, Path: "/usr/lib/gpu/" + name}) || !strings.Contains(name, ".so.") {
		t.Errorf("%+v", got.Mounts)
	}
}

// An operator is told of every specification, and why one is refused.
func TestSurveySaysWhyASpecificationIsRefused(t *testing.T) {
	f, host, driver := dirs(t)
	write(t, filepath.Join(driver, "good.json"), head+`"devices":[
		{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/null"}],"hooks":[{"hookName":"createContainer","path":"/bin/true"}]}}]}`)
	write(t, filepath.Join(host, "broken.json"), `{"cdiVersion":`)
	write(t, filepath.Join(host, "gone.json"), `{"cdiVersion":"0.6.0","kind":"example.com/other","devices":[
		{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/none-such"}]}},{"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/null"}]}}]}`)
	open := filepath.Join(host, "open.json")
	write(t, open, `{"cdiVersion":"0.6.0","kind":"example.com/open","devices":[{"name":"0","containerEdits":{"env":["A=b"]}}]}`)
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	found, err := f.Survey()
	if err != nil || len(found) != 4 {
		t.Fatalf("%+v, %v", found, err)
	}
	for _, want := range []struct{ file, devices, why string }{
		{"good.json", "example.com/gpu=0", ""},
		{"broken.json", "", "broken.json"},
		{"gone.json", "example.com/other=0 example.com/other=1", "/dev/none-such"},
		{"open.json", "example.com/open=0", "chmod go-w"},
	} {
		i := slices.IndexFunc(found, func(f Found) bool { return filepath.Base(f.Path) == want.file })
		if i < 0 {
			t.Errorf("%s is not found", want.file)
			continue
		}
		got := found[i]
		if strings.Join(got.Devices, " ") != want.devices || (got.Refused == nil) != (want.why == "") || got.Hooks != (want.file == "good.json") {
			t.Errorf("%+v, want %+v", got, want)
		}
		if got.Refused != nil && !strings.Contains(got.Refused.Error(), want.why) {
			t.Errorf("%s: %v", want.file, got.Refused)
		}
	}
}
