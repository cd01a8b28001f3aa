// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"go.uber.org/zap"
)

// Removing a container has a time limit of its own, since the task's context
// has often ended, and is tried again until then.
const (
	removeLimit = 30 * time.Second
	removeRetry = time.Second
)

// live holds the containers of this process that run or have yet to be cleaned up.
// It is global because a reload prepares the same agent with a new Runtime,
// which must not take the old one's containers for leftovers.
var live = liveContainers{keys: make(map[liveKey]struct{})}

// liveKey identifies a container: id is that of its task, or its own when it
// serves or was started ahead.
type liveKey struct{ peerID, id string }

type liveContainers struct {
	mu   sync.Mutex
	keys map[liveKey]struct{}
}

func (l *liveContainers) add(k liveKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys[k] = struct{}{}
}

func (l *liveContainers) remove(k liveKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.keys, k)
}

func (l *liveContainers) has(k liveKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.keys[k]
	return ok
}

// sweep removes the containers of an agent that nothing in this process uses.
// One that cannot be removed is logged: it should not keep the agent from working.
func sweep(ctx context.Context, e engine, peerID string, logger *zap.Logger) error {
	found, err := containers(ctx, e, labelAgent+"="+peerID)
	if err != nil {
		return fmt.Errorf("listing containers of agent %s: %w", peerID, err)
	}
	for _, c := range found {
		// Its key is live before a container is there, so what is
		// listed here and not live belongs to nobody.
		ids := idsOf(c.Labels)
		if slices.ContainsFunc(ids, func(id string) bool { return live.has(liveKey{peerID, id}) }) {
			continue
		}
		field := zap.String("container", c.ID)
		if err := removeContainer(ctx, e, c.ID); err != nil {
			logger.Warn("removing leftover container", field, zap.Error(err))
			continue
		}
		logger.Info("removed leftover container", field, zap.Strings("task", ids))
	}
	if err := sweepFiles(peerID); err != nil {
		logger.Warn("removing leftover files of containers", zap.Error(err))
	}
	return nil
}

// idsOf returns the ids by which a container can be live. There may be more than one: it
// has the labels of its image, too, which may come from `docker commit` of another.
func idsOf(labels map[string]string) []string {
	var ids []string
	for _, label := range []string{labelTask, labelServe, labelWarm, labelSidecar} {
		if id := labels[label]; id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// containers lists the containers with all of the labels, stopped ones too.
func containers(ctx context.Context, e engine, labels ...string) ([]container.Summary, error) {
	args := filters.NewArgs()
	for _, label := range labels {
		args.Add("label", label)
	}
	return e.ContainerList(ctx, container.ListOptions{All: true, Filters: args})
}

// removeContainer kills a container, removes it with its volumes, and returns
// when it is gone.
func removeContainer(ctx context.Context, e engine, id string) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	for {
		err := e.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		if err == nil || cerrdefs.IsNotFound(err) {
			return nil
		}
		select {
		case <-time.After(removeRetry):
		case <-ctx.Done():
			return err
		}
	}
}
