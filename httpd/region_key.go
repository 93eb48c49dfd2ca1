package httpd

import "net/http"

// listKeys answers GET /v1/operator/keys.
func (c *call) listKeys() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.replyKeys()
}

func (c *call) replyKeys() error {
	list, err := c.api.backend.RegionKeys(c.r.Context())
	if err != nil {
		return err
	}
	c.setIndex(list.Index)
	return c.reply(http.StatusOK, &list)
}

// rotateKey answers POST /v1/operator/keys/rotate.
func (c *call) rotateKey() error {
	if err := c.noBody(); err != nil {
		return err
	}
	if err := c.api.backend.RotateKey(c.r.Context()); err != nil {
		return err
	}
	return c.replyKeys()
}

// retireKey answers POST /v1/operator/keys/{key}/retire.
func (c *call) retireKey() error {
	id, err := c.variable("key")
	if err != nil {
		return err
	}
	if err := c.noBody(); err != nil {
		return err
	}
	if err := c.api.backend.RetireKey(c.r.Context(), id); err != nil {
		return err
	}
	return c.replyKeys()
}
