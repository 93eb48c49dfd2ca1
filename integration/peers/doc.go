// Command peers measures another scheduler beside this project's, on the same
// machine and in the same run, so that the figures can be compared.
//
// Slurm is what Debian packages (slurmctld, slurm-client, munge). Its nodes are
// CLOUD nodes that never come up: what is measured is the way from a submit to
// the allocation that the controller logs, not the start of a task. GPUs are
// counted generic resources. Slurm runs with its defaults and tuned, as its
// guide for high throughput says. It does not make a job durable before it
// answers: it writes its state files every few seconds. A region of this
// project answers after a majority of its servers has the submit on disk. Its
// agents are simulated, and what is measured ends where the agent's session has
// the lease.
package main
