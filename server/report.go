package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/server/offline"
)

const (
	// reportTime bounds the making of one report, its reader's pace included.
	reportTime = 10 * time.Minute
	// reportEntries is how far back one goes that does not say it, maxReportSpan
	// how far one may.
	reportEntries = 8_192
	maxReportSpan = 65_536
)

// Report implements httpd.Operator. Only one is made at a time: it has two states
// of its own in memory, and reads the log beside everything else.
func (s *Server) Report(ctx context.Context, span gpuai.IndexRange, w io.Writer) error {
	done, err := s.turn(ctx, s.explainer.report)
	if err != nil {
		return err
	}
	defer done()
	kept, err := s.node.Retained()
	if err != nil {
		return err
	}
	if span.To == 0 {
		span.To = kept.To
	}
	if span.From == 0 {
		span.From = max(kept.From, span.To-min(span.To, reportEntries))
	}
	switch {
	case span.From > span.To:
		return gpuai.NewError(gpuai.InvalidSpec, fmt.Sprintf("the report would begin at index %d and end before, at %d", span.From, span.To))
	case span.From < kept.From:
		return s.errNotRetained(span.From)
	case span.To > kept.To:
		return s.errNotRetained(span.To)
	case span.To-span.From > maxReportSpan:
		return gpuai.NewError(gpuai.TooLarge, fmt.Sprintf("a report of a running server has at most %d entries, not %d: take the end of the range, or gpuai operator report --data on a copy of the data directory", maxReportSpan, span.To-span.From))
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	_, err = offline.Running(s.cfg.Region, span, s.node).WriteReport(ctx, w, span, nil)
	switch {
	case errors.Is(err, raft.ErrNoReplay):
		return s.errNotRetained(span.From) // it was compacted meanwhile
	case errors.Is(err, context.DeadlineExceeded):
		return gpuai.NewError(gpuai.TooLarge, fmt.Sprintf("the report takes more than %s here: ask for fewer entries", reportTime))
	}
	return err
}
