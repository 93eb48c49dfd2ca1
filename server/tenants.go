package server

import (
	"context"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// Tenants implements httpd.Reader.
func (s *Server) Tenants(p httpd.Page) (tenants []gpuai.TenantShare, cursor string, err error) {
	from, err := readOffset("tenants", p.Cursor)
	if err != nil || from > fsm.MaxTenants {
		return nil, "", badCursor()
	}
	if p.Tenant != "" {
		s.node.View(func(m *fsm.Machine) {
			if share, ok := m.Tenant(p.Tenant); ok && from == 0 {
				tenants = append(tenants, share)
			}
		})
		return tenants, "", nil
	}
	next := uint32(0)
	s.node.View(func(m *fsm.Machine) { tenants, next = m.Tenants(uint32(from), uint32(pageSize(p))) })
	if next > 0 {
		cursor = makeCursor("tenants", strconv.FormatUint(uint64(next), 10))
	}
	return tenants, cursor, nil
}

// SetTenantWeight implements httpd.Writer.
func (s *Server) SetTenantWeight(ctx context.Context, id gpuai.TenantID, weight uint32) error {
	c := fsm.SetTenantWeight{Tenant: id, Weight: weight}
	_, err := s.command(ctx, c.Append(nil, envelopeOf(ctx, id, "")))
	return err
}
