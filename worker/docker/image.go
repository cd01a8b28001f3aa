// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Values of Runtime.Pull.
const (
	pullNever   = "never"
	pullMissing = "missing"
	pullAlways  = "always"
)

const (
	// pullProgress is how often the log tells how far a pull is.
	pullProgress = 10 * time.Second
	// pullSilence and buildSilence are how long an engine that pulls or builds may say
	// nothing; a step of a build may have nothing to say for long.
	pullSilence  = 5 * time.Minute
	buildSilence = 30 * time.Minute
)

// teller is told what is done to an image, and how far that is, in percent; see
// [worker.Agent].
type teller func(what string, percent float64)

// tell tells a teller, where there is one.
func (t teller) tell(what string, percent float64) {
	if t != nil {
		t(what, percent)
	}
}

// listened returns a context that ends when an engine has said nothing for that long, and
// what to call when it has said something.
func listened(ctx context.Context, limit time.Duration) (context.Context, func(), context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	silence := time.AfterFunc(limit, func() { cancel(fmt.Errorf("the engine has said nothing for %v", limit)) })
	context.AfterFunc(ctx, func() { silence.Stop() })
	return ctx, func() { silence.Reset(limit) }, cancel
}

// unavailable and mismatch say why an agent has no image.
func unavailable(err error) error {
	return &worker.Failure{Cause: wire.CauseImageUnavailable, Err: err}
}
func mismatch(err error) error { return &worker.Failure{Cause: wire.CauseDigestMismatch, Err: err} }

// findImage builds or pulls the image if that is to be, and returns it.
func (r *Runtime) findImage(ctx context.Context, e engine, ref string, to teller) (image.InspectResponse, error) {
	wanted := ref
	if r.Build != "" {
		id, err := r.build(ctx, e, ref, to)
		if err != nil {
			return image.InspectResponse{}, unavailable(fmt.Errorf("building image %q from %s: %w", ref, r.Build, err))
		}
		if id != "" {
			wanted = id // the tag may belong to somebody else by now
		}
	}
	img, err := r.inspect(ctx, e, wanted)
	if r.Pull == pullAlways || r.Pull == pullMissing && cerrdefs.IsNotFound(err) {
		if err := r.pull(ctx, e, ref, to); err != nil {
			return img, unavailable(fmt.Errorf("pulling image %q: %w", ref, err))
		}
		img, err = r.inspect(ctx, e, wanted)
	}
	switch {
	case cerrdefs.IsNotFound(err):
		return img, unavailable(fmt.Errorf("image %q is not on the Docker engine at %s: docker pull or build it there, or set build, or pull missing", ref, e.DaemonHost()))
	case err != nil:
		return img, fmt.Errorf("inspecting image %q: %w", ref, err)
	}
	return img, r.checkImage(img, ref)
}

// inspect returns an image. One that is named with a digest may have been built on the
// engine: then the digest is its id, by which the engine does not find it under a name.
func (r *Runtime) inspect(ctx context.Context, e engine, ref string) (image.InspectResponse, error) {
	img, err := e.ImageInspect(ctx, ref)
	if name, _, digested := strings.Cut(ref, "@"); digested && cerrdefs.IsNotFound(err) {
		return e.ImageInspect(ctx, name)
	}
	return img, err
}

// checkImage checks that an image is the one that is meant, and can be an agent.
func (r *Runtime) checkImage(img image.InspectResponse, ref string) error {
	_, digest, digested := strings.Cut(ref, "@")
	got := ocispec.Platform{OS: img.Os, Architecture: img.Architecture, Variant: img.Variant}
	switch {
	case digested && img.ID != digest && !slices.ContainsFunc(img.RepoDigests, func(d string) bool { return strings.HasSuffix(d, "@"+digest) }):
		return mismatch(fmt.Errorf("image %q: what the engine has by that name is %s %v", ref, img.ID, img.RepoDigests))
	case img.Config == nil:
		return fmt.Errorf("image %q has no configuration", ref)
	case below(img.Config.Volumes, outputDir) != "":
		return fmt.Errorf("image %q declares the volume %s, whose files would be lost: take it out of the Dockerfile", ref, below(img.Config.Volumes, outputDir))
	case r.platform != nil && !fits(got, *r.platform):
		return unavailable(fmt.Errorf("image %q is for %s/%s, not for platform %s", ref, got.OS, got.Architecture, r.Platform))
	}
	switch prompt, err := r.promptOf(img.Config.Labels); {
	case err != nil:
		return fmt.Errorf("image %q: %w", ref, err)
	case prompt == promptArgument && len(img.Config.Entrypoint) == 0:
		// The engine would run the prompt as a command.
		return fmt.Errorf("image %q has no ENTRYPOINT to give the prompt to: add one, or set prompt stdin", ref)
	}
	return nil
}

