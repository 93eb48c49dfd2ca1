package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
)

//go:embed templates/*.yaml
var templates embed.FS

var templateNames = []string{"hello", "array", "train", "share"}

func newJobInitCmd(a *app) *cobra.Command {
	var kind, name string
	var force bool
	c := &cobra.Command{
		Use: "init [FILE]", Short: "Write a job file to begin with", Args: cobra.MaximumNArgs(1),
		Long: "Write a job file to begin with to FILE, or to standard output.",
		Example: `  gpuai job init job.yaml
  gpuai job init --example train --name llama > train.yaml`,
	}
	c.Flags().StringVar(&kind, "example", "hello", "one of "+strings.Join(templateNames, ", "))
	c.Flags().StringVar(&name, "name", "", "the job's name (default: the example's)")
	c.Flags().BoolVar(&force, "force", false, "overwrite FILE")
	c.RunE = does(func(_ context.Context, args []string) error {
		src, err := template(kind, name)
		if err != nil {
			return err
		}
		if len(args) == 0 || args[0] == "-" {
			_, err := a.out.Write(src)
			return err
		}
		flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
		if force {
			flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		}
		f, err := os.OpenFile(args[0], flags, 0o644)
		if errors.Is(err, os.ErrExist) {
			return usageError{fmt.Errorf("%s is there already; --force overwrites it", args[0])}
		}
		if err != nil {
			return fmt.Errorf("writing the job file: %w", err)
		}
		_, err = f.Write(src)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("writing the job file: %w", err)
		}
		a.say("wrote %s; submit it with: gpuai run %s\n", args[0], args[0])
		return nil
	})
	return c
}

// template returns an example under a name.
func template(kind, name string) ([]byte, error) {
	if !slices.Contains(templateNames, kind) {
		return nil, usageError{fmt.Errorf("--example is one of %s, not %q", strings.Join(templateNames, ", "), kind)}
	}
	src, err := templates.ReadFile("templates/" + kind + ".yaml")
	if err != nil || name == "" {
		return src, err
	}
	if !gpuai.ValidName(name) {
		return nil, usageError{fmt.Errorf("--name has 1 to 63 characters of a-z, 0-9 and '-', not %q", name)}
	}
	return bytes.Replace(src, []byte("\nname: "+kind+"\n"), []byte("\nname: "+name+"\n"), 1), nil
}
