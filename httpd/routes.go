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
	who          roles // whom it is for: nobody, where that is not said
	class        class
	where        where
	write        bool     // it changes the state
	query        []string // parameters that it takes, beside those of its kind
	list         bool     // takes limit, cursor, filter and fields
	watch        bool     // takes index and wait
	anyQuery     bool     // parameters are not looked at
	metrics      bool     // it is the operators' where Config.PrivateMetrics says so
	member       bool     // takes server: another server of the region answers
	probe        bool     // it costs nothing, and is answered however full it is
	handle       func(*call) error
}

// routes is every route of the API.
var routes = [...]route{
	{method: "POST", path: "/v1/jobs:batch", who: operator | submitter, class: classWrite, write: true, handle: (*call).submitBatch},
	{method: "POST", path: "/v1/jobs", who: operator | submitter, class: classWrite, write: true, query: []string{"hold_anyway"}, handle: (*call).submit},
	{method: "GET", path: "/v1/agent/session", who: node, class: classSession, where: here, handle: (*call).session},
	{method: "GET", path: "/v1/jobs", who: tenantReads, class: classRead, where: onLeaderOrStale, query: []string{"status", "archived"}, list: true, watch: true, handle: (*call).listJobs},
	{method: "GET", path: "/v1/jobs/{job}", who: tenantReads, class: classRead, where: onLeaderOrStale, query: []string{"estimate"}, watch: true, handle: (*call).getJob},
	{method: "GET", path: "/v1/leases", who: tenantReads | contributor, class: classRead, where: onLeaderOrStale, query: []string{"job", "node", "live"}, list: true, watch: true, handle: (*call).listLeases},
	{method: "GET", path: "/v1/leases/{lease}", who: tenantReads, class: classRead, where: onLeaderOrStale, watch: true, handle: (*call).getLease},
	{method: "GET", path: "/v1/nodes", who: operator | contributor, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listNodes},
	{method: "GET", path: "/v1/nodes/{node}", who: operator | contributor, class: classRead, where: onLeaderOrStale, watch: true, handle: (*call).getNode},

	{method: "POST", path: "/v1/jobs:plan", who: operator | reader | submitter, class: classRead, where: onLeaderOrStale, handle: (*call).plan},
	{method: "POST", path: "/v1/plan", who: operator | reader | submitter, class: classRead, where: onLeaderOrStale, handle: (*call).suppose},
	{method: "GET", path: "/v1/jobs/{job}/tasks", who: tenantReads, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listTasks},
	{method: "GET", path: "/v1/jobs/{job}/checkpoints", who: tenantReads, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listCheckpoints},
	{method: "GET", path: "/v1/jobs/{job}/explain", who: tenantReads, class: classRead, where: onLeaderOrStale, query: []string{"index"}, handle: (*call).explain},
	{method: "GET", path: "/v1/jobs/{job}/leases", who: tenantReads, class: classRead, where: onLeaderOrStale, query: []string{"live"}, list: true, watch: true, handle: (*call).listLeases},
	{method: "GET", path: "/v1/jobs/{job}/events", who: tenantReads, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listJobEvents},
	{method: "GET", path: "/v1/jobs/{job}/logs", who: tenantReads, class: classStream, where: here, query: []string{"group", "task", "lease", "stream", "offset", "limit", "wait", "follow", "attempt", "since_ms", "tail", "times"}, handle: (*call).logs},
	{method: "GET", path: "/v1/jobs/{job}/exec", who: operator | submitter, class: classStream, where: here, query: []string{"group", "task", "lease"}, handle: (*call).exec},
	{method: "GET", path: "/v1/agent/exec", who: node, class: classStream, where: here, query: []string{"id", "at"}, handle: (*call).answerExec},
	{method: "POST", path: "/v1/agent/store/grants", who: node, class: classGrant, where: here, handle: (*call).grantObjects},
	{method: "GET", path: "/v1/agent/store/objects", who: node, class: classGrant, where: here, query: []string{"node", "lease", "incarnation", "cursor"}, handle: (*call).listObjects},
	{method: "POST", path: "/v1/agent/store/objects:delete", who: node, class: classGrant, where: here, handle: (*call).deleteObjects},
	{method: "PUT", path: "/v1/agent/store/object", who: node, class: classObject, where: here, query: []string{"node", "lease", "incarnation", "key"}, handle: (*call).putObject},
	{method: "GET", path: "/v1/agent/store/object", who: node, class: classObject, where: here, query: []string{"node", "lease", "incarnation", "key"}, handle: (*call).getObject},
	{method: "POST", path: "/v1/jobs/{job}/stop", who: operator | submitter, class: classWrite, write: true, handle: (*call).stopJob},
	{method: "POST", path: "/v1/nodes/{node}/drain", who: operator | contributor, class: classWrite, write: true, handle: (*call).drain},
	{method: "POST", path: "/v1/nodes/{node}/undrain", who: operator | contributor, class: classWrite, write: true, handle: (*call).undrain},
	{method: "GET", path: "/v1/queue", who: tenantReads, class: classRead, where: onLeaderOrStale, watch: true, handle: (*call).queue},
	{method: "GET", path: "/v1/queue/pending", who: tenantReads, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listPending},
	{method: "GET", path: "/v1/tenants", who: operator | reader | tenantAdmin, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listTenants},
	{method: "POST", path: "/v1/tenants", who: operator, class: classWrite, write: true, handle: (*call).createTenant},
	{method: "PUT", path: "/v1/tenants/{tenant}/weight", who: operator, class: classWrite, write: true, handle: (*call).putWeight},
	{method: "GET", path: "/v1/tokens", who: operator | tenantAdmin, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listTokens},
	{method: "POST", path: "/v1/tokens", who: operator | tenantAdmin, class: classWrite, write: true, handle: (*call).createToken},
	{method: "POST", path: "/v1/tokens/{token}/revoke", who: operator | tenantAdmin, class: classWrite, write: true, handle: (*call).revokeToken},
	{method: "GET", path: "/v1/secrets", who: tenantReads, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listSecrets},
	{method: "PUT", path: "/v1/secrets/{secret}", who: operator | submitter, class: classWrite, write: true, handle: (*call).putSecret},
	{method: "DELETE", path: "/v1/secrets/{secret}", who: operator | submitter, class: classWrite, write: true, query: []string{"tenant"}, handle: (*call).deleteSecret},
	{method: "GET", path: "/v1/roles", who: operator, class: classRead, where: onLeaderOrStale, handle: (*call).listRoles},
	{method: "PUT", path: "/v1/roles", who: operator, class: classWrite, write: true, handle: (*call).putRole},
	{method: "PUT", path: "/v1/nodes/{node}/contributor", who: operator, class: classWrite, write: true, handle: (*call).putNodeOwner},
	{method: "GET", path: "/v1/whoami", who: anyToken | node | server, class: classStatus, where: here, handle: (*call).whoAmI},
	{method: "GET", path: "/v1/login", who: anyone, class: classAnonymous, where: here, handle: (*call).loginInfo},
	{method: "POST", path: "/v1/login/oidc", who: anyone, class: classAnonymous, write: true, handle: (*call).login},
	{method: "POST", path: "/v1/operator/bootstrap", who: anyone, class: classAnonymous, where: here, write: true, handle: (*call).bootstrap},
	{method: "GET", path: "/v1/tenants/{tenant}/quota", who: operator | reader | tenantAdmin, class: classRead, where: onLeaderOrStale, handle: (*call).getQuota},
	{method: "PUT", path: "/v1/tenants/{tenant}/quota", who: operator, class: classWrite, write: true, handle: (*call).putQuota},
	{method: "PUT", path: "/v1/tenants/{tenant}/budget", who: operator, class: classWrite, write: true, handle: (*call).putBudget},
	{method: "GET", path: "/v1/tenants/{tenant}/usage", who: operator | reader | tenantAdmin, class: classRead, where: onLeaderOrStale, handle: (*call).getUsage},
	{method: "GET", path: "/v1/usage", who: operator | reader | tenantAdmin, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listUsage},
	{method: "PUT", path: "/v1/nodes/{node}/price", who: operator, class: classWrite, write: true, handle: (*call).putNodePrice},
	{method: "GET", path: "/v1/contributors", who: operator | contributor, class: classRead, where: onLeaderOrStale, list: true, watch: true, handle: (*call).listContributors},
	{method: "PUT", path: "/v1/nodes/{node}/ask", who: operator | contributor, class: classWrite, write: true, handle: (*call).putNodeAsk},
	{method: "PUT", path: "/v1/nodes/{node}/schedule", who: operator | contributor, class: classWrite, write: true, handle: (*call).putNodeSchedule},
	{method: "GET", path: "/v1/operator/prices", who: members, class: classRead, where: onLeaderOrStale, handle: (*call).getPrices},
	{method: "PUT", path: "/v1/operator/prices", who: operator, class: classWrite, write: true, handle: (*call).putPrices},
	{method: "GET", path: "/v1/events", who: tenantReads, class: classStream, where: here, query: []string{"index", "job", "node"}, handle: (*call).events},
	{method: "GET", path: "/v1/operator/policy", who: operator, class: classRead, where: onLeaderOrStale, handle: (*call).getPolicy},
	{method: "PUT", path: "/v1/operator/policy", who: operator, class: classWrite, write: true, handle: (*call).putPolicy},
	{method: "GET", path: "/v1/operator/demand", who: operator, class: classRead, where: onLeaderOrStale, handle: (*call).getDemand},
	{method: "PUT", path: "/v1/operator/demand", who: operator, class: classWrite, write: true, handle: (*call).putDemand},
	{method: "GET", path: "/v1/operator/raft", who: operator, class: classStatus, where: here, member: true, handle: (*call).raft},
	{method: "GET", path: "/v1/operator/members", who: operator, class: classStatus, where: onLeaderOrStale, handle: (*call).listMembers},
	{method: "POST", path: "/v1/operator/members", who: operator, class: classWrite, write: true, handle: (*call).addMember},
	{method: "POST", path: "/v1/operator/members/{server}/promote", who: operator, class: classWrite, write: true, handle: (*call).promoteMember},
	{method: "POST", path: "/v1/operator/members/{server}/remove", who: operator, class: classWrite, write: true, handle: (*call).removeMember},
	{method: "POST", path: "/v1/join", who: anyone, class: classAnonymous, where: here, handle: (*call).join},
	{method: "POST", path: "/v1/agent/certificate", who: node, class: classStatus, where: here, handle: (*call).renew},
	{method: "POST", path: "/v1/operator/join-tokens", who: operator, class: classWrite, write: true, handle: (*call).createJoinToken},
	{method: "GET", path: "/v1/operator/authorities", who: operator, class: classRead, where: onLeaderOrStale, handle: (*call).listAuthorities},
	{method: "POST", path: "/v1/operator/authorities/rotate", who: operator, class: classWrite, write: true, handle: (*call).rotateAuthority},
	{method: "GET", path: "/v1/operator/keys", who: operator, class: classRead, where: onLeaderOrStale, handle: (*call).listKeys},
	{method: "POST", path: "/v1/operator/keys/rotate", who: operator, class: classWrite, write: true, handle: (*call).rotateKey},
	{method: "POST", path: "/v1/operator/keys/{key}/retire", who: operator, class: classWrite, write: true, handle: (*call).retireKey},
	{method: "POST", path: "/v1/operator/identities/{kind}/{name}/revoke", who: operator, class: classWrite, write: true, handle: (*call).revokeIdentity},
	{method: "GET", path: "/v1/operator/digest", who: operator, class: classStatus, where: here, member: true, query: []string{"index"}, handle: (*call).digest},
	{method: "GET", path: "/v1/operator/server", who: operator, class: classStatus, where: here, member: true, handle: (*call).serverInfo},
	{method: "GET", path: "/v1/operator/debug/{what}", who: operator, class: classStream, where: here, member: true, query: []string{"seconds"}, handle: (*call).debug},
	{method: "GET", path: "/v1/operator/export", who: operator, class: classStream, where: onLeaderOrStale, query: []string{"since"}, handle: (*call).export},
	{method: "GET", path: "/v1/operator/audit", who: operator, class: classStream, where: here, member: true, query: []string{"since"}, handle: (*call).audit},
	{method: "GET", path: "/v1/operator/report", who: operator, class: classStream, where: here, member: true, query: []string{"from", "to"}, handle: (*call).report},
	{method: "GET", path: "/v1/operator/snapshot", who: operator, class: classStream, where: onLeaderOrStale, handle: (*call).snapshot},

	{method: "GET", path: "/healthz", who: anyone, class: classStatus, probe: true, where: here, anyQuery: true, handle: (*call).healthz},
	{method: "GET", path: "/readyz", who: anyone, class: classStatus, probe: true, where: here, anyQuery: true, handle: (*call).readyz},
	{method: "GET", path: "/metrics", who: anyone, metrics: true, class: classAnonymous, where: here, anyQuery: true, handle: (*call).serveMetrics},
	{method: "GET", path: "/v1/openapi.json", who: anyone, class: classAnonymous, where: here, anyQuery: true, handle: (*call).serveOpenAPI},
	{method: "GET", path: "/v1/schema/job.json", who: anyone, class: classAnonymous, where: here, anyQuery: true, handle: (*call).serveSchema},
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
	for _, m := range [...]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe := *r
		probe.Method = m
		var match mux.RouteMatch
		if a.router.Match(&probe, &match) && match.MatchErr == nil {
			methods = append(methods, m)
		}
	}
	return methods
}
