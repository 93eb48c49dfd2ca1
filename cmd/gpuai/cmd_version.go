package main

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
)

// A build says what this binary is.
type build struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func newVersionCmd(a *app) *cobra.Command {
	return a.prints(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: `  gpuai version
  gpuai version -o json`,
		RunE: does(func(ctx context.Context, _ []string) error {
			if err := a.checkFormat(); err != nil {
				return err
			}
			b := build{Version: gpuai.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			return a.showObject(ctx, b, &view{
				names: []string{b.Version},
				text: func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "gpuai %s %s %s/%s\n", b.Version, b.Go, b.OS, b.Arch)
					return err
				},
			})
		}),
	})
}
