package httpd

import (
	"net/http"

	"github.com/gpuai/gpuai"
)

type demandReply struct {
	Demand gpuai.DemandStatus `json:"demand"`
	Index  uint64             `json:"index"`
}

// getDemand answers GET /v1/operator/demand.
func (c *call) getDemand() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.reply(http.StatusOK, &demandReply{c.api.backend.Demand(), c.index})
}

// putDemand answers PUT /v1/operator/demand, which replaces what is expected.
func (c *call) putDemand() error {
	var d gpuai.Demand
	if err := c.decode(&d); err != nil {
		return err
	}
	d.Defaults()
	if wrong := d.Validate(); len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong[:min(len(wrong), maxErrors)]}
	}
	if err := c.api.backend.SetDemand(c.r.Context(), d); err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusOK, &demandReply{c.api.backend.Demand(), c.index})
}
