package httpd

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/hashicorp/go-bexpr"

	"github.com/gpuai/gpuai"
)

const (
	defaultLimit = 100
	maxLimit     = 1_000
	maxFilter    = 1_024 // bytes
	maxCursor    = 512   // bytes
	// maxScan bounds the rows that a filtered list looks at for one answer;
	// the cursor goes on from there.
	maxScan = 10_000
	// maxFilterSteps bounds the parser's work on one filter.
	maxFilterSteps = 50_000
)

// listing is what a request asks of a list.
type listing struct {
	page   Page
	filter *bexpr.Evaluator // nil = everything
	fields []string         // nil = all
}

// listing reads limit, cursor, filter and fields.
func (c *call) listing() (l listing, err error) {
	l.page = Page{Limit: defaultLimit, Cursor: c.query.Get("cursor"), Tenant: c.tenant(), Contributor: c.owner()}
	if s := c.query.Get("limit"); s != "" {
		l.page.Limit, err = strconv.Atoi(s)
		if err != nil || l.page.Limit < 1 || l.page.Limit > maxLimit {
			return l, badQuery("limit", "is 1 to "+strconv.Itoa(maxLimit)+", not "+strconv.Quote(clip(s)))
		}
	}
	if len(l.page.Cursor) > maxCursor {
		return l, badQuery("cursor", "is the next_cursor of a page before")
	}
	if s := c.query.Get("fields"); s != "" {
		l.fields = strings.Split(s, ",")
	}
	if s := c.query.Get("filter"); s != "" {
		l.filter, err = parseFilter(s)
	}
	return l, err
}

func parseFilter(s string) (*bexpr.Evaluator, error) {
	if len(s) > maxFilter {
		return nil, badQuery("filter", "has at most "+strconv.Itoa(maxFilter)+" bytes")
	}
	e, err := bexpr.CreateEvaluator(s, bexpr.WithMaxExpressions(maxFilterSteps))
	if err != nil {
		return nil, badQuery("filter", `is an expression such as status == "running" and class != "batch": `+clip(err.Error()))
	}
	return e, nil
}

// list answers with a list of T under the given name. next returns the page
// that it is asked for, as Reader's lists do.
func list[T any](c *call, name string, next func(Page) ([]T, string, error)) error {
	l, err := c.listing()
	if err != nil {
		return err
	}
	known := fieldNames[T]()
	for _, f := range l.fields {
		if !slices.Contains(known, f) {
			return badQuery("fields", "has the unknown name "+strconv.Quote(clip(f))+": there are "+strings.Join(known, ", "))
		}
	}
	if err := c.await(nil); err != nil {
		return err
	}
	rows, cursor, err := collect(l, next)
	if err != nil {
		return err
	}
	body, err := appendList(nil, name, rows, &listEnd{l.fields, cursor, c.index})
	if err != nil {
		return err
	}
	c.send(http.StatusOK, "application/json", body)
	return nil
}

// collect reads pages until it has as many rows that pass the filter as were
// asked for.
func collect[T any](l listing, next func(Page) ([]T, string, error)) (rows []T, cursor string, err error) {
	p := l.page
	for scanned := 0; ; {
		page, cursor, err := next(p)
		if err != nil {
			return nil, "", err
		}
		scanned += max(1, len(page))
		if l.filter == nil {
			return page, cursor, nil
		}
		for i := range page {
			ok, err := l.filter.Evaluate(project(&page[i]))
			if err != nil {
				return nil, "", badQuery("filter", "does not fit: "+clip(err.Error()))
			}
			if ok {
				rows = append(rows, page[i])
			}
		}
		p.Limit, p.Cursor = l.page.Limit-len(rows), cursor
		if cursor == "" || p.Limit == 0 || scanned >= maxScan {
			return rows, cursor, nil
		}
	}
}

// listEnd is what follows a list's rows, and how they are cut.
type listEnd struct {
	fields []string
	cursor string
	index  uint64
}

// appendList writes {"<name>":[rows],"next_cursor","index"}.
func appendList[T any](dst []byte, name string, rows []T, end *listEnd) ([]byte, error) {
	dst = append(dst, `{"`+name+`":[`...)
	for i := range rows {
		row, err := json.Marshal(&rows[i])
		if err == nil && end.fields != nil {
			row, err = cut(row, end.fields)
		}
		if err != nil {
			return nil, err
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, row...)
	}
	dst = append(dst, ']')
	if end.cursor != "" {
		dst = append(dst, `,"next_cursor":`...)
		var err error
		if dst, err = jsontext.AppendQuote(dst, end.cursor); err != nil {
			return nil, err
		}
	}
	dst = append(dst, `,"index":`...)
	return append(strconv.AppendUint(dst, end.index, 10), '}'), nil
}

