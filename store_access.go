package gpuai

import "strconv"

// This file is how an agent uses the region's store without credentials of it: for
// each lease it asks the servers, which judge by the lease.

// Limits of what an agent asks for at once.
const (
	MaxStoreOps  = 256
	MaxStorePage = 1_000
)

// A StoreLease says for which lease a node asks. A node's certificate must be of
// Node; in a region without authentication it is believed.
type StoreLease struct {
	Node        NodeID      `json:"node"`
	Lease       Token       `json:"lease"`
	Incarnation Incarnation `json:"incarnation,omitzero"`
}

// A StoreOp is one use of one blob.
type StoreOp struct {
	// Put stores it; else it is read.
	Put bool `json:"put,omitzero"`
	// Key is as in the store, such as checkpoints/JOB/0-0/TOKEN/chunks/SHA256.
	Key string `json:"key"`
	// Bytes is the exact size of what is put.
	Bytes int64 `json:"size_bytes,omitzero"`
}

// A StoreAsk asks for the use of blobs: at most MaxStoreOps. What is asked for is
// granted whole, or refused whole.
type StoreAsk struct {
	StoreLease
	Objects []StoreOp `json:"objects"`
}

// Validate returns what is out of bounds.
func (a *StoreAsk) Validate() []FieldError {
	if n := len(a.Objects); n == 0 || n > MaxStoreOps {
		return []FieldError{{Pointer: "/objects", Detail: "has 1 to " + strconv.Itoa(MaxStoreOps) + " entries"}}
	}
	return nil
}

// A StoreGrant is leave for one StoreOp. Whoever has it can do the one thing that it
// is for until it expires.
type StoreGrant struct {
	// URL takes the request, with Header; "" is that of the servers themselves,
	// /v1/agent/store/object, with the node's certificate.
	URL    string            `json:"url,omitzero"`
	Header map[string]string `json:"header,omitempty"`
	// ExpiresIn is for how long the request may yet begin.
	ExpiresIn Duration `json:"expires_in_ms"`
}

// StoreGrants answers a StoreAsk, in its order.
type StoreGrants struct {
	Grants []StoreGrant `json:"grants"`
}

// A StoreObject is a blob of a listing.
type StoreObject struct {
	Key   string `json:"key"`
	Bytes int64  `json:"size_bytes"`
}

// StoreObjects is a page of what a lease has stored of its task's checkpoints, in
// the order of keys. Next is the cursor of the next page; "" at the end.
type StoreObjects struct {
	Objects []StoreObject `json:"objects"`
	Next    string        `json:"next,omitzero"`
}

// A StoreDelete asks that blobs be deleted which the same lease has stored: at most
// MaxStoreOps. What is published and kept is not deleted.
type StoreDelete struct {
	StoreLease
	Keys []string `json:"keys"`
}

// Validate returns what is out of bounds.
func (d *StoreDelete) Validate() []FieldError {
	if n := len(d.Keys); n == 0 || n > MaxStoreOps {
		return []FieldError{{Pointer: "/keys", Detail: "has 1 to " + strconv.Itoa(MaxStoreOps) + " entries"}}
	}
	return nil
}
