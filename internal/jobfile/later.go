package jobfile

import (
	"slices"
	"strings"
)

// laterFields are fields of the design that this build does not have, by their
// name. They are refused like any unknown field, in words that say so.
var laterFields = map[string]string{
	"prefer": "packing preferences", "trust": "trust levels", "regions": "a choice of regions",
	"max_price_per_gpu_hour": "a price limit", "max_cost": "a cost limit",
	"matrix":  "array matrices",
	"mounts":  "mounts",
	"service": "services", "update": "rolling updates", "call": "functions",
	"profile": "partition profiles", "user": "users of tasks",
	"mode": "sharing modes", "scale": "autoscaling", "capability": "GPU capabilities",
	"disk": "scratch disks", "queue": "named queues",
	"min_gpu_utilization": "a floor of GPU use", "path": "paths of checkpoints", "resume_env": "paths of checkpoints", "success_codes": "success codes",
}

// instead names what to use in place of a later field, where there is something.
var instead = map[string]string{
	"profile": `; use share: {milli: 1…999}`,
	"disk":    `; use resources: {scratch: 20GiB}`,
	"mounts":  `; a plain process sees its node's files`,
}

// unknown says that a field is not known, and what may have been meant.
func unknown(pointer, name string, known []string) string {
	if what, ok := laterFields[name]; ok && !strings.Contains(pointer, "/env/") {
		return "is not built yet (" + what + ")" + instead[name]
	}
	if name == "secrets" {
		return "is a field of each task: task: {secrets: [{name: NAME}], env: {TOKEN: {secret: NAME}}}"
	}
	if name == "min_count" {
		return "is a field of the wire form; a file says count: {min: 2, max: 8}"
	}
	if plain := fileName(name); plain != name && slices.Contains(known, plain) {
		return "is a field of the wire form; a file says " + plain + fileExample[plain]
	}
	if near := nearest(name, known); near != "" {
		return "is not a known field; did you mean " + near + "?"
	}
	return "is not a known field; known here: " + strings.Join(known, ", ")
}

// fileExample shows how a file writes what the wire names with a unit.
var fileExample = map[string]string{
	"cpu": ": 0.5", "memory": ": 24GiB", "run_time": ": 2h", "queue_time": ": 12h",
	"scratch": ": 20GiB", "shm": ": 8GiB", "lease_ttl": ": 1m", "backoff": ": 15s", "stop_grace": ": 5s", "grace": ": 30s",
}

// laterValue says that a value of a known field belongs to a later capability;
// "" when it does not.
func laterValue(pointer string, n *node) string {
	switch {
	case n == nil:
	case pointer == "/type" && (n.text == "service" || n.text == "function"):
		return "the type " + n.text + " is not built yet; use batch or train"
	case strings.HasSuffix(pointer, "/launcher/kind") && n.text == "mpi":
		return "the launcher mpi is not built yet; use env or torchrun"
	case strings.HasSuffix(pointer, "/launcher/kind") && n.text == "none":
		return "leave the launcher out: a task without one is started once"
	case strings.Contains(pointer, "/restart/on/") && n.text == "preempted":
		return "a task that was preempted is placed again in any case; leave it out"
	}
	return ""
}

// nearest returns the name that differs from s by at most two edits, the
// nearest and then the first; "" when none does.
func nearest(s string, names []string) string {
	best, out := 3, ""
	for _, n := range names {
		if d := distance(s, n); d < best && d < len(n) {
			best, out = d, n
		}
	}
	return out
}

// distance is the number of single-byte edits between two short names.
func distance(a, b string) int {
	if len(a) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