// below returns a volume that is below a folder, or nothing.
func below(volumes map[string]struct{}, dir string) string {
	for v := range volumes {
		if strings.HasPrefix(path.Clean(v), dir+"/") {
			return v
		}
	}
	return ""
}

// labelPrompt is the label by which an image says how its agent gets the prompt.
const labelPrompt = "agentfm.prompt"

// promptOf returns how an agent gets its prompt, whose image has the labels; nothing
// for a server.
func (r *Runtime) promptOf(labels map[string]string) (string, error) {
	label, labelled := labels[labelPrompt]
	switch {
	case r.Serve != 0, r.Prompt != "":
		return r.Prompt, nil
	case !labelled:
		return promptArgument, nil
	case !slices.Contains(prompts, label):
		return "", fmt.Errorf("its label %s is %q, not %s", labelPrompt, label, strings.Join(prompts, ", "))
	}
	return label, nil
}

// parsePlatform reads a platform such as linux/arm64/v8.
func parsePlatform(s string) (*ocispec.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return nil, fmt.Errorf("platform is %q, not as linux/amd64 or linux/arm64/v8", s)
	}
	p := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// fits reports whether an image is for a platform.
func fits(got, want ocispec.Platform) bool {
	return got.OS == want.OS && got.Architecture == want.Architecture && (want.Variant == "" || got.Variant == want.Variant)
}

// pull has the engine pull an image, and logs how far it is.
func (r *Runtime) pull(ctx context.Context, e engine, ref string, to teller) error {
	start := time.Now()
	r.logger.Info("pulling image", zap.String("image", ref))
	to.tell("pulling image", 0)
	ctx, said, cancel := listened(ctx, pullSilence)
	defer cancel(nil)
	auth, err := registryAuth(ref)
	if err != nil {
		return fmt.Errorf("looking for credentials: %w", err)
	}
	answer, err := e.ImagePull(ctx, ref, image.PullOptions{Platform: r.Platform, RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer answer.Close()
	layers := make(map[string]layer)
	told := start
	for dec := json.NewDecoder(answer); ; {
		var m struct {
			ID          string `json:"id"`
			Status      string `json:"status"`
			Progress    layer  `json:"progressDetail"`
			ErrorDetail *struct {
				Message string `json:"message"`
			} `json:"errorDetail"`
		}
		err := dec.Decode(&m)
		said()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			r.logger.Info("image is pulled", zap.String("image", ref), zap.Duration("duration", time.Since(start)))
			return nil
		case err != nil:
			return fmt.Errorf("reading the engine's answer: %w", err)
		case m.ErrorDetail != nil:
			return errors.New(m.ErrorDetail.Message)
		}
		if l, ok := layers[m.ID].next(m.Status, m.Progress); ok {
			layers[m.ID] = l
			to.tell("pulling image", pulled(layers))
		}
		if time.Since(told) >= pullProgress {
			told = time.Now()
			done, total := sum(layers)
			r.logger.Info("pulling image", zap.String("image", ref), zap.String("have", units.BytesSize(float64(done))), zap.String("of", units.BytesSize(float64(total))))
		}
	}
}

// layer is how far the pull of a part of an image is, in bytes.
type layer struct {
	Current int64 `json:"current"`
	Total   int64 `json:"total"`
	unpacks bool  // it is there, and Current is how much of it is unpacked
}

// next takes in what an engine says of a layer, and reports whether that is news.
func (l layer) next(status string, now layer) (layer, bool) {
	switch {
	case status == "Download complete":
		l.Current, l.unpacks = 0, true
	case status == "Pull complete":
		l.Current, l.unpacks = l.Total, true
	case now.Total > 0:
		now.unpacks = status == "Extracting"
		l = now
	default:
		return l, false
	}
	return l, l.Total > 0
}

// pulled returns how many percent of the layers are loaded and unpacked, each of which is
// half of it.
func pulled(layers map[string]layer) float64 {
	var done, total int64
	for _, l := range layers {
		if done, total = done+l.Current, total+2*l.Total; l.unpacks {
			done += l.Total
		}
	}
	return share(done, total)
}

// share returns how many percent are done.
func share(done, total int64) float64 {
	if total <= 0 {
		return 0
	}
	return float64(min(max(done, 0), total) * 100 / total)
}

func sum(layers map[string]layer) (done, total int64) {
	for _, l := range layers {
		done, total = done+l.Current, total+l.Total
	}
	return done, total
}
