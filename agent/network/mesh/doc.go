// Package mesh links a gang's network namespace on one host with those on others: a
// WireGuard device in user space, one for each gang and host, in a process of its own.
//
// The process is the program gpuai-mesh. It outlives the agent that starts it, as
// tasks do, and ends when the namespace has had no member for a while, or when an agent
// says so. It makes the private key, tells the public one, and keeps both in memory
// only: no file and no other process ever has the private one. Once the device is
// there it gives up all privileges; what is left to it are the device, its UDP
// sockets in the host's network, and a socket by which agents tell it its peers.
package mesh
