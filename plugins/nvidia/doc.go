// Package nvidia is the driver of NVIDIA GPUs and MIG instances: it reads them
// through NVML, hands them out by CDI name, environment and device file, and
// follows their Xid errors. docs/drivers-nvidia.md is its manual.
//
// NVML is a C library of the host that may end the process that calls it, and may
// never answer. The package lives with both:
//
//   - the library is tried in a child process first (ProbeIfAsked); what kills the
//     child is reported as why there is no device, and tried again;
//   - symbols are looked up before they are called, since a missing one exits the
//     process with 127;
//   - a call that does not answer ends the driver (watchdog): the host starts it
//     again, and a stuck thread cannot be got rid of otherwise.
//
// All that needs cgo is behind a build constraint; without cgo the package has the
// parts that do not touch NVML, and no Driver.
package nvidia
