//go:build !linux

package scheduler

import "testing"

func startCPU(*testing.B) (stop func()) { return func() {} }
