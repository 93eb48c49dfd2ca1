package httpd

import (
	"encoding"
	"reflect"
	"strings"
)

// project returns v, a pointer to a struct, as filters see it: a map from the
// names of its JSON form to its values, zeros included, with every text in
// place of what it stands for. Numbers keep their kinds, which filters compare
// exactly.
func project(v any) map[string]any {
	out := map[string]any{}
	projectFields(reflect.ValueOf(v).Elem(), out)
	return out
}

func projectFields(v reflect.Value, out map[string]any) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			projectFields(v.Field(i), out)
			continue
		}
		if name := jsonName(f); name != "" {
			out[name] = projectValue(v.Field(i))
		}
	}
}

// jsonName is the name of f in JSON; every field of the vocabulary is tagged.
func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func projectValue(v reflect.Value) any {
	if v.Kind() == reflect.Pointer && v.IsNil() { // before it is asked for its text
		return map[string]any{}
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return ""
		}
		return string(text)
	}
	switch v.Kind() {
	case reflect.Pointer:
		return projectValue(v.Elem())
	case reflect.Struct:
		out := map[string]any{}
		projectFields(v, out)
		return out
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = projectValue(v.Index(i))
		}
		return out
	default:
		return v.Interface()
	}
}

// fieldNames returns the names of T's JSON form, in its order.
func fieldNames[T any]() []string { return appendNames(nil, reflect.TypeFor[T]()) }

func appendNames(dst []string, t reflect.Type) []string {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			dst = appendNames(dst, f.Type)
		} else if name := jsonName(f); name != "" {
			dst = append(dst, name)
		}
	}
	return dst
}
