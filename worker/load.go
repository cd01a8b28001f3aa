// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bytes"
	"context"
	"encoding/csv"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/mem"
)

// load is the load of this machine.
type load struct {
	cores      int
	cpuPercent float64
	ramFreeGB  float64
	hasGPU     bool
	gpuUsedGB  float64
	gpuTotalGB float64
	gpuPercent float64 // of GPU memory
}

const (
	// sampleAge is how old a sample of the load may be before another is taken.
	sampleAge = time.Second
	// gpuTimeout bounds a run of nvidia-smi.
	gpuTimeout = 3 * time.Second
	gigabyte   = 1 << 30
)

// sampler measures the load of the machine for all agents of the process.
type sampler struct {
	smi func() string // the path of nvidia-smi, or empty

	mu       sync.Mutex
	last     load
	taken    time.Time // when that was, but for the GPUs
	gpuTaken time.Time // when the last run of nvidia-smi ended
	gpuRuns  bool      // one runs now
}

// machine is the one sampler: CPU use is a difference between two looks, and
// agents that look for themselves would shorten each other's.
var machine = sampler{smi: sync.OnceValue(func() string {
	path, _ := exec.LookPath("nvidia-smi")
	return path
})}

// sample returns the load of the machine. What cannot be measured keeps its last value.
// It does not wait for the GPUs, which tasks would wait for with it: they are measured
// beside it, for later samples. That ends with ctx.
func (s *sampler) sample(ctx context.Context) load {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.taken) >= sampleAge {
		s.measure(ctx)
		s.taken = time.Now()
	}
	if !s.gpuRuns && time.Since(s.gpuTaken) >= sampleAge && s.smi() != "" {
		s.gpuRuns = true
		go s.measureGPUs(ctx)
	}
	return s.last
}

// measure measures what the system tells at once.
func (s *sampler) measure(ctx context.Context) {
	s.last.cores = runtime.NumCPU()
	if p, err := cpu.PercentWithContext(ctx, 0, false); err == nil && len(p) == 1 {
		s.last.cpuPercent = min(max(p[0], 0), 100)
	}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		s.last.ramFreeGB = float64(m.Available) / gigabyte
	}
}

// measureGPUs adds up the memory of all NVIDIA GPUs.
func (s *sampler) measureGPUs(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, gpuTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.smi(), "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	used, total, ok := parseGPUs(out)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gpuRuns, s.gpuTaken = false, time.Now()
	if err == nil && ok {
		s.last.hasGPU, s.last.gpuUsedGB, s.last.gpuTotalGB, s.last.gpuPercent = true, used, total, 100*used/total
	}
}

// parseGPUs reads lines of "used, total" in MiB and returns the sums in GiB.
func parseGPUs(out []byte) (used, total float64, ok bool) {
	rows, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil {
		return 0, 0, false
	}
	for _, row := range rows {
		if len(row) != 2 {
			return 0, 0, false
		}
		u, err1 := strconv.ParseFloat(strings.TrimSpace(row[0]), 64)
		t, err2 := strconv.ParseFloat(strings.TrimSpace(row[1]), 64)
		if err1 != nil || err2 != nil || u < 0 || t <= 0 || u > t {
			return 0, 0, false
		}
		used, total = used+u/1024, total+t/1024
	}
	return used, total, total > 0
}
