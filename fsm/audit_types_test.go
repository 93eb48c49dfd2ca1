package fsm

import "testing"

// Whether a command is in the audit is decided for each type: who adds one says so
// here, and in unaudited when servers and agents make it by themselves.
func TestEveryCommandIsDecidedUponForTheAudit(t *testing.T) {
	audited := map[uint8]bool{
		typeRegisterNode: true, typeSetNodeEligibility: true, typeSubmitJob: true, typeStopJob: true, typeSetPolicy: true,
		typeSetFeatureLevel: true, typeRetireServer: true, typeMoveServer: true, typeSetDemand: true, typeSetTenantWeight: true,
		typePutAuthority: true, typeCreateJoinToken: true, typeJoin: true, typeRevokeIdentity: true, typeRetireAuthority: true,
		typeCreateTenant: true, typeCreateToken: true, typeRevokeToken: true, typeSetRole: true, typeSetNodeOwner: true,
		typeSetQuota: true, typeSetBudget: true, typeSetPrices: true, typeSetNodePrice: true,
		typePutSecret: true, typeDeleteSecret: true, typeGiveSecrets: true, typeSetRegionKey: true, typeSetNodeSchedule: true, typeSetNodeAsk: true,
		typeUpdateDevices: false, typeExpireLeases: false, typeReportLease: false, typeConfirmBeats: false, typeTick: false,
		typeCheckpoint: false, typeRetireJobs: false, typePublishCheckpoint: false, typeAuditNote: false,
		typeTouchTokens: true, // by servers, when they have seen tokens
	}
	for kind, name := range commandNames {
		want, decided := audited[uint8(kind)]
		switch {
		case name == "":
		case !decided:
			t.Errorf("%s (type %d): say whether it is in the audit", name, kind)
		case want == (unaudited>>kind&1 != 0):
			t.Errorf("%s: in the audit %v, want %v", name, !want, want)
		}
	}
}
