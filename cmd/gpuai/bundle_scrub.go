package main

import (
	"regexp"

	"github.com/gpuai/gpuai"
)

// redacted stands for what looks secret.
const redacted = gpuai.Redacted

// secretPatterns find what looks secret in any text. A bundle is made of what
// holds no secrets; this is for what somebody logged, or named so. The first
// group stays.
var secretPatterns = []*regexp.Regexp{
	// A bearer or join token, or a bootstrap secret of ours, wherever it stands.
	regexp.MustCompile(`()\bgpu(?:(?:join)?_[A-Za-z0-9]+_[A-Za-z0-9_-]{8,}|boot-[A-Za-z0-9]{8,})`),
	// Authorization: Bearer …
	regexp.MustCompile(`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}`),
	// password=…, "api_key": "…", --secret …: a name that says so, and a value.
	regexp.MustCompile(`(?i)([\w.-]*(?:passw(?:or)?d|passphrase|secret|credential|private[_-]?key|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token|registry[_-]?auth)[\w.-]*\\?["']?\s*[:=]\s*)(?:\\?"(?:[^"\\]|\\.)*"|[^\s",;}&\[{]+)`),
	// The user of a URL.
	regexp.MustCompile(`(\b[a-z][a-z0-9+.-]*://)[^\s/@"']+@`),
	// A key in PEM.
	regexp.MustCompile(`()(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`),
}

// replacements are what takes a secret's place, by pattern.
var replacements = []string{redacted, "${1}" + redacted, `${1}"` + redacted + `"`, "${1}" + redacted + "@", redacted}

// scrub replaces what looks secret. JSON stays JSON.
func scrub(text []byte) []byte {
	for i, p := range secretPatterns {
		text = p.ReplaceAll(text, []byte(replacements[i]))
	}
	return text
}
