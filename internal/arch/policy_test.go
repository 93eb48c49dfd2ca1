package arch

import "strings"

// This file is a statement of policy, not a description of the tree: do not
// change it to fix a build. Names are paths within the module without
// internal/, "." is the root.

// layers says which packages of the module a package may import. A package
// without a row of its own has that of its first directory, and may import its
// neighbours there. A row with a slash is the whole truth about its package.
var layers = map[string]string{
	".":          "",
	"mem":        "",
	"scheduler":  ". mem",
	"billing":    ". mem",
	"fsm":        ". mem scheduler billing fsm/wire",
	"store":      ".",
	"telemetry":  ".",
	"identity":   ".",
	"blobs":      ".",
	"raft":       ". fsm store telemetry identity",
	"jobfile":    ".",
	"httpd":      ". jobfile telemetry identity",
	"client":     ". identity",
	"plugins":    ". telemetry",
	"agent":      ". client plugins store blobs identity telemetry",
	"federation": ". client telemetry",
	"server":     ". fsm raft store httpd client federation blobs identity telemetry",
	"simulate":   ". fsm scheduler store",
	"loadgen":    ". client identity",
	"cmd":        ". server agent agent/doctor agent/image client plugins jobfile simulate loadgen fsm store identity telemetry server/offline",
	"examples":   ". client plugins",
	"arch":       "",

	"fsm/wire":             ".",
	"agent/cdi":            "",
	"agent/doctor":         ". agent agent/cdi agent/image agent/network agent/probe agent/sandbox agent/watchdog plugins",
	"agent/image":          ".",
	"agent/probe":          "",
	"agent/sandbox":        ".",
	"agent/watchdog":       ".",
	"server/offline":       ". fsm store",
	"plugins/proto":        "",
	"cmd/gpuai-watchdog":   "agent/watchdog",
	"cmd/gpuai-mesh":       "agent/network/mesh",
	"cmd/gpuai-probe":      "agent/probe",
	"cmd/gpuai-driver-amd": ". plugins plugins/amd",
	"cmd/gpuai-driver-sim": ". plugins plugins/sim",

	"plugins/nvidia":          ". plugins",
	"cmd/gpuai-driver-nvidia": ". plugins plugins/nvidia",

	"agent/network":          ". agent/network/mesh agent/network/netspace",
	"agent/network/mesh":     ". agent/network/netspace",
	"agent/network/netspace": "",
	"agent/network/nettest":  "agent/network/netspace",
}

// anything lists the layers that may import all others, and that nobody
// imports.
var anything = []string{"integration"}

// owners says which packages, with those below them, may import a third-party
// module outside of tests; "" is for modules of tests, which any test may
// import. Every module that go.mod requires directly has a row.
var owners = map[string]string{
	"github.com/aws/aws-sdk-go-v2/service/s3":  "blobs",
	"github.com/aws/smithy-go":                 "blobs",
	"gocloud.dev":                              "blobs",
	"github.com/coder/websocket":               "httpd client",
	"github.com/containerd/containerd/v2":      "agent/image",
	"github.com/coreos/go-oidc/v3":             "identity",
	"github.com/creack/pty":                    "agent",
	"github.com/containerd/continuity":         "agent/image",
	"github.com/go-json-experiment/json":       "jobfile httpd client plugins agent server store simulate loadgen blobs cmd examples",
	"github.com/goccy/go-yaml":                 "jobfile",
	"github.com/google/go-containerregistry":   "agent/image",
	"github.com/gorilla/mux":                   "httpd",
	"github.com/hashicorp/go-bexpr":            "httpd",
	"github.com/hashicorp/go-hclog":            "telemetry plugins",
	"github.com/hashicorp/go-metrics":          "telemetry",
	"github.com/hashicorp/go-plugin":           "plugins",
	"github.com/hashicorp/raft":                "raft store",
	"github.com/hashicorp/raft-boltdb/v2":      "store",
	"github.com/itchyny/gojq":                  "cmd",
	"github.com/klauspost/compress":            "agent/image",
	"github.com/moby/profiles/seccomp":         "agent/sandbox",
	"github.com/oklog/ulid/v2":                 "server client",
	"github.com/opencontainers/runtime-spec":   "agent/sandbox",
	"github.com/prometheus/client_golang":      "telemetry raft server httpd plugins agent",
	"github.com/prometheus/procfs":             "plugins",
	"github.com/santhosh-tekuri/jsonschema/v6": "jobfile",
	"github.com/sethvargo/go-retry":            "client agent",
	"github.com/spf13/cobra":                   "cmd",
	"github.com/vishvananda/netlink":           "agent/network",
	"go.etcd.io/bbolt":                         "store",
	"golang.org/x/oauth2":                      "identity",
	"golang.org/x/sync":                        "client raft plugins agent server loadgen blobs cmd",
	"golang.org/x/sys":                         "store plugins agent loadgen cmd",
	"golang.org/x/time":                        "httpd plugins agent server loadgen",
	"golang.zx2c4.com/wireguard":               "agent/network/mesh",
	"google.golang.org/grpc":                   "plugins",
	"google.golang.org/protobuf":               "plugins",

	"tags.cncf.io/container-device-interface":          "agent/cdi plugins",
	"tags.cncf.io/container-device-interface/specs-go": "agent/cdi plugins",

	"github.com/NVIDIA/go-nvml":                  "plugins/nvidia",
	"github.com/NVIDIA/nvidia-container-toolkit": "plugins/nvidia",

	"github.com/anishathalye/porcupine": "integration",

	"github.com/getkin/kin-openapi":   "",
	"github.com/rclone/gofakes3":      "",
	"github.com/zitadel/oidc/v3":      "",
	"github.com/rogpeppe/go-internal": "",
	"pgregory.net/rapid":              "",
}

// confined lists packages that may import no third-party modules but these,
// whatever owners says: they run where there must be little.
var confined = map[string]string{
	"agent/watchdog":     "golang.org/x/sys",
	"agent/probe":        "golang.org/x/sys",
	"agent/network/mesh": "github.com/vishvananda/netlink golang.org/x/sys golang.zx2c4.com/wireguard",
	"cmd/gpuai-watchdog": "",
	"cmd/gpuai-mesh":     "",
	"cmd/gpuai-probe":    "",
}

// pure lists the layers that run inside fsm.Machine.Apply, pureImports all that
// they may import from the standard library.
var (
	pure        = []string{".", "mem", "scheduler", "billing", "fsm"}
	pureImports = strings.Fields("bytes cmp crypto/sha256 encoding/binary errors fmt hash/crc32 hash/crc64 io iter maps math math/bits slices strconv strings unicode/utf8")
)

// lastDefences lists the only functions of the core that may defer and recover:
// around one command, and around a snapshot that is being read.
var lastDefences = []string{"fsm.guard", "fsm.Restore"}

// impureFuncs are functions of those packages that a replica must not call:
// they use reflection, do I/O, or yield in map order.
var impureFuncs = map[string]string{
	"encoding/binary": "Read Write Size Encode Decode Append",
	"fmt":             "Print Printf Println Scan Scanf Scanln Fscan Fscanf Fscanln Sscan Sscanf Sscanln",
	"maps":            "All Keys Values Collect Insert DeleteFunc EqualFunc",
}

// Walls of style, in lines. Generated code is exempt.
const (
	maxFuncLines = 70
	maxFileLines = 1_000
)
