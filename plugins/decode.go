package plugins

import (
	"fmt"

	"github.com/go-json-experiment/json"
)

// DecodeConfig reads a driver's configuration: unknown and duplicate fields,
// invalid UTF-8 and trailing data are refused. Its errors wrap ErrInvalid and
// name the field.
func DecodeConfig(src []byte, into any) error {
	if err := json.Unmarshal(src, into, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	return nil
}
