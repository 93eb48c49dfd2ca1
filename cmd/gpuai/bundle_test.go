package main

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

func TestScrubTakesWhatLooksSecret(t *testing.T) {
	const hush = "hush-4711-value"
	for _, text := range []string{
		`password=` + hush,
		`level=INFO msg="login" db_passwd="` + hush + `" next=1`,
		`{"registry_auth":"` + hush + `","api-key": "` + hush + `"}`,
		`{"msg":"env {\"AWS_SECRET_ACCESS_KEY\":\"` + hush + `\"}"}`,
		`SECRET_TOKEN: ` + hush + `, next`,
		`Authorization: Bearer ` + hush,
		`with gpu_a1b2_` + hush + ` as token`,
		`GET /v1/jobs?token=gpu_a1b2_` + hush,
		`joins with gpujoin_a1b2_` + hush + `_00ff00ff00ff00ff`,
		`started with gpuboot-hush4711value`,
		`pull https://user:` + hush + `@registry.example/x`,
		"-----BEGIN RSA PRIVATE KEY-----\n" + hush + "\n-----END RSA PRIVATE KEY-----",
	} {
		if got := string(scrub([]byte(text))); strings.Contains(got, "hush") || !strings.Contains(got, redacted) {
			t.Errorf("%s\n  became %s", text, got)
		}
	}
}

func TestScrubLeavesTheRest(t *testing.T) {
	for _, text := range []string{
		`{"id":"5242880","tokens":["1","2"],"job":"01JZZZZZZZZZZZZZZZZZZZZZZ2"}`,
		`gpuai_gpu_allocated_seconds_total{server="a"} 12`,
		`gpuai_gpus{model="H100",state="free"} 8`,
		`http://127.0.0.1:7470/v1/jobs`,
		`runtime.gopark+0xce /usr/local/go/src/runtime/proc.go:462`,
	} {
		if got := string(scrub([]byte(text))); got != text {
			t.Errorf("%s\n  became %s", text, got)
		}
	}
	const object = `{"secret":"a\"b","n":{"password":12,"x":[{"credentials":null}]}}`
	var v any
	if err := json.Unmarshal(scrub([]byte(object)), &v); err != nil {
		t.Errorf("%s is no JSON any more: %v", scrub([]byte(object)), err)
	}
}
