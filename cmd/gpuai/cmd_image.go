package main

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai/agent/image"
)

// defaultRegistry is where gpuai dev has its registry.
const defaultRegistry = "127.0.0.1:7475"

func newImageCmd(a *app) *cobra.Command {
	return group("image", "Bring local images to where nodes find them", newImagePushCmd(a))
}

func newImagePushCmd(a *app) *cobra.Command {
	var to image.Destination
	c := &cobra.Command{
		Use: "push PATH NAME", Short: "Push a local image to a registry", Args: cobra.ExactArgs(2),
		Long: `Push an image that is a file of this machine, so that job files can name it.

PATH is an OCI layout's directory, an archive of docker save, a directory whose
files become the image's root, or one statically linked program. A layout or an
archive with several images takes PATH:TAG. A NAME without a registry goes to
--registry, which is that of gpuai dev; docker push works with it as well.

It prints the image's name, and its name by digest with -o json.`,
		Example: `  gpuai image push ./train app:v1
  gpuai image push ./rootfs team/app:v2
  docker save app:v1 -o app.tar && gpuai image push app.tar registry.example.com/team/app:v1 --registry-credentials ~/.docker/config.json`,
	}
	c.Flags().StringVar(&to.Registry, "registry", "", "registry of names without one (default: $GPUAI_REGISTRY, or "+defaultRegistry+")")
	c.Flags().StringVar(&to.Credentials, "registry-credentials", "", "file of registry credentials, in the form of docker's config.json")
	c.RunE = does(func(ctx context.Context, args []string) error {
		to.Name, to.Registry = args[1], cmp.Or(to.Registry, a.getenv("GPUAI_REGISTRY"), defaultRegistry)
		local, err := image.OpenLocal(args[0])
		if err != nil {
			return usageError{err}
		}
		p := a.newProgress(false)
		told := p.of("pushing: ", "KiB")
		to.Progress = func(done, total int64) { told(int(done>>10), int(total>>10)) }
		tag, digest, err := local.Push(ctx, to)
		p.end()
		if err != nil {
			return &exitError{code: exitOther, text: err.Error(), next: "see that the registry is there: gpuai dev says its address at the start; --registry names another"}
		}
		return a.showObject(ctx, map[string]string{"image": tag, "resolved": digest, "from": local.What}, &view{
			names: []string{tag},
			text: func(w io.Writer) error {
				_, err := fmt.Fprintln(w, tag)
				return err
			},
		})
	})
	return a.prints(c)
}
