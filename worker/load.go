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
	cores       int
	cpuPercent  float64
	ramFreeGB   float64
	hasGPU      bool
	gpuUsedGB   float64
	gpuTotalGB  float64
	gpuPercent  float64 // of GPU memory
	lastSampled time.Time
}

const (
	// sampleAge is how old a sample of the load may be.
	sampleAge = time.Second
	// gpuTimeout bounds a run of nvidia-smi.
	gpuTimeout = 3 * time.Second
	gigabyte   = 1 << 30
)

// sampler measures the load of the machine for all agents of the process.
type sampler struct {
	mu   sync.Mutex
	last load
}

// machine is the one sampler: CPU use is a difference between two looks, and
// agents that look for themselves would shorten each other's.
var machine sampler

// sample returns the load of the machine, not older than sampleAge. What cannot
// be measured keeps its last value.
func (s *sampler) sample(ctx context.Context) load {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last.lastSampled) < sampleAge {
		return s.last
	}
	l := s.last
	l.cores, l.lastSampled = runtime.NumCPU(), time.Now()
	if p, err := cpu.PercentWithContext(ctx, 0, false); err == nil && len(p) == 1 {
		l.cpuPercent = min(max(p[0], 0), 100)
	}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		l.ramFreeGB = float64(m.Available) / gigabyte
	}
	if smi := nvidiaSMI(); smi != "" {
		l.gpu(ctx, smi)
	}
	s.last = l
	return l
}

// nvidiaSMI is the path of nvidia-smi, or empty.
var nvidiaSMI = sync.OnceValue(func() string {
	path, _ := exec.LookPath("nvidia-smi")
	return path
})

// gpu adds up the memory of all NVIDIA GPUs.
func (l *load) gpu(ctx context.Context, smi string) {
	ctx, cancel := context.WithTimeout(ctx, gpuTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, smi, "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits").Output()
	if err != nil {
		return
	}
	used, total, ok := parseGPUs(out)
	if !ok {
		return
	}
	l.hasGPU, l.gpuUsedGB, l.gpuTotalGB = true, used, total
	l.gpuPercent = 100 * used / total
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
