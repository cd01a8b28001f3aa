// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// BenchmarkSubmit submits tasks from 64 clients that nobody runs.
func BenchmarkSubmit(b *testing.B) {
	benchmarkSubmit(b, func(ctx context.Context, _ Job) (Attempt, error) { <-ctx.Done(); return nil, ctx.Err() })
}

// BenchmarkLife submits tasks that end at once.
func BenchmarkLife(b *testing.B) { benchmarkSubmit(b, says("done", nil)) }

func benchmarkSubmit(b *testing.B, run func(context.Context, Job) (Attempt, error)) {
	p, err := New(Options{Dir: b.TempDir(), InFlight: MaxInFlight, Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	p.Register("site", &fakeRunner{run: run})
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	defer p.Cleanup()
	prompt := strings.Repeat("x", 2<<10)
	var mu sync.Mutex
	var took []time.Duration
	work := make(chan struct{})
	var clients sync.WaitGroup
	b.ResetTimer()
	for range 64 {
		clients.Go(func() {
			for range work {
				begun := time.Now()
				for {
					_, err := p.Submit(context.Background(), Submission{Owner: "ann", Site: "site", Prompt: prompt})
					if err == nil {
						break
					}
					time.Sleep(time.Millisecond)
				}
				mu.Lock()
				took = append(took, time.Since(begun))
				mu.Unlock()
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	clients.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "tasks/s")
	b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
}
