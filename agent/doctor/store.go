package doctor

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/gpuai/gpuai/agent"
)

// storeVariables are those by which a client of S3 finds credentials.
var storeVariables = []string{
	"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	"AWS_SHARED_CREDENTIALS_FILE",
}

// storeCredentials says where this user and environment have credentials of an object
// store; their values are not read.
func storeCredentials(getenv func(string) string) (found []string) {
	for _, name := range storeVariables {
		if getenv(name) != "" {
			found = append(found, name)
		}
	}
	if home := getenv("HOME"); home != "" {
		path := filepath.Join(home, ".aws", "credentials")
		if _, err := os.Stat(path); err == nil {
			found = append(found, path)
		}
	}
	return found
}

func (f *Facts) judgeStore() Check {
	const code, all = "store", "none for tasks; whoever is root here can read, change and delete what all tenants have in the store that they open"
	has := strings.Join(f.StoreCredentials, ", ")
	switch direct := f.Store == agent.StoreDirect; {
	case direct && has == "":
		return warn(code, cure{"leave --store out, so that the servers give leave, or give the agent credentials",
			"neither checkpoints nor output are stored, unless the region's store is a shared directory or this host's own role opens it"},
			"direct, and no credentials are in this environment")
	case direct:
		return warn(code, cure{"leave --store out, so that the servers give leave, unless all tenants trust this host with their data", all},
			"direct, by %s", has)
	case has != "":
		return warn(code, cure{"take them from this host, if they open the region's store: its agent needs none", all},
			"by leave of the servers; but credentials of an object store are here: %s", has)
	}
	return ok(code, "by leave of the servers for each lease; no credentials of an object store are in sight")
}
