package arch

import (
	"go/ast"
	"go/parser"
	"strings"
	"testing"
)

// seeded are small sources of a package fsm: what is wrong with each, "" for
// nothing.
var seeded = []struct{ name, src, want string }{
	{"named float", `var f float64`, "floating point"},
	{"float field", `type t struct{ x uint8; y float32 }`, "floating point"},
	{"float in a map's type", `var m map[string]float64`, "floating point"},
	{"unnamed float", `import "math"; func f() int64 { return int64(math.Sqrt(2)*1.5) }`, "floating point"},
	{"constant float", `func f(n int64) int64 { return n * int64(1.5*4) }`, "floating point"},
	{"float argument", `import "fmt"; func f() string { return fmt.Sprint(0.5) }`, "floating point"},
	{"inferred float", `import "math"; func f(b uint64) bool { x := math.Float64frombits(b); return x == x }`, "floating point"},
	{"type with a float below", `type t float64; func f(x t) t { return x + x }`, "floating point"},
	{"complex", `func f(a, b int) bool { return a == b && 1i == 1i }`, "floating point"},
	{"integers", `func f(n int64) int64 { return n * 3 / 2 << 4 }`, ""},

	{"range over a map", `func f(m map[int]int) { for range m {} }`, "range over a map"},
	{"range over a named map", `type t map[int]int; func f(m t) { for k := range m { _ = k } }`, "range over a map"},
	{"range over a generic map", `func f[M ~map[int]int](m M) { for range m {} }`, "range over a map"},
	{"range over a slice", `func f(m []int) { for range m {} }`, ""},
	{"sorted keys", `import ("maps"; "slices"); func f(m map[string]int) []string { return slices.Sorted(maps.Keys(m)) }`, ""},
	{"sorted keys, instantiated", `import ("maps"; "slices"); func f(m map[string]int) []string { return slices.Sorted[string](maps.Keys(m)) }`, ""},
	{"keys", `import ("maps"; "slices"); func f(m map[string]int) []string { return slices.Collect(maps.Keys(m)) }`, "maps.Keys"},
	{"keys kept", `import ("maps"; "slices"); func f(m map[string]int) []string { k := maps.Keys(m); return slices.Sorted(k) }`, "maps.Keys"},
	{"keys by another order", `import ("maps"; "slices"); func f(m map[string]int) []string { return slices.SortedFunc(maps.Keys(m), func(a, b string) int { return 0 }) }`, "maps.Keys"},
	{"keys of our own Sorted", `import ("iter"; "maps"); func Sorted(iter.Seq[string]) {}; func f(m map[string]int) { Sorted(maps.Keys(m)) }`, "maps.Keys"},
	{"values", `import ("maps"; "slices"); func f(m map[string]int) []int { return slices.Sorted(maps.Values(m)) }`, "maps.Values"},
	{"all", `import "maps"; func f(m map[string]int) { for range maps.All(m) {} }`, "maps.All"},
	{"deletion in map order", `import "maps"; func f(m map[string]int) { maps.DeleteFunc(m, func(string, int) bool { return true }) }`, "maps.DeleteFunc"},
	{"a clone", `import "maps"; func f(m map[string]int) map[string]int { return maps.Clone(m) }`, ""},

	{"goroutine", `func f() { go f() }`, "go statement"},
	{"select", `func f() { select {} }`, "select statement"},
	{"channel type", `type t struct{ c chan int }`, "channel"},
	{"channel made", `func f() { _ = make(chan int) }`, "channel"},
	{"channel of an inferred type", `func g() (c <-chan int) { return }; func f() { <-g() }`, "channel"},
	{"defer", `func f() { defer f() }`, "defer"},
	{"recover", `func f() { recover() }`, "recover"},
	{"the last defence", `func guard() { defer func() { recover() }() }`, ""},
	{"print", `func f() { println() }`, "println"},
	{"printing", `import "fmt"; func f() { fmt.Println() }`, "fmt.Println"},
	{"reflection", `import ("encoding/binary"; "io"); func f(w io.Writer) { binary.Write(w, binary.LittleEndian, 1) }`, "binary.Write"},
	{"a format", `import "fmt"; func f(n int) string { return fmt.Sprintf("%d", n) }`, ""},
	{"an address", `import "unsafe"; func f(p *int) uintptr { return uintptr(unsafe.Pointer(p)) }`, "address"},

	{"variable set", `var n int; func f() { n = 1 }`, "variable of a package"},
	{"variable counted", `var n int; func f() { n++ }`, "variable of a package"},
	{"variable's element set", `var n [3]struct{ a []int }; func f() { n[0].a[1] = 1 }`, "variable of a package"},
	{"variable pointed to", `var n int; func f() *int { return &n }`, "variable of a package"},
	{"variable set by a method", `type t int; func (x *t) inc() { *x++ }; var n t; func f() { n.inc() }`, "variable of a package"},
	{"variable set by a loop", `var n int; func f() { for n = range 3 {} }`, "variable of a package"},
	{"another package's variable", `import "io"; func f() { io.EOF = nil }`, "variable of a package"},
	{"variable read", `var n = []int{1}; func f() int { return n[0] }`, ""},
	{"local set", `func f() { n := 1; n++; p := &n; *p = 2 }`, ""},

	{"int in a record", `type aRec struct{ n int }`, "is a record"},
	{"uint in a record", `type aRec struct{ n uint }`, "is a record"},
	{"int below a record", `type b struct{ n [2]struct{ m int } }; type aRec struct{ b }`, "is a record"},
	{"named int in a record", `type b int; type aRec struct{ n b }`, "is a record"},
	{"string in a record", `type aRec struct{ s string }`, "is a record"},
	{"slice in a record", `type aRec struct{ s []byte }`, "is a record"},
	{"pointer in a record", `type aRec struct{ s *aRec }`, "is a record"},
	{"a record", `type aRec struct{ a int64; b [4]uint16; c struct{ d bool } }`, ""},
	{"no record", `type a struct{ n int; s string }`, ""},
	{"int in a table", `import "github.com/gpuai/gpuai/internal/mem"; type a struct{ n int }; var t *mem.Table[a]`, "is a record"},
	{"int in a new table", `import "github.com/gpuai/gpuai/internal/mem"; type a struct{ n int }; func f(s *mem.Space) { _ = mem.NewTable[a](s, 5) }`, "is a record"},
	{"a table", `import "github.com/gpuai/gpuai/internal/mem"; type a struct{ n int32 }; var t *mem.Table[a]`, ""},
}

func TestPureFindsSeededViolations(t *testing.T) {
	c := newChecker(t, append(pureImports, module+"/internal/mem"))
	for _, s := range seeded {
		f, err := parser.ParseFile(c.fset, "seeded.go", "package fsm; "+s.src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		found, err := c.check(module+"/fsm", []*ast.File{f})
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		all := strings.Join(found, "\n")
		if s.want == "" && all != "" || !strings.Contains(all, s.want) {
			t.Errorf("%s: found %q, want %q", s.name, all, s.want)
		}
	}
}

// TestPureImportsNeitherClockNorChance keeps the policy itself honest.
func TestPureImportsNeitherClockNorChance(t *testing.T) {
	for _, bad := range strings.Fields("time os sync sync/atomic math/rand math/rand/v2 crypto/rand unsafe reflect runtime net hash/maphash context") {
		for _, p := range pureImports {
			if p == bad {
				t.Errorf("the core may import %s", bad)
			}
		}
	}
}
