// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/volume"
)

// What the row L12 wants at night; otherwise it is logged.
const (
	leastRate = 3 // tasks in a second
	mostStart = 1500 * time.Millisecond
)

// Many tasks, 8 at a time: each gets its own answer and its own files, and nothing is
// left of them.
func TestL12Tasks(t *testing.T) {
	nightly := os.Getenv("AGENTFM_TEST_NIGHTLY") == "1"
	if !nightly {
		t.Parallel()
	}
	for _, tc := range []struct {
		name        string
		warm, tasks int
	}{
		{"fresh", 0, 40},
		{"warm", 8, 24},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if nightly {
				tc.tasks = 500
			}
			f := startWarm(t, "once", tc.warm, nil)
			if tc.warm > 0 {
				f.waiting(tc.warm)
			}
			volumes := f.volumes()
			began := time.Now()
			starts := f.many(tc.tasks, 8)
			rate := float64(tc.tasks) / time.Since(began).Seconds()
			slices.Sort(starts)
			p99 := quantile(starts, 0.99)
			t.Logf("%d tasks, %.1f a second, first byte: p50 %v, p99 %v", tc.tasks, rate, quantile(starts, 0.5), p99)
			if nightly && (rate < leastRate || p99 > mostStart) {
				t.Errorf("want %d a second and %v", leastRate, mostStart)
			}
			f.retire()
			f.beside.Wait()
			f.wantContainers(0)
			eventually(t, "no more volumes than before", func() bool { return f.volumes() <= volumes })
		})
	}
}

// many runs tasks, so many at a time, and returns how long each took to its first byte.
func (f *warmFixture) many(tasks, atOnce int) []time.Duration {
	var (
		mu     sync.Mutex
		starts []time.Duration
		work   sync.WaitGroup
		next   = make(chan int)
	)
	for range atOnce {
		work.Go(func() {
			for i := range next {
				prompt := fmt.Sprint("prompt-", i)
				task, out := f.task(prompt)
				task.ID = fmt.Sprint("task_", i)
				first := &firstWrite{to: out}
				task.Output = first
				began := time.Now()
				exit, err := f.Run(f.t.Context(), task)
				if err != nil || exit.Code != 0 || !strings.HasSuffix(out.String(), " "+prompt+" llama3.2 \n") {
					f.t.Errorf("task %d: %+v, %v, %q", i, exit, err, out)
				}
				if got, err := os.ReadFile(task.OutputDir + "/prompt"); err != nil || string(got) != prompt {
					f.t.Errorf("task %d left %q (%v)", i, got, err)
				}
				mu.Lock()
				starts = append(starts, first.at.Sub(began))
				mu.Unlock()
			}
		})
	}
	for i := range tasks {
		next <- i
	}
	close(next)
	work.Wait()
	return starts
}

// volumes returns how many volumes the engine has.
func (f *warmFixture) volumes() int {
	f.t.Helper()
	found, err := f.client().VolumeList(f.t.Context(), volume.ListOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return len(found.Volumes)
}
