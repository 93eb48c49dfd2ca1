// Package conformance is the test that every driver must pass: the contract of
// plugins/proto/driver.proto, checked on the driver's binary.
//
// A driver's own test calls Run with its binary and a configuration that yields
// at least one healthy device (two show more). Nothing else may use the devices
// meanwhile: they are reserved, released and scrubbed.
package conformance
