// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/system"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// connectLimit is how long the engine may take to say who it is.
const connectLimit = 10 * time.Second

// prepared is an agent whose image is there: what its tasks run with.
type prepared struct {
	engine engine
	spec   spec
	logger *zap.Logger
}

// Prepare connects to the engine, removes the containers that an earlier
// process left behind, and builds or finds the image. With serve, it has a
// container of that image run until agent.Context has ended.
func (r *Runtime) Prepare(ctx context.Context, agent worker.Agent) (worker.Image, error) {
	e, err := newEngine(r.Host)
	if err != nil {
		return worker.Image{}, err
	}
	if option := r.enters(); option != "" {
		if err := mayEnterContainers(e, option); err != nil {
			return worker.Image{}, err
		}
	}
	r.outlet.warn(r.logger)
	info, err := r.connect(ctx, e)
	if err != nil {
		return worker.Image{}, err
	}
	if err := sweep(ctx, e, agent.PeerID, r.logger); err != nil {
		return worker.Image{}, err
	}
	ref := r.Image
	if ref == "" {
		ref = "agentfm/" + strings.ToLower(agent.Key) + ":latest"
	}
	img, err := r.findImage(ctx, e, ref)
	if err != nil {
		return worker.Image{}, err
	}
	s := spec{
		agent:   agent,
		image:   img.ID,
		volumes: img.Config.Volumes,
		stdin:   r.Prompt == promptStdin,
		init:    hasInit(info),
		limits:  r.limits,
		env:     r.environ,
		network: r.outlet,
	}
	p := &prepared{engine: e, spec: s, logger: r.logger.With(zap.String("agent", agent.Key))}
	if r.Serve != 0 {
		if err := r.prepareServer(ctx, agent, p); err != nil {
			return worker.Image{}, err
		}
	}
	r.ready.Store(p)
	r.logger.Debug("docker runtime is ready", zap.String("image", ref), zap.String("digest", img.ID),
		zap.String("engine_version", info.ServerVersion), zap.Bool("init", s.init))
	return worker.Image{Ref: ref, Digest: img.ID}, nil
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

// connect asks the engine about itself, and checks what every task would fail on.
func (r *Runtime) connect(ctx context.Context, e engine) (system.Info, error) {
	limited, cancel := context.WithTimeoutCause(ctx, connectLimit, fmt.Errorf("no answer in %v", connectLimit))
	defer cancel()
	info, err := e.Info(limited)
	if err != nil {
		if limited.Err() != nil {
			err = context.Cause(limited)
		}
		return info, fmt.Errorf("asking the Docker engine at %s: %w (is it running? set host, or DOCKER_HOST)", e.DaemonHost(), err)
	}
	if info.NCPU > 0 && r.limits.cpus > float64(info.NCPU) {
		return info, fmt.Errorf("cpus is %v, but the Docker engine at %s has %d", r.limits.cpus, e.DaemonHost(), info.NCPU)
	}
	return info, nil
}

// hasInit reports whether the engine can put an init in front of an agent, so
// that somebody collects its dead children. Some packages of Docker come
// without one, and then no container would start.
func hasInit(info system.Info) bool {
	return info.InitBinary != "" && info.InitCommit.ID != "N/A"
}

// findImage builds the image if it is to be built, and returns it.
func (r *Runtime) findImage(ctx context.Context, e engine, ref string) (image.InspectResponse, error) {
	wanted := ref
	if r.Build != "" {
		id, err := r.build(ctx, e, ref)
		if err != nil {
			return image.InspectResponse{}, fmt.Errorf("building image %q from %s: %w", ref, r.Build, err)
		}
		if id != "" {
			wanted = id // the tag may belong to somebody else by now
		}
	}
	img, err := e.ImageInspect(ctx, wanted)
	switch {
	case cerrdefs.IsNotFound(err):
		return img, fmt.Errorf("image %q is not on the Docker engine at %s: docker pull or build it there, or set build", ref, e.DaemonHost())
	case err != nil:
		return img, fmt.Errorf("inspecting image %q: %w", ref, err)
	case img.Config == nil:
		return img, fmt.Errorf("image %q has no configuration", ref)
	case r.Prompt == promptArgument && len(img.Config.Entrypoint) == 0:
		// The engine would run the prompt as a command.
		return img, fmt.Errorf("image %q has no ENTRYPOINT to give the prompt to: add one, or set prompt stdin", ref)
	}
	return img, nil
}
