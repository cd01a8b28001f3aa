// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// sample is what one side did in one round. CPU times are microseconds for each
// request, or for each chunk.
type sample struct {
	Gateway float64 `json:"gateway_cpu_us,omitempty"` // of the first process on the way
	All     float64 `json:"all_cpu_us,omitempty"`     // of all but the mock
	Mock    float64 `json:"mock_cpu_us,omitempty"`
	Rate    float64 `json:"per_second,omitempty"`
	P50     float64 `json:"p50_us,omitempty"` // of latency; of the time to the first chunk
	P99     float64 `json:"p99_us,omitempty"`
	Gap99   float64 `json:"gap_p99_us,omitempty"` // between chunks
	Error   string  `json:"error,omitempty"`
}

// measured runs f, which returns how many units it did in what time.
func (l *lab) measured(s *side, f func() (int64, time.Duration, error)) sample {
	before := make([]time.Duration, len(s.procs))
	for i, p := range s.procs {
		before[i] = p.cpu()
	}
	n, took, err := f()
	if err == nil && n == 0 {
		err = errors.New("nothing was answered")
	}
	if err != nil {
		return sample{Error: err.Error()}
	}
	out := sample{Rate: float64(n) / took.Seconds()}
	for i, p := range s.procs {
		us := float64(p.cpu()-before[i]) / 1e3 / float64(n)
		if p == l.mock {
			out.Mock = us
			continue
		}
		out.All += us
		if i == 0 {
			out.Gateway = us
		}
	}
	return out
}

// tries is how often a side is measured in a round before its errors void the round.
const tries = 3

// interleave measures each side in turn, round by round. An error voids what the side
// did, which is measured again; as many as there are tries void the round, for all.
func (l *lab) interleave(ctx context.Context, t *table, sides []*side, f func(*side) sample) error {
	for round := 1; len(t.Rounds) < l.o.rounds; round++ {
		row := make(map[string]sample)
		var bad error
		for _, s := range sides {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			for try := range tries {
				row[s.name] = f(s)
				e := row[s.name].Error
				if e == "" {
					break
				}
				err := fmt.Errorf("%s, round %d, %s: %s", t.Name, round, s.name, e)
				fmt.Fprintln(os.Stderr, "void:", err)
				t.Void = append(t.Void, map[string]sample{s.name: row[s.name]})
				if try == tries-1 {
					bad = err
				}
			}
		}
		if bad == nil {
			t.Rounds = append(t.Rounds, row)
			continue
		}
		if round > 2*l.o.rounds {
			return bad
		}
	}
	return nil
}

// warmUp has each side work for a while.
func (l *lab) warmUp(ctx context.Context, name string, sides []*side, f func(*side, time.Duration) error) error {
	for _, s := range sides {
		if err := ctx.Err(); err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- l.profile(s, name) }()
		if err := f(s, max(l.o.warm, time.Millisecond)); err != nil {
			fmt.Fprintf(os.Stderr, "while warming up %s: %v\n", s.name, err)
		}
		if err := <-done; err != nil {
			return fmt.Errorf("profile of %s: %w", s.name, err)
		}
	}
	return nil
}

// profileKinds are the profiles that are taken, at one time.
var profileKinds = []string{"profile", "allocs", "block", "mutex"}

// profile takes profiles of our processes while they warm up, if they are wanted.
func (l *lab) profile(s *side, name string) error {
	if l.o.profile == "" {
		return nil
	}
	for i, port := range s.admin {
		errs := make(chan error, len(profileKinds))
		for _, kind := range profileKinds {
			url := fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/%s?seconds=%d", port, kind, max(1, int(l.o.warm.Seconds()/2)-1))
			go func() { errs <- fetch(url, filepath.Join(l.o.profile, s.procs[i].name+"-"+name+"."+kind)) }()
		}
		var err error
		for range profileKinds {
			err = errors.Join(err, <-errs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fetch saves what is at a URL.
func fetch(url, path string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}

// calls is B1 and B2: requests as fast as n connections can send them.
func (l *lab) calls(ctx context.Context, rep *report, n int) error {
	name := fmt.Sprintf("c%d", n)
	err := l.warmUp(ctx, name, l.sides, func(s *side, d time.Duration) error {
		_, _, err := closedLoop(ctx, s, n, d)
		return err
	})
	if err != nil {
		return err
	}
	t := rep.table(name, fmt.Sprintf("B1, B2: /v1/chat/completions, %d connections, closed loop", n), l, l.sides)
	return l.interleave(ctx, t, l.sides, func(s *side) sample {
		return l.measured(s, func() (int64, time.Duration, error) { return closedLoop(ctx, s, n, l.o.round) })
	})
}

// latency is B3: requests at a quarter of the capacity of the slower one of ours and
// reverse_proxy.
func (l *lab) latency(ctx context.Context, rep *report) error {
	c32 := rep.named("c32")
	rate := min(medianOf(c32.values(ours, rateOf)), medianOf(c32.values(caddy, rateOf))) / 4
	t := rep.table("latency", fmt.Sprintf("B3: latency, open loop, %.0f requests a second; of slow peers as many as they can at a quarter", rate), l, l.sides)
	return l.interleave(ctx, t, l.sides, func(s *side) sample {
		rate := rate
		if s.slow {
			rate = min(rate, medianOf(c32.values(s.name, rateOf))/4)
		}
		var took []time.Duration
		out := l.measured(s, func() (int64, time.Duration, error) {
			var err error
			begun := time.Now()
			took, err = openLoop(ctx, s, rate, l.o.round)
			return int64(len(took)), time.Since(begun), err
		})
		out.P50, out.P99 = quantile(took, 0.5), quantile(took, 0.99)
		return out
	})
}

// streamsAtOnce is how many streamed answers B4 has at one time.
const streamsAtOnce = 64

// streams is B4: streamed answers.
func (l *lab) streams(ctx context.Context, rep *report, pace time.Duration) error {
	name := fmt.Sprintf("sse%dms", pace.Milliseconds())
	fast := slices.DeleteFunc(slices.Clone(l.sides), func(s *side) bool { return s.slow })
	err := l.warmUp(ctx, name, fast, func(s *side, d time.Duration) error {
		for begun := time.Now(); time.Since(begun) < d; {
			if _, _, err := stream(ctx, s, streamsAtOnce, pace); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	t := rep.table(name, fmt.Sprintf("B4: %d streams of %d chunks, one every %s", streamsAtOnce, chunks, pace), l, fast)
	return l.interleave(ctx, t, fast, func(s *side) sample {
		var first, gaps []time.Duration
		out := l.measured(s, func() (int64, time.Duration, error) {
			var err error
			begun := time.Now()
			first, gaps, err = stream(ctx, s, streamsAtOnce, pace)
			return streamsAtOnce * chunks, time.Since(begun), err
		})
		out.P50, out.P99, out.Gap99 = quantile(first, 0.5), quantile(first, 0.99), quantile(gaps, 0.99)
		return out
	})
}

// quantile returns the q-quantile in microseconds.
func quantile(list []time.Duration, q float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return float64(list[min(int(q*float64(len(list))), len(list)-1)]) / 1e3
}
