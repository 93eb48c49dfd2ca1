// Package image brings container images onto a node: it resolves a name to a
// digest, fetches what is missing into a bounded cache, and unpacks it into a
// root directory, refusing what no honest image contains.
//
// A Store is one node's cache. Its files are named by their content, so that
// an interrupted fetch, a crash or a second agent never leaves a wrong image
// under a right name. A hold keeps an image while a task runs in it; holds are
// files too, and outlive the agent as the tasks do.
//
//	blobs/sha256-HEX   a layer as its registry sent it, verified
//	images/HEX/        image.json and root, the unpacked image; HEX is the
//	                   digest of the manifest
//	holds/NAME         the HEX of the image that NAME needs
//	tmp/               what is being made, emptied by Open
//
// What comes from a registry is hostile until shown otherwise: every byte is
// counted against a limit before it is kept, every digest is checked, and a
// layer's entries pass a filter (filter.go) before containerd's archive package
// applies them. A refused image is a RefusedError, which says which layer and
// entry and why.
package image
