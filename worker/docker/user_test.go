// SPDX-License-Identifier: Apache-2.0

package docker

import "testing"

func TestUserOf(t *testing.T) {
	for _, tc := range []struct {
		user, image string
		allowRoot   bool
		want        string
	}{
		{"", "", false, nobody},
		{"", "root", false, nobody},
		{"", "0:0", false, nobody},
		{"", "000", false, nobody},
		{"", " 0 ", false, nobody},
		{"", "root:65534", false, nobody},
		{"", "", true, ""},
		{"", "root", true, "root"},
		{"", "app", false, "app"},
		{"", "1000:0", false, "1000:0"},
		{"7", "root", false, "7"},
		{"0", "app", true, "0"},
	} {
		r := &Runtime{User: tc.user, AllowRoot: tc.allowRoot}
		if got := r.userOf(tc.image); got != tc.want {
			t.Errorf("user %q, image's %q, allow_root %v: %q, want %q", tc.user, tc.image, tc.allowRoot, got, tc.want)
		}
	}
}

func TestIDs(t *testing.T) {
	for user, want := range map[string][3]any{
		"1000": {1000, -1, true}, "1000:7": {1000, 7, true}, "app": {0, 0, false}, "1:staff": {1, 0, false}, "": {0, 0, false}, "-1": {0, 0, false},
	} {
		if uid, gid, known := ids(user); known != want[2] || known && (uid != want[0] || gid != want[1]) {
			t.Errorf("%q: %d, %d, %v, want %v", user, uid, gid, known, want)
		}
	}
}
