// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// The exit codes of the commands.
const (
	exitOK          = 0
	exitFailed      = 1 // for a reason that has no code of its own
	exitUsage       = 2 // the command, or the request, is wrong in itself
	exitGateway     = 3 // the gateway cannot be reached, or is none, or has a fault
	exitKey         = 4 // the key is missing, wrong, or may not do this
	exitNotFound    = 5 // no such worker, model, task, peer or comment, or not any more
	exitBusy        = 6 // all are busy, or asked too often: later it may work
	exitAgent       = 7 // the agent failed, or its worker did, or some prompts of many
	exitInterrupted = 130
)

// kindCodes are the exit codes of the errors of a gateway, and of the way to it.
var kindCodes = map[client.Kind]int{
	client.ErrInvalidRequest:    exitUsage,
	client.ErrConnection:        exitGateway,
	client.ErrProtocol:          exitGateway,
	client.ErrInternal:          exitGateway,
	client.ErrUnavailable:       exitGateway,
	client.ErrAuthentication:    exitKey,
	client.ErrPermission:        exitKey,
	client.ErrWorkerNotFound:    exitNotFound,
	client.ErrModelNotFound:     exitNotFound,
	client.ErrNotFound:          exitNotFound,
	client.ErrExpired:           exitNotFound,
	client.ErrMeshOverloaded:    exitBusy,
	client.ErrRateLimited:       exitBusy,
	client.ErrWorkerStream:      exitAgent,
	client.ErrWorkerUnreachable: exitAgent,
	client.ErrDispatchRefused:   exitAgent,
	client.ErrTaskFailed:        exitAgent,
	client.ErrContext:           exitInterrupted,
}

// coded is an error with the exit code that it asks for.
type coded struct {
	error
	code int
}

// Unwrap returns the error.
func (e coded) Unwrap() error { return e.error }

// usage is the error for a command that is wrong in itself; nil stays nil.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return coded{err, exitUsage}
}

// exitCode returns the exit code for how a command ended.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if e, ok := errors.AsType[coded](err); ok {
		return e.code
	}
	e, ok := errors.AsType[*client.Error](err)
	if ok && e.Kind == client.ErrArtifact { // why the files are missing says more
		if cause, found := errors.AsType[*client.Error](e.Err); found {
			e = cause
		}
	}
	if (!ok || e.Kind == client.ErrContext) && errors.Is(err, context.DeadlineExceeded) {
		return exitBusy // what was waited for; a dial that takes too long is one, too, by its error
	}
	if ok {
		if code, ok := kindCodes[e.Kind]; ok {
			return code
		}
	}
	return exitFailed
}

// withExitCodes makes a command, and those below it, end with the code of its error.
func withExitCodes(cmd *cobra.Command) {
	for _, below := range cmd.Commands() {
		withExitCodes(below)
	}
	args, run := cmd.Args, cmd.RunE
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return leave(cmd, usage(err)) })
	cmd.Args = func(cmd *cobra.Command, a []string) error { return leave(cmd, usage(args(cmd, a))) }
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { // before cobra finds the same
		err := cmd.ValidateRequiredFlags()
		if err == nil {
			err = cmd.ValidateFlagGroups()
		}
		return leave(cmd, usage(err))
	}
	cmd.RunE = func(cmd *cobra.Command, a []string) error { return leave(cmd, run(cmd, a)) }
}

// leave makes an error of a command one with which Caddy ends with its code. A variable for
// tests.
var leave = func(cmd *cobra.Command, err error) error {
	code := exitCode(err)
	if code <= exitFailed {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "Error:", err) // Caddy itself is silent about these
	if code == exitUsage {
		fmt.Fprintf(cmd.ErrOrStderr(), "See \"%s --help\".\n", cmd.CommandPath())
	}
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return code, err })(cmd, nil)
}
