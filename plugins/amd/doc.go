// Package amd is the driver of AMD's GPUs. It links no library of the vendor: the
// kernel tells all that it needs in sysfs, in KFD's topology (the compute side of
// the amdgpu driver) and in hwmon. docs/drivers-amd.md says what it reads and
// what each health code means.
//
// Every read is below a root directory, so that tests run on trees that they
// build (amdtest), and is bounded: a file that is missing, too long or garbage is
// a value that is not there.
package amd
