package server

import (
	"context"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// Contributors implements httpd.Owners.
func (s *Server) Contributors(p httpd.Page) (all []gpuai.ContributorStatus, cursor string, err error) {
	from, err := readOffset("contributors", p.Cursor)
	if err != nil || from > fsm.MaxStrings {
		return nil, "", badCursor()
	}
	if p.Contributor != "" {
		if from == 0 {
			s.node.View(func(m *fsm.Machine) {
				c, _ := m.Contributor(p.Contributor)
				all = append(all, c)
			})
		}
		return all, "", nil
	}
	next := uint32(0)
	s.node.View(func(m *fsm.Machine) { all, next = m.Contributors(uint32(from), uint32(pageSize(p))) })
	if next > 0 {
		cursor = makeCursor("contributors", strconv.FormatUint(uint64(next), 10))
	}
	return all, cursor, nil
}

// SetNodeAsk implements httpd.Owners.
func (s *Server) SetNodeAsk(ctx context.Context, id gpuai.NodeID, price gpuai.Micros) error {
	c := fsm.SetNodeAsk{Node: id, Price: price}
	return s.setNodeTerms(ctx, id, c.Append(nil, envelopeOf(ctx, "", "")))
}

// SetNodeSchedule implements httpd.Owners.
func (s *Server) SetNodeSchedule(ctx context.Context, id gpuai.NodeID, x gpuai.Schedule) error {
	c := fsm.SetNodeSchedule{Node: id, Schedule: x}
	return s.setNodeTerms(ctx, id, c.Append(nil, envelopeOf(ctx, "", "")))
}

func (s *Server) setNodeTerms(ctx context.Context, id gpuai.NodeID, cmd []byte) error {
	_, err := s.accessCommand(ctx, cmd)
	if isCode(err, gpuai.NotFound) {
		return errNoNode(id)
	}
	return err
}
