// SPDX-License-Identifier: Apache-2.0

//go:build unix

package worker

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// smi returns a sampler with an nvidia-smi that counts its runs and goes on as the script
// says; and the file of the count, a byte for each.
func smi(t *testing.T, script string) (*sampler, string) {
	t.Helper()
	path, runs := filepath.Join(t.TempDir(), "nvidia-smi"), filepath.Join(t.TempDir(), "runs")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nprintf . >>'"+runs+"'\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return &sampler{smi: func() string { return path }}, runs
}

// count returns how often the nvidia-smi of a sampler ran.
func count(runs string) int {
	b, _ := os.ReadFile(runs)
	return len(b)
}

// measuring reports whether nvidia-smi runs.
func (s *sampler) measuring() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gpuRuns
}

// TestSampleDoesNotWait has an nvidia-smi that hangs: many samples are taken meanwhile,
// without the GPUs, and there is one run of it.
func TestSampleDoesNotWait(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	s, runs := smi(t, "while [ ! -e '"+gate+"' ]; do sleep 0.01; done; echo '1024, 4096'\n")
	var samples sync.WaitGroup
	for range 20 {
		samples.Go(func() {
			if l := s.sample(t.Context()); l.cores == 0 || l.ramFreeGB == 0 || l.hasGPU {
				t.Errorf("got %+v", l)
			}
		})
	}
	samples.Wait()
	if !s.measuring() {
		t.Error("the samples waited for nvidia-smi")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "nvidia-smi has ended", func() bool { return !s.measuring() })
	if l := s.sample(t.Context()); !l.hasGPU || l.gpuUsedGB != 1 || l.gpuTotalGB != 4 || l.gpuPercent != 25 {
		t.Errorf("got %+v", l)
	}
	await.Until(t, "nvidia-smi does not run", func() bool { return !s.measuring() })
	if n := count(runs); n > 2 { // the second where a second went by meanwhile
		t.Errorf("nvidia-smi ran %d times", n)
	}
}

// TestSampleEnds ends an nvidia-smi that hangs, also when a child of it holds its output.
func TestSampleEnds(t *testing.T) {
	s, runs := smi(t, "sleep 10 & exec sleep 1000\n")
	ctx, cancel := context.WithCancel(t.Context())
	s.sample(ctx)
	await.Until(t, "nvidia-smi runs", func() bool { return count(runs) == 1 })
	cancel()
	await.Until(t, "the measurement has ended", func() bool { return !s.measuring() })
	if time.Since(s.gpuTaken) > time.Minute {
		t.Error("its time is not that of its end")
	}
}
