package server

import (
	"context"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

const (
	// maxPage bounds a page, and with it the rows of one hold of the lock.
	maxPage     = fsm.MaxScan
	defaultPage = 100
	// maxHolds is how often a list with a filter looks at MaxScan rows before
	// it returns what it has, with a cursor.
	maxHolds = 16
)

func notFound(detail string) error { return gpuai.NewError(gpuai.NotFound, detail) }

// pageSize returns how many rows a page has.
func pageSize(p httpd.Page) int {
	if p.Limit <= 0 {
		return defaultPage
	}
	return min(p.Limit, maxPage)
}

// Cursors are opaque to clients: the kind of list and a place in it.
func makeCursor(kind, at string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(kind + ":" + at))
}

// readCursor returns the place in a cursor; "" for none.
func readCursor(kind, cursor string) (string, error) {
	if cursor == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	at, ok := strings.CutPrefix(string(b), kind+":")
	if err != nil || !ok || at == "" {
		return "", badCursor()
	}
	return at, nil
}

func badCursor() error {
	return gpuai.NewError(gpuai.InvalidSpec, "the cursor is not one of this list; leave it out to begin anew")
}

// readOffset returns the number in a cursor; 0 for none.
func readOffset(kind, cursor string) (uint64, error) {
	at, err := readCursor(kind, cursor)
	if err != nil || at == "" {
		return 0, err
	}
	n, err := strconv.ParseUint(at, 10, 64)
	if err != nil {
		return 0, badCursor()
	}
	return n, nil
}

// ReadIndex implements httpd.Reader.
func (s *Server) ReadIndex(ctx context.Context) error {
	_, err := s.node.Barrier(ctx)
	return err
}

// Job implements httpd.Reader.
func (s *Server) Job(ref string, withSpec bool) (job gpuai.Job, err error) {
	at, err := s.locate(ref)
	if err != nil {
		return job, err
	}
	return s.jobAt(at, withSpec)
}

// jobAt returns a job where it was found, or, when it has left meanwhile, from
// the archive.
func (s *Server) jobAt(at place, withSpec bool) (job gpuai.Job, err error) {
	ok := false
	if !at.archived {
		s.node.View(func(m *fsm.Machine) { job, ok = m.Job(at.id, withSpec) })
	}
	if !ok {
		return s.archivedJob(at.id, withSpec)
	}
	return job, nil
}

// Jobs implements httpd.Reader.
func (s *Server) Jobs(q httpd.JobQuery) (jobs []gpuai.Job, next string, err error) {
	limit := pageSize(q.Page)
	if id, ok, err := readArchiveCursor(q.Cursor); q.Archived && (ok || err != nil) {
		if err != nil {
			return nil, "", err
		}
		return s.archivedJobs(&q, id, limit)
	}
	after, err := readJobCursor(q.Cursor)
	if err != nil {
		return nil, "", err
	}
	for hold := 0; hold < maxHolds; hold++ {
		var page []gpuai.Job
		s.node.View(func(m *fsm.Machine) { page, after = m.JobsOf(q.Tenant, after, limit-len(jobs), q.Status) })
		jobs = append(jobs, page...)
		if after == (fsm.JobCursor{}) {
			return s.furtherJobs(&q, jobs, limit)
		}
		if len(jobs) == limit {
			break
		}
	}
	return jobs, makeCursor("jobs", strconv.FormatUint(uint64(after.Slot), 10)+":"+strconv.FormatUint(after.Seq, 10)), nil
}

// furtherJobs goes on in the archive, where that is wanted, when the machine
// has no more.
func (s *Server) furtherJobs(q *httpd.JobQuery, jobs []gpuai.Job, limit int) ([]gpuai.Job, string, error) {
	if !q.Archived {
		return jobs, "", nil
	}
	if len(jobs) == limit { // the archive's turn comes with the next page
		return jobs, makeCursor("archive", newestJobID.String()), nil
	}
	more, next, err := s.archivedJobs(q, gpuai.JobID{}, limit-len(jobs))
	return append(jobs, more...), next, err
}