// cut keeps the named members of an object, in their order.
func cut(object []byte, fields []string) ([]byte, error) {
	dec := jsontext.NewDecoder(strings.NewReader(string(object)))
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	out := []byte{'{'}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		keep := slices.Contains(fields, name.String())
		if keep {
			if len(out) > 1 {
				out = append(out, ',')
			}
			if out, err = jsontext.AppendQuote(out, name.String()); err != nil {
				return nil, err
			}
		}
		value, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		if keep {
			out = append(append(out, ':'), value...)
		}
	}
	return append(out, '}'), nil
}

// listJobs answers GET /v1/jobs.
func (c *call) listJobs() error {
	status, err := jobStatus(c.query)
	if err != nil {
		return err
	}
	archived, err := c.boolean("archived")
	if err != nil {
		return err
	}
	return list(c, "jobs", func(p Page) ([]gpuai.Job, string, error) {
		return c.api.backend.Jobs(JobQuery{Page: p, Status: status, Archived: archived})
	})
}

// listJobEvents answers GET /v1/jobs/{job}/events.
func (c *call) listJobEvents() error {
	ref, err := c.job()
	if err != nil {
		return err
	}
	return list(c, "events", func(p Page) ([]gpuai.Event, string, error) {
		return c.api.backend.JobEvents(c.r.Context(), ref, p)
	})
}

// listTasks answers GET /v1/jobs/{job}/tasks.
func (c *call) listTasks() error {
	ref, err := c.job()
	if err != nil {
		return err
	}
	return list(c, "tasks", func(p Page) ([]gpuai.Task, string, error) {
		return c.api.backend.Tasks(ref, p)
	})
}

// listCheckpoints answers GET /v1/jobs/{job}/checkpoints.
func (c *call) listCheckpoints() error {
	ref, err := c.job()
	if err != nil {
		return err
	}
	return list(c, "checkpoints", func(p Page) ([]gpuai.PublishedCheckpoint, string, error) {
		return c.api.backend.Checkpoints(ref, p)
	})
}

// listLeases answers GET /v1/leases and GET /v1/jobs/{job}/leases.
func (c *call) listLeases() error {
	q := LeaseQuery{Job: c.query.Get("job"), Node: gpuai.NodeID(c.query.Get("node"))}
	var err error
	if q.Live, err = c.boolean("live"); err != nil {
		return err
	}
	if who := rolesOf(c.who); c.api.cfg.Auth != nil && who&tenantReads == 0 && who&contributor != 0 {
		return c.listOwnLeases(q)
	}
	if q.Job != "" {
		q.Job, err = c.jobOf(q.Job)
	} else {
		q.Job, err = c.job()
	}
	if err != nil {
		return err
	}
	return list(c, "leases", func(p Page) ([]gpuai.Lease, string, error) {
		q.Page = p
		leases, next, err := c.api.backend.Leases(q)
		c.discreetly(leases)
		return leases, next, err
	})
}

// listOwnLeases answers a contributor with the leases of a node of its own.
func (c *call) listOwnLeases(q LeaseQuery) error {
	if q.Job != "" || q.Node == "" {
		return gpuai.NewError(gpuai.Forbidden, "a contributor sees the leases of its own nodes: ask with ?node= and without job")
	}
	return list(c, "leases", func(p Page) ([]gpuai.Lease, string, error) {
		if _, err := c.api.backend.Node(q.Node, c.owner()); err != nil {
			return nil, "", err
		}
		q.Page = p
		q.Tenant = ""
		leases, next, err := c.api.backend.Leases(q)
		for i := range leases {
			leases[i] = unnamed(leases[i])
		}
		return leases, next, err
	})
}

// listNodes answers GET /v1/nodes.
func (c *call) listNodes() error {
	return list(c, "nodes", c.api.backend.Nodes)
}

// listTenants answers GET /v1/tenants.
func (c *call) listTenants() error {
	return list(c, "tenants", c.api.backend.Tenants)
}

// listPending answers GET /v1/queue/pending.
func (c *call) listPending() error {
	return list(c, "pending", c.api.backend.QueueEntries)
}
