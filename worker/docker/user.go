// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"strconv"
	"strings"
)

// nobody is whom an agent runs as whose image names root, or no user.
const nobody = "65534:65534"

// errRoot refuses root.
var errRoot = errors.New("user is root: choose another, or set allow_root")

// isRoot reports whether a user, as a Dockerfile has it, is root. Another name is
// taken for what it says: the image could give it the number 0.
func isRoot(user string) bool {
	name, _, _ := strings.Cut(strings.TrimSpace(user), ":")
	number, err := strconv.Atoi(name)
	return name == "" || name == "root" || err == nil && number == 0
}

// userOf returns whom the containers of an image run as, whose own user that is.
func (r *Runtime) userOf(image string) string {
	switch {
	case r.User != "":
		return r.User
	case isRoot(image) && !r.AllowRoot:
		return nobody
	}
	return image
}

// ids returns the numbers of a user and its group; false where only the image knows
// them.
func ids(user string) (uid, gid int, known bool) {
	name, group, grouped := strings.Cut(user, ":")
	uid, err := strconv.Atoi(name)
	if err != nil || uid < 0 {
		return 0, 0, false
	}
	if !grouped {
		return uid, -1, true
	}
	gid, err = strconv.Atoi(group)
	return uid, gid, err == nil && gid >= 0
}
