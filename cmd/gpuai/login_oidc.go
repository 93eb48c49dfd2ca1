package main

import (
	"context"
	"errors"

	"github.com/gpuai/gpuai"
)

// loginOIDC has the user log in at the provider and exchanges what it says.
func (a *app) loginOIDC(context.Context, *loginFlags, *gpuai.LoginInfo) (gpuai.Secret, error) {
	return gpuai.Secret{}, errors.New("unreachable until the provider's part is in")
}
