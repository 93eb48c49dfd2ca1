package gpuai

import (
	"errors"
	"strconv"
	"strings"
)

// enumName returns names[v], or a number for a value that has no name.
func enumName(names []string, v uint8) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "unknown(" + strconv.Itoa(int(v)) + ")"
}

// enumParse stores the index of text in names, or says which texts there are.
func enumParse(names []string, what string, text []byte, into *uint8) error {
	for i, n := range names {
		if n == string(text) {
			*into = uint8(i)
			return nil
		}
	}
	var known []string
	for _, n := range names {
		if n != "" {
			known = append(known, n)
		}
	}
	return errors.New(what + " is one of " + strings.Join(known, ", ") + ", not " + strconv.Quote(string(text)))
}
