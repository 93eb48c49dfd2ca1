// Package doctor looks at a host as its agent would, and says what the node can
// run, what not, why, and what to do about it.
//
// Looking and judging are apart: gather fills Facts from the host, Judge turns
// them into checks by codes that do not change (Codes; docs/doctor.md). Looking
// changes nothing on the host and takes no lock, so that an agent on the same data
// directory goes on undisturbed: drivers are started with directories of their
// own and asked only what there is.
//
// Probe runs gpuai-probe in a sandbox as the agent makes them, under a watchdog
// of its own, and says of each attempt to get out what came of it.
package doctor
