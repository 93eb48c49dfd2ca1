package fsm

import "strconv"

// A CommandKind is a type of command, for counting.
type CommandKind uint8

// NumCommandKinds bounds the kinds there are.
const NumCommandKinds = int(numTypes)

// commandNames are the kinds by their number in the log.
var commandNames = [numTypes]string{
	typeRegisterNode: "register_node", typeUpdateDevices: "update_devices",
	typeSetNodeEligibility: "set_node_eligibility", typeExpireLeases: "expire_leases",
	typeSubmitJob: "submit_job", typeStopJob: "stop_job", typeReportLease: "report_lease",
	typeConfirmBeats: "confirm_beats", typeTick: "tick", typeSetPolicy: "set_policy",
	typeSetFeatureLevel: "set_feature_level", typeCheckpoint: "checkpoint", typeRetireJobs: "retire_jobs",
	typeRetireServer: "retire_server", typeMoveServer: "move_server",
	typeSetDemand:         "set_demand",
	typeSetTenantWeight:   "set_tenant_weight",
	typePublishCheckpoint: "publish_checkpoint",
	typeSetQuota:          "set_quota",
	typeSetBudget:         "set_budget",
	typeSetPrices:         "set_prices",
	typeSetNodePrice:      "set_node_price",
	typeCreateTenant:      "create_tenant", typeCreateToken: "create_token", typeRevokeToken: "revoke_token",
	typeTouchTokens: "touch_tokens", typeSetRole: "set_role", typeSetNodeOwner: "set_node_owner",
	typePutAuthority:    "put_authority",
	typeCreateJoinToken: "create_join_token",
	typeJoin:            "join",
	typeRevokeIdentity:  "revoke_identity",
	typeRetireAuthority: "retire_authority",
	typeAuditNote:       "audit_note",
	typePutSecret:       "put_secret", typeDeleteSecret: "delete_secret", typeGiveSecrets: "give_secrets",
	typeSetRegionKey:    "set_region_key",
	typeSetNodeSchedule: "set_node_schedule", typeSetNodeAsk: "set_node_ask",
}

// String returns the kind's stable name, "submit_job".
func (k CommandKind) String() string {
	if int(k) < len(commandNames) && commandNames[k] != "" {
		return commandNames[k]
	}
	return "type_" + strconv.Itoa(int(k))
}

// ChangesAccess reports whether commands of the kind change what an access token
// is, so that what was known of one may not hold.
func (k CommandKind) ChangesAccess() bool {
	return k == CommandKind(typeCreateToken) || k == CommandKind(typeRevokeToken)
}
