package server

import (
	"context"

	"github.com/gpuai/gpuai"
)

// LoginInfo implements httpd.Access.
func (s *Server) LoginInfo() gpuai.LoginInfo {
	return gpuai.LoginInfo{Issuer: s.cfg.OIDCIssuer, ClientID: s.cfg.OIDCClientID}
}

// Login implements httpd.Access.
func (s *Server) Login(context.Context, gpuai.LoginRequest) (gpuai.NewAccessToken, error) {
	return gpuai.NewAccessToken{}, gpuai.NewError(gpuai.PreconditionFailed, "this region has no identity provider")
}
