// Package client is the Go client of a region's HTTP API.
//
// Any server takes any request and forwards it to the leader where it must, so
// a Client needs the addresses of a few servers, in any order, and looks for no
// leader. It keeps to the server that answered last and goes on to the next
// when one does not answer, or not in time. A request that changes something
// carries an idempotency key and is repeated with it until it is answered or
// the context ends: it happens once.
//
// Errors are *gpuai.Error, as errors.As finds them, with the code, the reasons
// and the request's ID; at the context's end they wrap the context's error too.
// Answers may have fields that this client does not know: the API grows within
// v1.
package client
