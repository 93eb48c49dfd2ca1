package httpd

import "github.com/gpuai/gpuai"

// A RouteInfo is one route of the API, as documents and walks over all routes list
// it.
type RouteInfo struct {
	Method string
	Path   string   // with its variables in braces
	Query  []string // the parameters that it takes
	For    string   // whom it is for, in words
	Anyone bool     // it takes requests without a token
	Scopes []gpuai.Scope
	Writes bool // it changes the state
	Lasts  bool // its answer goes on for as long as the caller likes
}

// String returns the method and the path.
func (r RouteInfo) String() string { return r.Method + " " + r.Path }

// Routes lists the table of routes, in its order.
func Routes() []RouteInfo {
	scopes := [...]struct {
		role  roles
		scope gpuai.Scope
	}{
		{reader, gpuai.ScopeRead}, {submitter, gpuai.ScopeSubmit}, {tenantAdmin, gpuai.ScopeTenantAdmin},
		{contributor, gpuai.ScopeContributor}, {operator, gpuai.ScopeOperator},
	}
	out := make([]RouteInfo, len(routes))
	for i := range routes {
		rt := &routes[i]
		out[i] = RouteInfo{
			Method: rt.method, Path: rt.path, Query: rt.parameters(), For: rt.who.String(), Anyone: rt.who&anyone != 0,
			Writes: rt.write, Lasts: rt.class == classStream,
		}
		for _, s := range scopes {
			if rt.who&s.role != 0 {
				out[i].Scopes = append(out[i].Scopes, s.scope)
			}
		}
	}
	return out
}
