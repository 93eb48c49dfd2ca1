package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	html "html/template"
	"os"
	"path/filepath"
	"strings"
	text "text/template"
)

//go:embed report.html.tmpl
var htmlPage string

//go:embed report.md.tmpl
var markdownPage string

// save writes the report for people, and as JSON beside it.
func (r *report) save(file string) error {
	page, err := r.page(filepath.Ext(file))
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, page, 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := os.WriteFile(strings.TrimSuffix(file, filepath.Ext(file))+".json", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// page renders the report as ".html" or ".md".
func (r *report) page(ext string) ([]byte, error) {
	var b bytes.Buffer
	var err error
	if ext == ".html" {
		err = html.Must(html.New("page").Parse(htmlPage)).Execute(&b, r)
	} else {
		cell := func(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, "|", "\\|"), "\n", " ") }
		err = text.Must(text.New("page").Funcs(text.FuncMap{"cell": cell}).Parse(markdownPage)).Execute(&b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("render the report: %w", err)
	}
	return b.Bytes(), nil
}

// Title is the page's.
func (r *report) Title() string { return "Chaos, profile " + r.Profile }

// Summary is the report in one sentence.
func (r *report) Summary() string { return r.summary() }

// OK reports whether everything held.
func (r *report) OK() bool { return r.ok() }
