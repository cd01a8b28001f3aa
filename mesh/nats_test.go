// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"reflect"
	"strings"
	"testing"
)

func TestResolveNATS(t *testing.T) {
	t.Setenv("NATS_PASSWORD", "hush")
	t.Setenv("NATS_HOST", "n1")
	in := NATS{
		URLs: []string{"nats://{env.NATS_HOST}:4222"}, User: "gateway", Password: "{env.NATS_PASSWORD}",
		CA: []string{"/etc/ca.pem"}, Credentials: "/etc/creds", Replicas: 3,
	}
	out, err := (&Tasks{NATS: &in}).resolve()
	want := in
	want.URLs, want.Password = []string{"nats://n1:4222"}, "hush"
	if err != nil || out.Store != "" || !reflect.DeepEqual(*out.NATS, want) {
		t.Errorf("got %+v, %v", out.NATS, err)
	}
	if in.URLs[0] != "nats://{env.NATS_HOST}:4222" {
		t.Errorf("the configuration was changed: %q", in.URLs)
	}
	for _, c := range []struct {
		tasks Tasks
		want  string
	}{
		{Tasks{Store: "/x", NATS: &in}, "store and nats are both there"},
		{Tasks{NATS: &NATS{}}, "at least one URL"},
		{Tasks{NATS: &NATS{URLs: []string{"nats://{env.MISSING_HUSH}"}}}, "urls[0]: it holds a placeholder"},
		{Tasks{NATS: &NATS{URLs: in.URLs, User: "x"}}, "user and password"},
		{Tasks{NATS: &NATS{URLs: in.URLs, Certificate: "x"}}, "certificate and certificate_key"},
	} {
		_, err := c.tasks.resolve()
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "HUSH") {
			t.Errorf("%+v: got %v", c.tasks, err)
		}
	}
}
