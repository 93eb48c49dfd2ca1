package plugins

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// Serve runs d as a driver process; it is all that a driver's main does. Under an
// agent it serves until the agent ends it; run by hand it explains itself. It
// returns the exit status.
func Serve(d Driver) int {
	if os.Getenv(cookieKey) != cookieValue {
		return explainByHand(d.Info(), os.Args[1:], os.Stdout, os.Stderr)
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{ProtocolVersion: {serviceName: &glue{impl: d}}},
		GRPCServer:       func(opts []grpc.ServerOption) *grpc.Server { return grpc.NewServer(opts...) },
		Logger:           hclog.New(&hclog.LoggerOptions{Output: os.Stderr, JSONFormat: true, Level: hclog.Info}),
	})
	return 0
}

// Logger returns a logger for a driver: to standard error, in the form that the
// host takes apart again. Make it before Serve, which redirects os.Stderr.
func Logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// explainByHand answers somebody who runs a driver in a shell.
func explainByHand(i Info, args []string, stdout, stderr io.Writer) int {
	arg := strings.Join(args, " ")
	switch arg {
	case "--version", "-version", "version":
		fmt.Fprintln(stdout, versionLine(i))
		return 0
	case "--help", "-help", "-h", "help":
		fmt.Fprintln(stdout, helpText(i))
		return 0
	case "--schema":
		fmt.Fprintln(stdout, i.ConfigSchema)
		return 0
	case "":
		fmt.Fprintln(stderr, helpText(i))
	default:
		fmt.Fprintf(stderr, "unknown argument %q: a driver takes none but --help, --version and --schema\n", arg)
	}
	return 2
}

func versionLine(i Info) string {
	line := fmt.Sprintf("gpuai driver %s %s (contract version %d)", i.Name, i.Version, ProtocolVersion)
	if i.Simulated {
		line += ", SIMULATED: its devices are made up"
	}
	return line
}

func helpText(i Info) string {
	return versionLine(i) + `

This program is a driver of GPUAI: it tells the agent of a node which devices
there are and hands them out. The agent starts it; it does nothing by itself.
Give its path and configuration to the agent, which is "gpuai agent run".

  --version   print the version
  --schema    print the JSON Schema of its configuration
  --help      print this`
}
