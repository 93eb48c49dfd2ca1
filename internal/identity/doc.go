// Package identity proves who is who in a region: its CA, the certificates of
// servers and nodes, join tokens, and the keyring under which key material is
// kept.
//
// A certificate names one server or node of one cluster, as the only URI
// spiffe://CLUSTER/server/ID or …/node/ID, and its serial number begins with the
// stamp at which it was issued, by which the region revokes it. All connections
// are TLS 1.3. A Source holds this process's certificate and what it trusts:
// both change while connections are made, without a restart.
//
// The package does no I/O of its own but on connections that it is given; files
// belong to package store, requests to client and server.
package identity
