package scheduler

import "github.com/gpuai/gpuai"

// Classes, in the order in which a search tries them: the tightest first.
//
// Class l < numLevels holds a unit once for each distinct remainder that its
// usable, partly used devices have in [l·levelStep, (l+1)·levelStep). Class
// wholeClass+g holds a unit with exactly g wholly free, usable devices: every
// open unit is in exactly one of these.
const (
	levelStep  = 50
	numLevels  = 20
	wholeClass = numLevels
	numClasses = numLevels + gpuai.MaxGPUs + 1
	// capacityTree is no class but a further tree of each pool: all units,
	// open or not, by what they have when nothing is used.
	capacityTree = numClasses
	// levelTrees are further trees of each pool, one for each level: its units
	// once, without their remainders. In the level's own tree CPU only orders
	// the units of one remainder; here it orders all of them, so that one
	// descent says whether any has the CPU and memory.
	levelTrees = numClasses + 1
	numTrees   = levelTrees + numLevels
)

// The levels cover a device exactly.
var _ [numLevels * levelStep]struct{} = [gpuai.WholeDevice]struct{}{}

// numSizes is how many devices a unit may have, and none.
const numSizes = gpuai.MaxGPUs + 1

// poolWords is the length of a bitmap of all pools.
const poolWords = MaxPools / 64

// A key orders the units of a tree: by prefix, then free CPU, then node. The
// prefix is the remainder within its level, 0 in a class of whole devices, and
// the number of devices in the capacity tree. Its 7 + 31 + 24 bits suffice by
// gpuai.MaxGPUs, gpuai.MaxCPU and MaxNodes.
const (
	cpuShift    = 24
	prefixShift = cpuShift + 31
	nodeMask    = 1<<cpuShift - 1
	cpuMask     = 1<<31 - 1
)

func makeKey(prefix uint64, cpu int64, node uint32) uint64 {
	return prefix<<prefixShift | min(uint64(cpu), cpuMask)<<cpuShift | uint64(node)
}

func keyPrefix(k uint64) uint64 { return k >> prefixShift }
func keyCPU(k uint64) uint64    { return k >> cpuShift & cpuMask }
func keyNode(k uint64) uint32   { return uint32(k & nodeMask) }
