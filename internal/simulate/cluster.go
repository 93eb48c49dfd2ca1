package simulate

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// Defaults of a node that a cluster's description does not spell out.
const (
	coresPerGPU = 16
	gibPerGPU   = 128
)

var clusterPart = regexp.MustCompile(`^([0-9]+)x([0-9]+)(?::([^:]*))?(?::([0-9]+))?(?::([0-9]+))?$`)

// LoadCluster returns the nodes that a text names: those of a file as by
// LoadNodes, or those of a description such as "100x8:H100", which is 100 nodes
// of 8 devices of model H100. Parts are joined by commas; cores and GiB of a
// node may follow: "100x8:H100:96:1024,20x0::64:256".
func LoadCluster(text string) ([]TraceNode, error) {
	first, _, _ := strings.Cut(text, ",")
	if !clusterPart.MatchString(first) {
		return LoadNodes(text)
	}
	if _, err := os.Stat(text); err == nil {
		return LoadNodes(text)
	}
	var out []TraceNode
	for part := range strings.SplitSeq(text, ",") {
		m := clusterPart.FindStringSubmatch(part)
		if m == nil {
			return nil, fmt.Errorf("%q is no description of nodes: it is COUNTxGPUS[:MODEL[:CORES[:GIB]]], such as 100x8:H100", part)
		}
		n, err := nodeOf(m)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		count, err := strconv.Atoi(m[1])
		if err != nil || count < 1 || len(out)+count > fsm.MaxNodes {
			return nil, fmt.Errorf("%q: a cluster has 1 to %d nodes", part, fsm.MaxNodes)
		}
		for range count {
			n.Name = fmt.Sprintf("node-%06d", len(out)+1)
			out = append(out, n)
		}
	}
	return out, nil
}

// nodeOf reads the parts of a description.
func nodeOf(m []string) (TraceNode, error) {
	gpus, err := strconv.Atoi(m[2])
	if err != nil || gpus > gpuai.MaxGPUs {
		return TraceNode{}, fmt.Errorf("a node has at most %d devices", gpuai.MaxGPUs)
	}
	n := TraceNode{GPUs: gpus, Model: m[3], CPU: int64(max(1, gpus)) * coresPerGPU, Memory: int64(max(1, gpus)) * gibPerGPU}
	for i, v := range []*int64{&n.CPU, &n.Memory} {
		if m[4+i] == "" {
			continue
		}
		if *v, err = strconv.ParseInt(m[4+i], 10, 64); err != nil || *v < 1 || *v > 1<<20 {
			return n, fmt.Errorf("cores and GiB of a node are from 1 to %d", 1<<20)
		}
	}
	n.CPU, n.Memory = n.CPU*1000, n.Memory<<10
	if n.Model == "" {
		n.Model = "GPU"
	}
	return n, n.check()
}

// check says what is wrong with a node.
func (n *TraceNode) check() error {
	switch {
	case n.GPUs < 0 || n.GPUs > gpuai.MaxGPUs:
		return fmt.Errorf("a node has at most %d devices, not %d", gpuai.MaxGPUs, n.GPUs)
	case n.CPU < 0 || n.CPU >= int64(gpuai.MaxCPU):
		return fmt.Errorf("a node has less than %d milli-CPU, not %d", gpuai.MaxCPU, n.CPU)
	case n.Memory < 0 || n.Memory >= int64(gpuai.MaxMemory>>20):
		return fmt.Errorf("a node has less than %d MiB of memory, not %d", gpuai.MaxMemory>>20, n.Memory)
	case len(n.Model) > gpuai.MaxTextLen:
		return fmt.Errorf("the name of a model has at most %d characters", gpuai.MaxTextLen)
	case n.GPUs > 0 && n.Model == "":
		return fmt.Errorf("a node with devices names their model")
	}
	return nil
}

// LargestNode returns how many devices the node with the most of them has.
func LargestNode(nodes []TraceNode) int {
	most := 0
	for i := range nodes {
		most = max(most, nodes[i].GPUs)
	}
	return most
}
