package arch

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPure(t *testing.T) {
	var core []pkg
	var paths []string
	for _, p := range list(t) {
		if slices.Contains(pure, layer(p.name())) {
			core, paths = append(core, p), append(paths, p.ImportPath)
		}
	}
	c := newChecker(t, paths)
	var found []string
	for _, p := range core {
		for _, i := range p.Imports {
			if !slices.Contains(pureImports, i) && !ours(i) {
				found = append(found, fmt.Sprintf("%s imports %s, which is not pure", p.ImportPath, i))
			}
		}
		var files []*ast.File
		for _, f := range p.GoFiles {
			a, err := parser.ParseFile(c.fset, filepath.Join(p.Dir, f), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, a)
		}
		more, err := c.check(p.ImportPath, files)
		if err != nil {
			t.Errorf("%s was not checked: %v", p.ImportPath, err)
		}
		found = append(found, more...)
	}
	report(t, found)
}

// A checker finds what may differ between replicas in packages that it type
// checks.
type checker struct {
	fset *token.FileSet
	imp  types.Importer
}

// newChecker returns a checker that can import what the packages at paths do,
// from the compiler's export data.
func newChecker(t *testing.T, paths []string) *checker {
	t.Helper()
	export := map[string]string{}
	for _, p := range goList[pkg](t, append([]string{"-export", "-deps", "-json=ImportPath,Export"}, paths...)...) {
		export[p.ImportPath] = p.Export
	}
	fset := token.NewFileSet()
	open := func(path string) (io.ReadCloser, error) {
		if export[path] == "" {
			return nil, fmt.Errorf("%s does not build", path)
		}
		return os.Open(export[path])
	}
	return &checker{fset: fset, imp: importer.ForCompiler(fset, "gc", open)}
}

// check says why the package in files is not pure.
func (c *checker) check(path string, files []*ast.File) ([]string, error) {
	info := &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
		Instances: map[*ast.Ident]types.Instance{}, Selections: map[*ast.SelectorExpr]*types.Selection{},
	}
	tp, err := (&types.Config{Importer: c.imp}).Check(path, c.fset, files, info)
	if err != nil {
		return nil, err
	}
	v := &visitor{checker: c, info: info, pkg: tp, name: shortName(path)}
	for _, f := range files {
		for _, d := range f.Decls {
			v.decl(d)
		}
	}
	return v.found, nil
}

// A visitor walks one package.
type visitor struct {
	*checker
	info  *types.Info
	pkg   *types.Package
	name  string
	fn    string // the declared function around, "" for none
	stack []ast.Node
	found []string
}

func (v *visitor) add(n ast.Node, why string) {
	p := v.fset.Position(n.Pos())
	v.found = append(v.found, fmt.Sprintf("%s:%d: %s", p.Filename, p.Line, why))
}

func (v *visitor) decl(d ast.Decl) {
	v.fn = ""
	if f, ok := d.(*ast.FuncDecl); ok {
		v.fn = f.Name.Name
	}
	ast.Inspect(d, func(n ast.Node) bool {
		if n == nil {
			v.stack = v.stack[:len(v.stack)-1]
			return true
		}
		v.node(n)
		v.stack = append(v.stack, n)
		return true
	})
}

// node looks at one node of the syntax.
func (v *visitor) node(n ast.Node) {
	switch n := n.(type) {
	case *ast.RangeStmt:
		if t := v.info.TypeOf(n.X); t != nil && isMap(t) {
			v.add(n, "range over a map")
		}
		v.assigned(n.Key)
		v.assigned(n.Value)
	case *ast.GoStmt:
		v.add(n, "go statement")
	case *ast.SelectStmt:
		v.add(n, "select statement")
	case *ast.DeferStmt:
		v.lastDefence(n, "defer")
	case *ast.AssignStmt:
		for _, x := range n.Lhs {
			v.assigned(x)
		}
	case *ast.IncDecStmt:
		v.assigned(n.X)
	case *ast.UnaryExpr:
		if n.Op == token.AND {
			v.assigned(n.X)
		}
	case *ast.SelectorExpr:
		if v.takesAddress(n) {
			v.assigned(n.X)
		}
	case *ast.TypeSpec:
		if strings.HasSuffix(n.Name.Name, "Rec") {
			v.record(n.Name, v.info.Defs[n.Name].Type())
		}
	case *ast.Ident:
		v.use(n)
	}
	if x, ok := n.(ast.Expr); ok {
		v.expr(x)
	}
}

// expr looks at the type of an expression.
func (v *visitor) expr(x ast.Expr) {
	tv, ok := v.info.Types[x]
	if !ok || tv.Type == nil {
		return
	}
	switch t := tv.Type.Underlying().(type) {
	case *types.Basic:
		if t.Info()&(types.IsFloat|types.IsComplex) != 0 {
			v.add(x, "floating point is fused differently per CPU")
		}
		if t.Kind() == types.Uintptr || t.Kind() == types.UnsafePointer {
			v.add(x, "an address differs between replicas")
		}
	case *types.Chan:
		v.add(x, "channel")
	}
}

