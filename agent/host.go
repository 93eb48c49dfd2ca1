package agent

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// fillHost detects what the operator left open.
func (c *Config) fillHost() error {
	if c.CPU == 0 {
		c.CPU = gpuai.MilliCPU(runtime.NumCPU()) * 1000
	}
	if c.Memory == 0 {
		m, err := hostMemory()
		if err != nil {
			return err
		}
		c.Memory = m
	}
	return nil
}

func hostMemory() (gpuai.Bytes, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("detect the host's memory: %w; or say how much to offer", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		if len(field) >= 2 && field[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(field[1], 10, 64)
			return gpuai.Bytes(kib) << 10, err
		}
	}
	return 0, fmt.Errorf("detect the host's memory: /proc/meminfo has no MemTotal; say how much to offer")
}

// bootID names this boot of the host.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// newNonce names a new life of an identity.
func newNonce() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
