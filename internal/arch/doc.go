// Package arch enforces the architecture: who may import whom, who owns which
// third-party module, what the deterministic core may say, and how long a
// function or file may get. All of it is tests; policy_test.go is the policy.
package arch
