// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// connectLimit is how long the engine may take to say who it is.
const connectLimit = 10 * time.Second

// prepared is an agent whose image is there: what its tasks run with.
type prepared struct {
	engine    engine
	spec      spec
	logger    *zap.Logger
	newest    func() *zap.Logger // that of the newest configuration, where containers outlive theirs; nil where not
	warm      *warmPool          // nil for none
	leaveWarm context.CancelFunc // of that
	imageGone atomic.Bool        // as a task has found out
}

// log returns the logger to use now.
func (p *prepared) log() *zap.Logger {
	if p.newest != nil {
		return p.newest()
	}
	return p.logger
}

// Prepare connects to the engine, removes the containers that an earlier
// process left behind, and builds or finds the image. With serve, it has a
// container of that image run until agent.Context has ended.
func (r *Runtime) Prepare(ctx context.Context, agent worker.Agent) (worker.Image, error) {
	e, err := newEngine(r.Host)
	if err != nil {
		return worker.Image{}, err
	}
	ref := r.Image
	if ref == "" {
		ref = "agentfm/" + strings.ToLower(agent.Key) + ":latest"
	}
	p, err := r.prepare(ctx, e, agent, ref)
	if err != nil {
		return worker.Image{}, err
	}
	if r.Serve != 0 {
		if err := r.prepareServer(ctx, agent, p); err != nil {
			return worker.Image{}, err
		}
	}
	if r.Warm > 0 {
		if err := r.joinWarm(agent, p); err != nil {
			return worker.Image{}, err
		}
	}
	if before := r.ready.Swap(p); before != nil && before.leaveWarm != nil {
		before.leaveWarm()
	}
	r.warnOfNetwork(p.logger)
	if agent.Go != nil {
		r.watched.Do(func() {
			agent.Go(func() {
				r.watch(agent)
				leaveHome(agent.PeerID)
			})
		})
	}
	return worker.Image{Ref: ref, Digest: p.spec.image}, nil
}

// prepare finds out what an agent's tasks run with: what the engine can do, and which image
// there is.
func (r *Runtime) prepare(ctx context.Context, e engine, agent worker.Agent, ref string) (*prepared, error) {
	program, err := r.wayIn(e)
	if err != nil {
		return nil, err
	}
	info, version, err := r.connect(ctx, e)
	if err != nil {
		return nil, err
	}
	seccomp, err := seccompFor(info)
	if err != nil {
		return nil, fmt.Errorf("making the seccomp profile: %w", err)
	}
	if err := sweep(ctx, e, agent.PeerID, r.logger); err != nil {
		return nil, err
	}
	mounts, err := resolveMounts(r.Mounts, e.DaemonHost(), info.DockerRootDir)
	if err != nil {
		return nil, err
	}
	img, err := r.findImage(ctx, e, ref, agent.Progress)
	if err != nil {
		return nil, err
	}
	s := r.specOf(agent, img, info, version)
	s.seccomp, s.mounts, s.program = seccomp, mounts, program
	if s.prompt, err = r.promptOf(img.Config.Labels); err != nil {
		return nil, err
	}
	if err := r.check(&s); err != nil {
		return nil, err
	}
	r.warn(e.DaemonHost(), info, version)
	if s.user != img.Config.User {
		r.logger.Info("the agent does not run as its image says", zap.String("image", ref), zap.String("user", s.user), zap.String("image_user", img.Config.User))
	}
	r.logger.Debug("the Docker engine has the image", zap.String("image", ref), zap.String("digest", img.ID),
		zap.String("engine_version", info.ServerVersion), zap.Bool("init", s.init))
	return &prepared{engine: e, spec: s, logger: r.logger.With(zap.String("agent", agent.Key))}, nil
}

// enters returns the option for which there must be a way into the container; empty for
// none.
func (r *Runtime) enters() string {
	switch {
	case r.Serve != 0:
		return "serve"
	case r.outlet.served():
		return "network " + r.outlet.mode
	}
	return ""
}

// specOf returns what the containers of an image on an engine have in common.
func (r *Runtime) specOf(agent worker.Agent, img image.InspectResponse, info system.Info, version types.Version) spec {
	return spec{
		agent:        agent,
		image:        img.ID,
		user:         r.userOf(img.Config.User),
		mapped:       mapped(info),
		podman:       isPodman(version),
		volumes:      img.Config.Volumes,
		stderrLogged: r.Stderr == stderrLog,
		grace:        time.Duration(r.Grace),
		init:         hasInit(info),
		runtime:      r.OCIRuntime,
		limits:       r.limits,
		ulimits:      r.ulimits,
		gpus:         r.devices,
		secrets:      r.secrets,
		env:          r.environ,
		network:      r.outlet,
		warm:         r.Warm > 0,
	}
}

// connect asks the engine about itself, and checks what every task would fail on.
func (r *Runtime) connect(ctx context.Context, e engine) (system.Info, types.Version, error) {
	limited, cancel := context.WithTimeoutCause(ctx, connectLimit, fmt.Errorf("no answer in %v", connectLimit))
	defer cancel()
	info, err := e.Info(limited)
	var version types.Version
	if err == nil {
		version, err = e.ServerVersion(limited)
	}
	switch {
	case limited.Err() != nil:
		err = context.Cause(limited)
		fallthrough
	case err != nil:
		err = fmt.Errorf("asking the Docker engine at %s: %w (is it running? set host, or DOCKER_HOST)", e.DaemonHost(), err)
	case info.NCPU > 0 && r.limits.cpus > float64(info.NCPU):
		err = fmt.Errorf("cpus is %v, but the Docker engine at %s has %d", r.limits.cpus, e.DaemonHost(), info.NCPU)
	default:
		err = r.checkRuntime(info, version, e.DaemonHost())
	}
	return info, version, err
}

// hasInit reports whether the engine can put an init in front of an agent, so
// that somebody collects its dead children. Some packages of Docker come
// without one, and then no container would start.
func hasInit(info system.Info) bool {
	return info.InitBinary != "" && info.InitCommit.ID != "N/A"
}

// mapped reports whether the users of containers are others on the host.
func mapped(info system.Info) bool {
	return slices.ContainsFunc(info.SecurityOptions, func(o string) bool {
		return strings.HasPrefix(o, "name=userns") || strings.HasPrefix(o, "name=rootless")
	})
}

// check checks what the containers of an agent are given.
func (r *Runtime) check(s *spec) error {
	if len(s.user) > 0 && isRoot(s.user) && !r.AllowRoot {
		return errRoot
	}
	for _, secret := range s.secrets {
		if _, err := secret.read(); err != nil {
			return fmt.Errorf("secret %s: %w", secret.name, err)
		}
	}
	return nil
}
