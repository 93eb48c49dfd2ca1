package gpuai

// Packing is the policy by which the machine chooses among the nodes that fit.
type Packing uint8

// Packing policies. FGD is a reference for measurements: only a simulated
// machine takes it.
const (
	PackingBestFit Packing = iota
	PackingEFW
	PackingFGD
)

var packingNames = []string{"bestfit", "efw", "fgd"}

// String returns the policy's name.
func (p Packing) String() string { return enumName(packingNames, uint8(p)) }

// MarshalText returns the policy's name.
func (p Packing) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the policy's name. The error names those that there are.
func (p *Packing) UnmarshalText(text []byte) error {
	return enumParse(packingNames, "packing", text, (*uint8)(p))
}