func readJobCursor(cursor string) (c fsm.JobCursor, err error) {
	at, err := readCursor("jobs", cursor)
	if err != nil || at == "" {
		return c, err
	}
	slot, seq, _ := strings.Cut(at, ":")
	n, err := strconv.ParseUint(slot, 10, 32)
	if c.Slot = uint32(n); err == nil {
		c.Seq, err = strconv.ParseUint(seq, 10, 64)
	}
	if err != nil || c.Seq == 0 {
		return c, badCursor()
	}
	return c, nil
}

// Tasks implements httpd.Reader.
func (s *Server) Tasks(ref string, p httpd.Page) (tasks []gpuai.Task, next string, err error) {
	from, err := readOffset("tasks", p.Cursor)
	if err != nil {
		return nil, "", err
	}
	limit := pageSize(p)
	at, err := s.locate(ref)
	if err != nil {
		return nil, "", err
	}
	ok := false
	if !at.archived {
		s.node.View(func(m *fsm.Machine) {
			if ok = m.HasJob(at.id); ok {
				tasks = m.Tasks(at.id, uint32(min(from, gpuai.MaxTasks*gpuai.MaxGroups)), limit)
			}
		})
	}
	if !ok {
		s.archive.settle(s.ctx, s.machineIndex())
		tasks, err = s.archivedTasks(at.id, from, limit)
	}
	if len(tasks) == limit {
		next = makeCursor("tasks", strconv.FormatUint(from+uint64(limit), 10))
	}
	return tasks, next, err
}

// Leases implements httpd.Reader.
func (s *Server) Leases(q httpd.LeaseQuery) ([]gpuai.Lease, string, error) {
	switch {
	case q.Job != "":
		return s.leasesOfJob(q)
	case q.Node != "":
		return s.leasesOfNode(q)
	}
	from, err := readOffset("leases", q.Cursor)
	if err != nil || from > fsm.MaxLeaseRecs {
		return nil, "", badCursor()
	}
	limit, at := pageSize(q.Page), uint32(from)
	var leases []gpuai.Lease
	for hold := 0; hold < maxHolds && len(leases) < limit; hold++ {
		var page []gpuai.Lease
		s.node.View(func(m *fsm.Machine) { page, at = m.LeasesOf(q.Tenant, at, limit-len(leases), q.Live) })
		if leases = append(leases, page...); at == 0 {
			return leases, "", nil
		}
	}
	return leases, makeCursor("leases", strconv.FormatUint(uint64(at), 10)), nil
}

func (s *Server) leasesOfJob(q httpd.LeaseQuery) (leases []gpuai.Lease, next string, err error) {
	after, err := readOffset("job-leases", q.Cursor)
	if err != nil {
		return nil, "", err
	}
	limit := pageSize(q.Page)
	at, err := s.locate(q.Job)
	if err != nil {
		return nil, "", err
	}
	ok := false
	if !at.archived {
		s.node.View(func(m *fsm.Machine) {
			if ok = m.HasJob(at.id); ok {
				leases = m.LeasesOfJob(at.id, gpuai.Token(after), limit)
			}
		})
	}
	if !ok {
		s.archive.settle(s.ctx, s.machineIndex())
		leases, err = s.archivedLeases(at.id, gpuai.Token(after), limit)
	}
	if len(leases) == limit {
		next = makeCursor("job-leases", leases[limit-1].ID.String())
	}
	return keepLive(leases, &q), next, err
}

