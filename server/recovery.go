package server

import (
	"context"
	"crypto/subtle"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/store"
)

// RecoveryFile is the file that who has lost every operator's token leaves in the
// data directory of a server: it holds a secret of their own, for which this server
// makes one operator's token. Who can write there can do anything in any case.
const RecoveryFile = "recovery.secret"

// recoveryGood is for how long such a file is good.
const recoveryGood = 10 * time.Minute

// takeRecovery reports whether a secret is the one in the recovery file, which is
// taken away then: it is good once, whatever comes of it.
func (s *Server) takeRecovery(secret string) (bool, error) {
	want, left, err := s.dir.PrivateSecret(RecoveryFile)
	switch {
	case err != nil:
		s.log.Warn("the recovery secret is not used", "error", err)
		return false, nil
	case want == "" || subtle.ConstantTimeCompare([]byte(want), []byte(secret)) != 1:
		return false, nil
	}
	if taken, err := s.dir.TakeSecret(RecoveryFile); err != nil || !taken {
		return false, err
	}
	if age := time.Since(left); age > recoveryGood || age < -recoveryGood {
		return false, gpuai.NewError(gpuai.Unauthenticated, "the recovery secret is older than "+recoveryGood.String()+": run gpuai operator bootstrap --recover again")
	}
	return true, nil
}

// recover makes an operator's token for who has this server's data directory. It is
// the first one where there was none.
func (s *Server) recover(ctx context.Context) (out gpuai.NewAccessToken, err error) {
	if err := s.awaitTenants(ctx); err != nil {
		return out, err
	}
	out, err = s.createToken(s.byHost(ctx, "recovery/"), fsm.CreateToken{
		Scopes: gpuai.ScopesOf(gpuai.ScopeOperator), TTL: firstTokenTTL, Description: "recovered on server " + string(s.cfg.ID), First: !s.bootstrapped(),
	})
	if err == nil {
		s.log.Warn("an operator's token was made for who can write to this server's data directory", "token", out.Token.ID)
	}
	return out, err
}

// byHost is for what somebody may do because they have this server's data directory:
// an operator, whom the audit calls by what it was and by this server.
func (s *Server) byHost(ctx context.Context, what string) context.Context {
	return httpd.WithPrincipal(ctx, &gpuai.Principal{
		Actor: what + string(s.cfg.ID), From: httpd.PrincipalOf(ctx).From, Scopes: gpuai.ScopesOf(gpuai.ScopeOperator),
	})
}

// LeaveRecovery leaves a secret for Bootstrap in a server's data directory, from
// another process on its host.
func LeaveRecovery(dataDir, secret string) error {
	return store.LeaveSecret(dataDir, RecoveryFile, secret)
}
