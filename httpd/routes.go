package httpd

import (
	"net/http"

	"github.com/gorilla/mux"
)

// where says which server answers a route's requests.
type where uint8

const (
	// onLeader requests are forwarded; a read is made linearizable.
	onLeader where = iota
	// onLeaderOrStale requests are answered here with ?consistency=stale.
	onLeaderOrStale
	// here requests are about this server, or served by any alike.
	here
)

// A route is one method of one path. The table is in the order of matching, so
// the busiest come first.
type route struct {
	method, path string
	class        class
	where        where
	write        bool     // it changes the state
	query        []string // parameters that it takes, beside those of its kind
	list         bool     // takes limit, cursor, filter and fields
	watch        bool     // takes index and wait
	anyQuery     bool     // parameters are not looked at
	member       bool     // takes server: another server of the region answers
	handle       func(*call) error
}

// routes is every route of the API.
var routes = [...]route{
	{method: "POST", path: "/v1/jobs:batch", class: classWrite, write: true, handle: (*call).submitBatch},
	{method: "POST", path: "/v1/jobs", class: classWrite, write: true, query: []string{"hold_anyway"}, handle: (*call).submit},
	{method: "GET", path: "/v1/agent/session", class: classSession, where: here, handle: (*call).session},
	{method: "GET", path: "/v1/jobs", class: classRead, where: onLeaderOrStale, query: []string{"status", "archived"}, list: true, watch: true, handle: (*call).listJobs},
	{method: "GET", path: "/v1/jobs/{job}", class: classRead, where: onLeaderOrStale, query: []string{"estimate"}, watch: true, handle: (*call).getJob},
	{method: "GET", path: "/v1/leases", class: classRead, where: onLeaderOrStale, query: []string{"job", "node", "live"}, list: true, watch: true, handle: (*call).listLeases},
	{method: "GET", path: "/v1/leases/{lease}", class: classRead, where: onLeaderOrStale, watch: true, handle: (*call).getLease},
	{method: "GET", path: "/v1/nodes", class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listNodes},
	{method: "GET", path: "/v1/nodes/{node}", class: classRead, where: onLeaderOrStale, watch: true, handle: (*call).getNode},

	{method: "POST", path: "/v1/jobs:plan", class: classRead, where: onLeaderOrStale, handle: (*call).plan},
	{method: "POST", path: "/v1/plan", class: classRead, where: onLeaderOrStale, handle: (*call).suppose},
	{method: "GET", path: "/v1/jobs/{job}/tasks", class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listTasks},
	{method: "GET", path: "/v1/jobs/{job}/checkpoints", class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listCheckpoints},
	{method: "GET", path: "/v1/jobs/{job}/explain", class: classRead, where: onLeaderOrStale, query: []string{"index"}, handle: (*call).explain},
	{method: "GET", path: "/v1/jobs/{job}/leases", class: classRead, where: onLeaderOrStale, query: []string{"live"}, list: true, watch: true, handle: (*call).listLeases},
	{method: "GET", path: "/v1/jobs/{job}/events", class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listJobEvents},
	{method: "GET", path: "/v1/jobs/{job}/logs", class: classStream, where: here, query: []string{"group", "task", "lease", "stream", "offset", "limit", "wait", "follow", "attempt", "since_ms", "tail", "times"}, handle: (*call).logs},
	{method: "GET", path: "/v1/jobs/{job}/exec", class: classStream, where: here, query: []string{"group", "task", "lease"}, handle: (*call).exec},
	{method: "GET", path: "/v1/agent/exec", class: classStream, where: here, query: []string{"id", "at"}, handle: (*call).answerExec},
	{method: "POST", path: "/v1/jobs/{job}/stop", class: classWrite, write: true, handle: (*call).stopJob},
	{method: "POST", path: "/v1/nodes/{node}/drain", class: classWrite, write: true, handle: (*call).drain},
	{method: "POST", path: "/v1/nodes/{node}/undrain", class: classWrite, write: true, handle: (*call).undrain},
	{method: "GET", path: "/v1/queue", class: classRead, where: onLeaderOrStale, watch: true, handle: (*call).queue},
	{method: "GET", path: "/v1/queue/pending", class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listPending},
	{method: "GET", path: "/v1/tenants", class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listTenants},
	{method: "PUT", path: "/v1/tenants/{tenant}/weight", class: classWrite, write: true, handle: (*call).putWeight},
	{method: "GET", path: "/v1/events", class: classStream, where: here, query: []string{"index", "job", "node"}, handle: (*call).events},
	{method: "GET", path: "/v1/operator/policy", class: classRead, where: onLeaderOrStale, handle: (*call).getPolicy},
	{method: "PUT", path: "/v1/operator/policy", class: classWrite, write: true, handle: (*call).putPolicy},
	{method: "GET", path: "/v1/operator/demand", class: classRead, where: onLeaderOrStale, handle: (*call).getDemand},
	{method: "PUT", path: "/v1/operator/demand", class: classWrite, write: true, handle: (*call).putDemand},
	{method: "GET", path: "/v1/operator/raft", class: classStatus, where: here, member: true, handle: (*call).raft},
	{method: "GET", path: "/v1/operator/members", class: classStatus, where: onLeaderOrStale, handle: (*call).listMembers},
	{method: "POST", path: "/v1/operator/members", class: classWrite, write: true, handle: (*call).addMember},
	{method: "POST", path: "/v1/operator/members/{server}/promote", class: classWrite, write: true, handle: (*call).promoteMember},
	{method: "POST", path: "/v1/operator/members/{server}/remove", class: classWrite, write: true, handle: (*call).removeMember},
	{method: "GET", path: "/v1/operator/digest", class: classStatus, where: here, member: true, query: []string{"index"}, handle: (*call).digest},
	{method: "GET", path: "/v1/operator/server", class: classStatus, where: here, member: true, handle: (*call).serverInfo},
	{method: "GET", path: "/v1/operator/debug/{what}", class: classStream, where: here, member: true, query: []string{"seconds"}, handle: (*call).debug},
	{method: "GET", path: "/v1/operator/export", class: classStream, where: onLeaderOrStale, query: []string{"since"}, handle: (*call).export},
	{method: "GET", path: "/v1/operator/report", class: classStream, where: here, member: true, query: []string{"from", "to"}, handle: (*call).report},
	{method: "GET", path: "/v1/operator/snapshot", class: classStream, where: onLeaderOrStale, handle: (*call).snapshot},

	{method: "GET", path: "/healthz", class: classStatus, where: here, anyQuery: true, handle: (*call).healthz},
	{method: "GET", path: "/readyz", class: classStatus, where: here, anyQuery: true, handle: (*call).readyz},
	{method: "GET", path: "/metrics", class: classStatus, where: here, anyQuery: true, handle: (*call).serveMetrics},
	{method: "GET", path: "/v1/openapi.json", class: classStatus, where: here, anyQuery: true, handle: (*call).serveOpenAPI},
	{method: "GET", path: "/v1/schema/job.json", class: classStatus, where: here, anyQuery: true, handle: (*call).serveSchema},
}

// Parameters by kind of route.
var (
	listQuery  = []string{"limit", "cursor", "filter", "fields"}
	watchQuery = []string{"index", "wait"}
	staleQuery = []string{"consistency"}
)

// parameters returns every query parameter that rt takes.
func (rt *route) parameters() []string {
	all := append([]string(nil), rt.query...)
	if rt.list {
		all = append(all, listQuery...)
	}
	if rt.watch {
		all = append(all, watchQuery...)
	}
	if rt.member {
		all = append(all, "server")
	}
	if rt.where == onLeaderOrStale {
		all = append(all, staleQuery...)
	}
	return all
}

// allowed returns the methods that some route has at r's path.
func (a *api) allowed(r *http.Request) (methods []string) {
	for _, m := range [...]string{http.MethodGet, http.MethodPost, http.MethodPut} {
		probe := *r
		probe.Method = m
		var match mux.RouteMatch
		if a.router.Match(&probe, &match) && match.MatchErr == nil {
			methods = append(methods, m)
		}
	}
	return methods
}
