// Package jobfile reads job files: what people write, in YAML or JSON, with
// units that people use ("24GiB", "1h30m", cpu: 0.5). Parse turns a file into
// the wire form, gpuai.JobSpec, or says everything that is wrong with it at
// once, each with its file, line, column and an excerpt.
//
// It runs where the file is, at the client: a server takes the wire form only
// and never expands YAML. The schema of the file (Schema) accepts what is built
// and nothing else.
//
// A file passes through: source → tree (yaml.go, json.go; duplicates, limits)
// → schema (schema.go; unknown fields, types) → JobSpec (convert.go; units) →
// gpuai's Defaults and Validate, whose pointers are mapped back (pointer.go).
package jobfile
