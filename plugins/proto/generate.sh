#!/bin/sh
# Generates driver.pb.go and driver_grpc.pb.go; run by "go generate".
# The generators are installed into a directory that is removed again, so that
# the result depends on the versions below and not on what PATH holds.
set -eu
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
# From the root of the module, so that the file's name in the protobuf registry,
# which is one for the whole process, is its path and collides with nobody's.
cd "$(dirname "$0")/../.."
PATH=$bin:$PATH protoc -I . \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	plugins/proto/driver.proto
