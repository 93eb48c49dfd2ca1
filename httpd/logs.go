package httpd

import (
	"net/http"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
)

const (
	defaultLogLimit = 64 << 10
	maxLogLimit     = 1 << 20
	// followWait is how long an agent may hold an answer while a caller
	// follows, maxLogWait what a caller may ask for itself.
	followWait = 10 * gpuai.Second
	maxLogWait = gpuai.Minute
)

// logs answers GET /v1/jobs/{job}/logs: the output itself, or with Accept:
// application/json one LogChunk, whose offset and length say where to go on.
func (c *call) logs() error {
	ctx, cancel := c.still()
	defer cancel()
	c.r = c.r.WithContext(ctx)
	q, err := c.logQuery()
	if err != nil {
		return err
	}
	follow, err := c.boolean("follow")
	if err != nil {
		return err
	}
	wantJSON := c.accepts("application/json")
	switch {
	case follow && wantJSON:
		return badQuery("follow", "gives text: ask for chunks with offset and wait to get JSON")
	case q.Times && !wantJSON:
		return badQuery("times", "comes in JSON only: ask with Accept: application/json")
	}
	chunk, err := c.logChunk(q)
	if err != nil {
		return err
	}
	if wantJSON {
		return c.reply(http.StatusOK, &chunk)
	}
	h := c.w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set(headerLogOffset, strconv.FormatInt(chunk.Offset, 10))
	if !follow {
		h.Set(headerLogEOF, strconv.FormatBool(chunk.EOF))
		c.send(http.StatusOK, h.Get("Content-Type"), chunk.Data)
		return nil
	}
	c.begin(http.StatusOK)
	return c.follow(q, chunk)
}

// follow writes chunk and what comes after it until the task's output ends.
func (c *call) follow(q LogQuery, chunk gpuai.LogChunk) (err error) {
	q.Wait = followWait
	for {
		_ = c.ctl.SetWriteDeadline(time.Now().Add(c.api.cfg.WriteTimeout))
		if _, err := c.w.Write(chunk.Data); err != nil {
			return err
		}
		if err := c.ctl.Flush(); err != nil || chunk.EOF {
			return err
		}
		q.Offset, q.Since, q.Tail = chunk.Offset+int64(len(chunk.Data)), 0, 0
		if chunk, err = c.logChunk(q); err != nil {
			c.api.log.Debug("logs cut short", "request_id", c.id, "error", err)
			panic(http.ErrAbortHandler) // a plain end would look like the output's
		}
	}
}

// logChunk asks for one chunk. What the agent could not read is a conflict: the
// task's files are not there yet, or no more.
func (c *call) logChunk(q LogQuery) (gpuai.LogChunk, error) {
	chunk, err := c.api.backend.Logs(c.r.Context(), q)
	if err == nil && chunk.Error != "" {
		err = gpuai.NewError(gpuai.Conflict, "the node cannot read this output: "+chunk.Error)
	}
	return chunk, err
}

func (c *call) logQuery() (q LogQuery, err error) {
	if q.Job, err = c.job(); err != nil {
		return q, err
	}
	group, err := c.unsigned("group", 16)
	if err != nil {
		return q, err
	}
	task, err := c.unsigned("task", 32)
	if err != nil {
		return q, err
	}
	lease, err := c.unsigned("lease", 64)
	if err != nil {
		return q, err
	}
	attempt, err := c.unsigned("attempt", 32)
	if err != nil {
		return q, err
	}
	if attempt > 0 && lease > 0 {
		return q, badQuery("attempt", "and lease each name a run of the task: give one")
	}
	if q.Times, err = c.boolean("times"); err != nil {
		return q, err
	}
	q.Tenant = c.tenant()
	q.Group, q.Task, q.Lease, q.Attempt = uint16(group), uint32(task), gpuai.Token(lease), uint32(attempt)
	if q.Stream = c.query.Get("stream"); q.Stream == "" {
		q.Stream = "stdout"
	}
	if q.Stream != "stdout" && q.Stream != "stderr" && q.Stream != gpuai.StreamProgress {
		return q, badQuery("stream", "is stdout, stderr or progress, not "+strconv.Quote(clip(q.Stream)))
	}
	return q, c.logRange(&q)
}

// logRange reads since_ms, tail, offset, limit and wait.
func (c *call) logRange(q *LogQuery) (err error) {
	since, err := c.unsigned("since_ms", 63)
	if err != nil {
		return err
	}
	tail, err := c.unsigned("tail", 63)
	if err != nil {
		return err
	}
	q.Since, q.Tail = gpuai.WallTime(since), int64(tail)
	if s := c.query.Get("offset"); s != "" {
		if q.Offset, err = strconv.ParseInt(s, 10, 64); err != nil {
			return badQuery("offset", "is a number of bytes, negative from the end, not "+strconv.Quote(clip(s)))
		}
	}
	q.Limit = defaultLogLimit
	if s := c.query.Get("limit"); s != "" {
		if q.Limit, err = strconv.ParseInt(s, 10, 64); err != nil || q.Limit < 1 || q.Limit > maxLogLimit {
			return badQuery("limit", "is 1 to "+strconv.Itoa(maxLogLimit)+" bytes, not "+strconv.Quote(clip(s)))
		}
	}
	if s := c.query.Get("wait"); s != "" {
		if q.Wait, err = gpuai.ParseDuration(s); err != nil || q.Wait > maxLogWait {
			return badQuery("wait", `is a duration of at most `+maxLogWait.String()+`, such as "10s"`)
		}
	}
	return nil
}
