// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package docker

import (
	"context"
	"errors"
)

// errNoPipe says that a file cannot wait for its text here.
var errNoPipe = errors.New("warm: prompt file needs Linux, and an engine on the same machine: use prompt stdin")

func (*spec) placePipe(string) error { return errNoPipe }

func feedPipe(context.Context, string, string) error { return errNoPipe }
