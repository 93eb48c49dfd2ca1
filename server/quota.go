package server

import (
	"context"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// Quota implements httpd.Reader.
func (s *Server) Quota(id gpuai.TenantID) (q gpuai.QuotaStatus, err error) {
	ok := false
	s.node.View(func(m *fsm.Machine) { q, ok = m.Quota(id) })
	if !ok {
		err = gpuai.NewError(gpuai.NotFound, "tenant "+string(id)+" has no quota: nothing bounds it")
	}
	return q, err
}

// Usage implements httpd.Reader.
func (s *Server) Usage(id gpuai.TenantID) (u gpuai.TenantUsage, err error) {
	ok := false
	s.node.View(func(m *fsm.Machine) { u, ok = m.Usage(id) })
	if !ok {
		err = gpuai.NewError(gpuai.NotFound, "tenant "+string(id)+" has held no devices and was given no quota, budget or weight")
	}
	return u, err
}

// Usages implements httpd.Reader.
func (s *Server) Usages(p httpd.Page) (all []gpuai.TenantUsage, cursor string, err error) {
	from, err := readOffset("usage", p.Cursor)
	if err != nil || from > fsm.MaxTenants {
		return nil, "", badCursor()
	}
	if p.Tenant != "" {
		if u, err := s.Usage(p.Tenant); err == nil && from == 0 {
			all = append(all, u)
		}
		return all, "", nil
	}
	next := uint32(0)
	s.node.View(func(m *fsm.Machine) { all, next = m.Usages(uint32(from), uint32(pageSize(p))) })
	if next > 0 {
		cursor = makeCursor("usage", strconv.FormatUint(uint64(next), 10))
	}
	return all, cursor, nil
}

// Prices implements httpd.Reader.
func (s *Server) Prices() (p gpuai.Prices) {
	s.node.View(func(m *fsm.Machine) { p = m.Prices() })
	return p
}

// SetQuota implements httpd.Writer.
func (s *Server) SetQuota(ctx context.Context, id gpuai.TenantID, q gpuai.Quota) error {
	return s.setTerms(ctx, id, &fsm.SetQuota{Tenant: id, Quota: q})
}

// SetBudget implements httpd.Writer.
func (s *Server) SetBudget(ctx context.Context, id gpuai.TenantID, b gpuai.Budget) error {
	return s.setTerms(ctx, id, &fsm.SetBudget{Tenant: id, Budget: b})
}

// SetPrices implements httpd.Writer.
func (s *Server) SetPrices(ctx context.Context, p gpuai.Prices) error {
	return s.setTerms(ctx, "", &fsm.SetPrices{Prices: p})
}

// SetNodePrice implements httpd.Writer.
func (s *Server) SetNodePrice(ctx context.Context, id gpuai.NodeID, price gpuai.Micros) error {
	return s.setTerms(ctx, "", &fsm.SetNodePrice{Node: id, Price: price})
}

// setTerms proposes a command of quotas and money, which a region below its level
// would not understand.
func (s *Server) setTerms(ctx context.Context, id gpuai.TenantID, c fsm.Command) error {
	level := uint32(0)
	s.node.View(func(m *fsm.Machine) { level = m.Level() })
	if level < fsm.LevelTenants {
		return gpuai.NewError(gpuai.PreconditionFailed, "the region is below feature level 4, which brings quotas and budgets: upgrade all its servers")
	}
	_, err := s.command(ctx, c.Append(nil, envelopeOf(ctx, id, "")))
	return err
}
