package server

import (
	"context"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// Demand implements httpd.Reader.
func (s *Server) Demand() (d gpuai.DemandStatus) {
	s.node.View(func(m *fsm.Machine) { d = m.Demand() })
	return d
}

// SetDemand implements httpd.Writer.
func (s *Server) SetDemand(ctx context.Context, d gpuai.Demand) error {
	if bad := d.Validate(); len(bad) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the demand is invalid", Fields: bad}
	}
	c := fsm.SetDemand{Demand: d.Classes, Fixed: d.Fixed}
	_, err := s.command(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	return err
}
