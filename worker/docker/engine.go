// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// engine is what this package needs of the Docker Engine API.
type engine interface {
	DaemonHost() string
	Ping(ctx context.Context) (types.Ping, error)
	Info(ctx context.Context) (system.Info, error)
	ServerVersion(ctx context.Context) (types.Version, error)
	ImageBuild(ctx context.Context, buildContext io.Reader, options build.ImageBuildOptions) (build.ImageBuildResponse, error)
	ImagePull(ctx context.Context, ref string, options image.PullOptions) (io.ReadCloser, error)
	ImageInspect(ctx context.Context, ref string, options ...client.ImageInspectOption) (image.InspectResponse, error)
	ContainerList(ctx context.Context, options container.ListOptions) ([]container.Summary, error)
	ContainerCreate(ctx context.Context, config *container.Config, hostConfig *container.HostConfig,
		networking *network.NetworkingConfig, platform *ocispec.Platform, name string) (container.CreateResponse, error)
	ContainerAttach(ctx context.Context, id string, options container.AttachOptions) (types.HijackedResponse, error)
	ContainerWait(ctx context.Context, id string, condition container.WaitCondition) (<-chan container.WaitResponse, <-chan error)
	ContainerStart(ctx context.Context, id string, options container.StartOptions) error
	ContainerStop(ctx context.Context, id string, options container.StopOptions) error
	ContainerInspect(ctx context.Context, id string) (container.InspectResponse, error)
	ContainerRemove(ctx context.Context, id string, options container.RemoveOptions) error
}

// newEngine returns a client of the engine at host, or of the one that the
// environment names where host is empty. It opens no connection, and keeps none
// open between calls: a runtime has no moment to close them, since it lives as
// long as its tasks, and to dial a socket costs next to nothing.
func newEngine(host string) (engine, error) {
	options := []client.Opt{client.FromEnv}
	if host != "" {
		options = []client.Opt{client.WithHost(host)}
		if strings.HasPrefix(host, "tcp:") {
			options = []client.Opt{client.WithTLSClientConfigFromEnv(), client.WithHost(host)}
		}
	}
	c, err := client.NewClientWithOpts(append(options, client.WithAPIVersionNegotiation(), noKeepAlive)...)
	if err != nil {
		return nil, fmt.Errorf("reading address of the Docker engine: %w", err)
	}
	return c, nil
}

// noKeepAlive is a client option that closes each connection after its request.
func noKeepAlive(c *client.Client) error {
	if t, ok := c.HTTPClient().Transport.(*http.Transport); ok {
		t.DisableKeepAlives = true
	}
	return nil
}

// Interface guards
var _ engine = (*client.Client)(nil)