// leasesOfNode returns live leases only: ended ones are found by their job.
func (s *Server) leasesOfNode(q httpd.LeaseQuery) (leases []gpuai.Lease, next string, err error) {
	from, err := readOffset("node-leases", q.Cursor)
	if err != nil {
		return nil, "", err
	}
	known := false
	s.node.View(func(m *fsm.Machine) {
		if _, _, known = m.NodeLive(q.Node); known {
			leases = m.LeasesOfNode(q.Node, fsm.MaxNodeLeases)
		}
	})
	leases = slices.DeleteFunc(leases, func(l gpuai.Lease) bool { return q.Tenant != "" && l.Tenant != q.Tenant })
	switch {
	case q.Tenant != "" && len(leases) == 0: // which nodes there are is no business of tenants
		return nil, "", notFound("no live lease of tenant " + string(q.Tenant) + " is on a node called " + string(q.Node))
	case !known:
		return nil, "", errNoNode(q.Node)
	}
	slices.SortFunc(leases, func(a, b gpuai.Lease) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	i, _ := slices.BinarySearchFunc(leases, gpuai.Token(from), func(l gpuai.Lease, t gpuai.Token) int {
		if l.ID <= t {
			return -1
		}
		return 1
	})
	if leases = leases[i:]; len(leases) > pageSize(q.Page) {
		leases = leases[:pageSize(q.Page)]
		next = makeCursor("node-leases", leases[len(leases)-1].ID.String())
	}
	return leases, next, nil
}

// Lease implements httpd.Reader.
func (s *Server) Lease(t gpuai.Token, tenant gpuai.TenantID) (l gpuai.Lease, err error) {
	ok, index := false, uint64(0)
	s.node.View(func(m *fsm.Machine) {
		l, ok = m.Lease(t)
		index = m.Index()
	})
	if !ok || tenant != "" && l.Tenant != tenant {
		return s.archivedLease(t, tenant, index)
	}
	return l, nil
}

// Nodes implements httpd.Reader.
func (s *Server) Nodes(p httpd.Page) (nodes []gpuai.Node, next string, err error) {
	if p.Contributor != "" {
		return s.ownNodes(p)
	}
	after, err := readCursor("nodes", p.Cursor)
	if err != nil {
		return nil, "", err
	}
	limit := pageSize(p)
	s.node.View(func(m *fsm.Machine) { nodes = m.Nodes(gpuai.NodeID(after), limit) })
	if len(nodes) == limit {
		next = makeCursor("nodes", string(nodes[limit-1].ID))
	}
	return nodes, next, nil
}

// ownNodes is Nodes of a contributor. Its places name no node: that would be
// another's.
func (s *Server) ownNodes(p httpd.Page) (nodes []gpuai.Node, next string, err error) {
	from, err := readOffset("own-nodes", p.Cursor)
	if err != nil || from > fsm.MaxNodes {
		return nil, "", badCursor()
	}
	limit, at := pageSize(p), uint32(from)
	for hold := 0; hold < maxHolds && len(nodes) < limit; hold++ {
		var page []gpuai.Node
		s.node.View(func(m *fsm.Machine) { page, at = m.NodesOf(p.Contributor, at, limit-len(nodes)) })
		if nodes = append(nodes, page...); at == 0 {
			return nodes, "", nil
		}
	}
	return nodes, makeCursor("own-nodes", strconv.FormatUint(uint64(at), 10)), nil
}

// Node implements httpd.Reader.
func (s *Server) Node(id gpuai.NodeID, owner gpuai.ContributorID) (n gpuai.Node, err error) {
	ok := false
	s.node.View(func(m *fsm.Machine) { n, ok = m.Node(id) })
	if !ok || owner != "" && n.Contributor != owner {
		return gpuai.Node{}, errNoNode(id)
	}
	return n, nil
}

// Queue implements httpd.Reader.
func (s *Server) Queue(tenant gpuai.TenantID) (q gpuai.QueueStatus) {
	s.node.View(func(m *fsm.Machine) { q = m.QueueFor(tenant) })
	return q
}

// QueueEntries implements httpd.Reader.
func (s *Server) QueueEntries(p httpd.Page) (entries []gpuai.QueueEntry, next string, err error) {
	from, err := readOffset("queue", p.Cursor)
	if err != nil || from > fsm.MaxGroupRecs {
		return nil, "", badCursor()
	}
	limit := pageSize(p)
	s.node.View(func(m *fsm.Machine) { entries = m.QueueEntries(int(from), limit) })
	if len(entries) == limit {
		next = makeCursor("queue", strconv.FormatUint(from+uint64(limit), 10))
	}
	return slices.DeleteFunc(entries, func(e gpuai.QueueEntry) bool { return p.Tenant != "" && e.Tenant != p.Tenant }), next, nil
}

// Policy implements httpd.Reader.
func (s *Server) Policy() (p gpuai.Policy) {
	s.node.View(func(m *fsm.Machine) { p = m.Policy() })
	return p
}
