// Package client is the Go client of a region's HTTP API.
//
// Any server takes any request, so a Client needs the addresses of a few, in
// any order. It keeps to the one that answered last and goes on to the next
// when one does not. A request that changes something carries an idempotency
// key and is repeated with it until it is answered or the context ends: it
// happens once. Errors are *gpuai.Error, or those of the context and transport.
package client
