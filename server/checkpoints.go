package server

import (
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// Checkpoints implements httpd.Reader. A job that has left the machine has none.
func (s *Server) Checkpoints(ref string, p httpd.Page) (page []gpuai.PublishedCheckpoint, next string, err error) {
	from, err := readOffset("checkpoints", p.Cursor)
	if err != nil {
		return nil, "", err
	}
	at, err := s.locate(ref)
	if err != nil {
		return nil, "", err
	}
	more := uint32(0)
	s.node.View(func(m *fsm.Machine) {
		// The cursor counts tasks, so a page may be a few longer than asked for.
		page, more = m.Checkpoints(at.id, uint32(min(from, gpuai.MaxTasks*gpuai.MaxGroups)), max(1, pageSize(p)-gpuai.MaxCheckpointKeep+1))
	})
	if more != 0 {
		next = makeCursor("checkpoints", strconv.FormatUint(uint64(more), 10))
	}
	return page, next, nil
}
