package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	guide        = "../docs/operating.md"
	security     = "../docs/security.md"
	audit        = "../docs/audit.md"
	contributors = "../docs/contributors.md"
	secrets      = "../docs/secrets.md"
)

// guideLimit is how long the blocks of a guide may take together.
const guideLimit = 90 * time.Second

// A block is a fenced part of the guide that is run.
type block struct {
	page string
	line int
	text string
}

// runBlocks returns the blocks that begin with "```sh run".
func runBlocks(page, src string) (out []block) {
	var b *block
	for i, line := range strings.Split(src, "\n") {
		switch {
		case line == "```sh run":
			b = &block{page: page, line: i + 2}
		case b != nil && line == "```":
			out = append(out, *b)
			b = nil
		case b != nil:
			b.text += line + "\n"
		}
	}
	return out
}

var (
	guidePort = regexp.MustCompile(`\b74[0-9]{2}\b`)
	guideData = "/var/lib/gpuai"
)

// guideScript makes one script of the blocks, with ports and a directory of its
// own.
func guideScript(t *testing.T, blocks []block, dir string) string {
	ports := map[string]string{}
	var s strings.Builder
	s.WriteString("set -euo pipefail\n")
	s.WriteString("trap 'code=$?; set +e; kill $(jobs -p) 2>/dev/null; exit $code' EXIT\n")
	for _, b := range blocks {
		text := guidePort.ReplaceAllStringFunc(b.text, func(p string) string {
			if ports[p] == "" {
				ports[p] = fmt.Sprint(freePorts(t, 1))
			}
			return ports[p]
		})
		fmt.Fprintf(&s, "echo '== %s:%d' >&2\n%s", filepath.Base(b.page), b.line, strings.ReplaceAll(text, guideData, filepath.Join(dir, "data")))
	}
	return s.String()
}

// TestOperatingGuide runs every command block of docs/operating.md, in order, in a
// region with authentication that they form.
func TestOperatingGuide(t *testing.T) { runGuide(t, 15, guide) }

// TestSecurityGuide runs every command block of docs/security.md, in order, and behind
// them, in the region that they form, those of pages that need one.
func TestSecurityGuide(t *testing.T) { runGuide(t, 13, security, audit, contributors, secrets) }

// notRun are the beginnings of the blocks that are not run, with the reason.
var notRun = map[string]string{
	"gpuai server run --id a --data /var/lib/gpuai --http 10.0.0.1": "on hosts of their own; the same on loopback is above it",
	"gpuai agent clean ": "it needs a device that is out of use",
}

// TestEveryGuideBlockIsRun: a block of commands is run, or it is said why not.
func TestEveryGuideBlockIsRun(t *testing.T) {
	for _, page := range []string{guide, security, audit, contributors, secrets} {
		src, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range regexp.MustCompile("(?ms)^```(sh|)\n(.*?)^```$").FindAllStringSubmatch("\n"+outsideRun(string(src)), -1) {
			known := false
			for begins := range notRun {
				known = known || strings.HasPrefix(b[2], begins)
			}
			if !known {
				t.Errorf("%s has a block that is not run, and notRun does not say why: %s", page, b[2])
			}
		}
	}
}

// outsideRun takes the blocks away that are run.
func outsideRun(src string) string {
	return regexp.MustCompile("(?ms)^```sh run\n.*?^```$").ReplaceAllString(src, "")
}

func runGuide(t *testing.T, least int, pages ...string) {
	var blocks []block
	for _, page := range pages {
		src, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, runBlocks(page, string(src))...)
	}
	if len(blocks) < least {
		t.Fatalf("only %d blocks are marked to be run", len(blocks))
	}
	dir := scratch(t)
	ctx, cancel := context.WithTimeout(t.Context(), guideLimit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "bash", "-c", guideScript(t, blocks, dir))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bins+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME=")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second // servers of the session hold the pipes
	start := time.Now()
	err := cmd.Run()
	t.Logf("%d blocks ran for %s", len(blocks), time.Since(start).Round(time.Second))
	if err != nil && !strings.Contains(err.Error(), exec.ErrWaitDelay.Error()) {
		t.Fatalf("the guide does not work: %v\n%s", err, out.String())
	}
	if testing.Verbose() {
		t.Log(out.String())
	}
}

var heading = regexp.MustCompile(`(?m)^#+ (.+)$`)

// TestGuideHasEverySection: what alerts and other sections lead to is there.
func TestGuideHasEverySection(t *testing.T) {
	src, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(string(src), -1) {
		anchors[strings.ReplaceAll(strings.ToLower(h[1]), " ", "-")] = true
	}
	alerts, err := os.ReadFile("../docs/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	links := regexp.MustCompile(`docs/operating\.md#([a-z0-9-]+)`).FindAllStringSubmatch(string(alerts), -1)
	links = append(links, regexp.MustCompile(`\]\(#([a-z0-9-]+)\)`).FindAllStringSubmatch(string(src), -1)...)
	if len(links) < 20 {
		t.Fatalf("only %d links found", len(links))
	}
	for _, l := range links {
		if !anchors[l[1]] {
			t.Errorf("%s has no section #%s", guide, l[1])
		}
	}
}