// use looks at what a name stands for.
func (v *visitor) use(id *ast.Ident) {
	if inst, ok := v.info.Instances[id]; ok && v.ofMem(id) {
		for i := range inst.TypeArgs.Len() {
			v.record(id, inst.TypeArgs.At(i))
		}
	}
	switch o := v.info.Uses[id].(type) {
	case *types.Builtin:
		if o.Name() == "recover" {
			v.lastDefence(id, "recover")
		} else if o.Name() == "print" || o.Name() == "println" {
			v.add(id, o.Name()+" does I/O")
		}
	case *types.Func:
		if o.Pkg() == nil || o.Signature().Recv() != nil {
			return
		}
		bad := strings.Fields(impureFuncs[o.Pkg().Path()])
		if slices.Contains(bad, o.Name()) && !v.sortedKeys(o) {
			v.add(id, o.Pkg().Name()+"."+o.Name()+" uses reflection, does I/O, or yields in map order")
		}
	}
}

// ofMem reports whether id names something of package mem.
func (v *visitor) ofMem(id *ast.Ident) bool {
	o := v.info.Uses[id]
	return o != nil && o.Pkg() != nil && shortName(o.Pkg().Path()) == "mem"
}

// sortedKeys reports whether o is maps.Keys in slices.Sorted(maps.Keys(m)),
// where the order of the map is gone at once.
func (v *visitor) sortedKeys(o *types.Func) bool {
	if o.Pkg().Path() != "maps" || o.Name() != "Keys" || len(v.stack) < 3 {
		return false
	}
	// The stack ends in: the outer call, maps.Keys(m), maps.Keys.
	outer, ok := v.stack[len(v.stack)-3].(*ast.CallExpr)
	if !ok {
		return false
	}
	fun := outer.Fun
	if ix, ok := fun.(*ast.IndexExpr); ok {
		fun = ix.X
	}
	s, ok := fun.(*ast.SelectorExpr)
	if !ok || len(outer.Args) != 1 || outer.Args[0] != v.stack[len(v.stack)-2] {
		return false
	}
	f, ok := v.info.Uses[s.Sel].(*types.Func)
	return ok && f.FullName() == "slices.Sorted"
}

// lastDefence reports a defer or recover outside of the functions that may.
func (v *visitor) lastDefence(n ast.Node, what string) {
	if !slices.Contains(lastDefences, v.name+"."+v.fn) {
		v.add(n, what+" is for the last defence only")
	}
}

// takesAddress reports whether n is a method of a pointer, called on a value.
func (v *visitor) takesAddress(n *ast.SelectorExpr) bool {
	s, ok := v.info.Selections[n]
	if !ok || s.Kind() != types.MethodVal {
		return false
	}
	_, wants := s.Obj().(*types.Func).Signature().Recv().Type().(*types.Pointer)
	_, has := s.Recv().Underlying().(*types.Pointer)
	return wants && !has
}

// assigned reports a write to a variable of the package, or its address taken:
// state that a fork would share.
func (v *visitor) assigned(x ast.Expr) {
	for x != nil {
		switch e := x.(type) {
		case *ast.ParenExpr:
			x = e.X
		case *ast.IndexExpr:
			x = e.X
		case *ast.StarExpr:
			x = e.X
		case *ast.SelectorExpr:
			if id, ok := e.X.(*ast.Ident); ok {
				if _, isPkg := v.info.Uses[id].(*types.PkgName); isPkg {
					x = e.Sel
					continue
				}
			}
			x = e.X
		case *ast.Ident:
			if o, ok := v.info.Uses[e].(*types.Var); ok && o.Pkg() != nil && o.Parent() == o.Pkg().Scope() {
				v.add(e, e.Name+" is a variable of a package: state belongs in the machine")
			}
			return
		default:
			return
		}
	}
}

func isMap(t types.Type) bool {
	if p, ok := t.(*types.TypeParam); ok {
		return slices.ContainsFunc(terms(p), isMap)
	}
	_, ok := t.Underlying().(*types.Map)
	return ok
}

// terms returns the types in a type parameter's constraint.
func terms(p *types.TypeParam) (out []types.Type) {
	c, ok := p.Constraint().Underlying().(*types.Interface)
	if !ok {
		return nil
	}
	for i := range c.NumEmbeddeds() {
		switch e := c.EmbeddedType(i).(type) {
		case *types.Union:
			for j := range e.Len() {
				out = append(out, e.Term(j).Type())
			}
		default:
			out = append(out, e)
		}
	}
	return out
}

// record reports what a record must not hold: numbers of the platform's size
// and pointers. A record is a type whose name ends in Rec, and whatever a table
// of package mem is made of.
func (v *visitor) record(n ast.Node, t types.Type) {
	if why := unfit(t, map[types.Type]bool{}); why != "" {
		v.add(n, cmp.Or(types.TypeString(t, types.RelativeTo(v.pkg)), "record")+" is a record: "+why)
	}
}

// unfit says why a type must not be part of a record.
func unfit(t types.Type, seen map[types.Type]bool) string {
	if seen[t] {
		return ""
	}
	seen[t] = true
	if _, ok := t.(*types.TypeParam); ok {
		return "" // its instances are looked at
	}
	switch u := t.Underlying().(type) {
	case *types.Basic:
		if slices.Contains([]types.BasicKind{types.Int, types.Uint, types.Uintptr}, u.Kind()) {
			return t.String() + " is of the platform's size"
		}
		if u.Kind() == types.String || u.Kind() == types.UnsafePointer {
			return t.String() + " holds a pointer"
		}
	case *types.Struct:
		for i := range u.NumFields() {
			if why := unfit(u.Field(i).Type(), seen); why != "" {
				return u.Field(i).Name() + ": " + why
			}
		}
	case *types.Array:
		return unfit(u.Elem(), seen)
	default:
		return t.String() + " holds a pointer"
	}
	return ""
}
