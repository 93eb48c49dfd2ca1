// Package driverpb is the wire form of the driver contract, generated from
// driver.proto. Package plugins converts it at its border; nothing else should
// import it.
//
// To generate it again, install protoc (Debian: protobuf-compiler, 3.21.12 was
// used) and run "go generate ./plugins/proto": the generators' versions are
// pinned in generate.sh.
package driverpb

//go:generate sh generate.sh
