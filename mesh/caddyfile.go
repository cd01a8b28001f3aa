// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// UnmarshalCaddyfile sets up the app from the global option. Syntax:
//
//	agentfm {
//		mesh {
//			identity  <name or file>
//			listen    <multiaddr>...
//			bootstrap <multiaddr>... | off
//			swarm_key <file>
//			discovery mdns|dht... | off
//			relay {
//				max_reservations        <n>
//				max_reservations_per_ip <n>
//				max_circuits            <n>
//				max_duration            <duration>
//				max_data                <size>
//			}
//		}
//		artifacts [<dir>] {
//			max_size <size>
//			max_age  <duration> | off
//			min_free <size>
//		}
//		tasks {
//			store          <dir>
//			nats <url>... {
//				credentials <file>
//				nkey        <file>
//				user        <name> <password>
//				token       <token>
//				ca          <file>...
//				certificate <file> <key file>
//				replicas    <n>
//			}
//			webhook_secret <secret> [<old secret>]
//			in_flight      <n>
//			max_attempts   <n>
//			queue_timeout  <duration>
//			run_timeout    <duration>
//			timeout        <duration>
//		}
//		reputation off | {
//			store     <dir>
//			floor     <score>
//			seeds     <file>
//			fail_open
//			trust_newcomers
//			witness
//			witnesses <peer id>...
//			quorum    <n>
//		}
//	}
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{
		"mesh":       option.Func(a.unmarshalMesh),
		"artifacts":  option.Func(a.unmarshalArtifacts),
		"tasks":      option.Func(a.unmarshalTasks),
		"reputation": option.Func(a.unmarshalReputation),
	}.Unmarshal(d)
}

// unmarshalMesh reads the mesh block.
func (a *App) unmarshalMesh(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	a.Mesh = new(Config)
	return option.Set{
		"identity":  option.String(&a.Mesh.Identity),
		"listen":    option.Strings(&a.Mesh.Listen),
		"bootstrap": option.Strings(&a.Mesh.Bootstrap),
		"swarm_key": option.String(&a.Mesh.SwarmKey),
		"discovery": option.Strings(&a.Mesh.Discovery),
		"relay":     option.Func(a.Mesh.unmarshalRelay),
	}.Block(d)
}

// unmarshalArtifacts reads the folder for artifacts, and its block.
func (a *App) unmarshalArtifacts(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	switch {
	case len(args) > 1 || len(args) == 1 && args[0] == "":
		return d.ArgErr()
	case len(args) == 1:
		a.Artifacts = args[0]
	}
	var l ArtifactLimits
	err := option.Set{
		"max_size": option.Size(&l.MaxSize),
		"max_age":  option.DurationOrOff(&l.MaxAge),
		"min_free": option.Size(&l.MinFree),
	}.Block(d)
	switch {
	case err != nil:
		return err
	case l != ArtifactLimits{}:
		a.ArtifactLimits = &l
	case len(args) == 0:
		return d.ArgErr()
	}
	return nil
}

// unmarshalTasks reads the tasks block.
func (a *App) unmarshalTasks(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	a.Tasks = new(Tasks)
	return option.Set{
		"store":          option.String(&a.Tasks.Store),
		"nats":           option.Func(a.Tasks.unmarshalNATS),
		"webhook_secret": option.Keys(&a.Tasks.WebhookSecret, &a.Tasks.OldWebhookSecret),
		"in_flight":      option.PositiveInt(&a.Tasks.InFlight),
		"max_attempts":   option.PositiveInt(&a.Tasks.MaxAttempts),
		"queue_timeout":  option.Duration(&a.Tasks.QueueTimeout),
		"run_timeout":    option.Duration(&a.Tasks.RunTimeout),
		"timeout":        option.Duration(&a.Tasks.Timeout),
	}.Block(d)
}

// Interface guard
var _ caddyfile.Unmarshaler = (*App)(nil)
