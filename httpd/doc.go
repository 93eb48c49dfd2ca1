// Package httpd is the HTTP API of a region, version v1, over its own small
// Backend interface: routes, strict decoding, one table of errors, lists with
// filters, blocking queries, event streams, task output and the agents'
// sessions.
//
// The contract is openapi.json, embedded and served at /v1/openapi.json; tests
// hold every handler's answers against it. Any server of a region takes any
// request: what needs the leader is forwarded to it once, as a whole HTTP
// request, never redirected.
//
// Nothing here decides anything about jobs, leases or nodes, and nothing is
// read before a write: conditions travel inside the command.
package httpd
