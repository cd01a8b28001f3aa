// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// resident returns what a process has of memory that is its own, in kB.
func (p *process) resident() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("%s: its status has no RssAnon", p.name)
}

// usage is what a process of Go has of memory, in kB.
type usage struct {
	resident float64 // from the system, with what the runtime has not given back yet
	live     float64 // what is in use: heap and stacks
}

// settled is the least that a process has of memory in a while in which its garbage is
// collected.
func (l *lab) settled(ctx context.Context, p *process, admin int) (least usage, err error) {
	looks := 6
	if l.o.form == smoke {
		looks = 1
	}
	for range looks {
		live, err := inUse(admin)
		if err != nil {
			return least, err
		}
		select {
		case <-ctx.Done():
			return least, ctx.Err()
		case <-time.After(time.Second):
		}
		n, err := p.resident()
		if err != nil {
			return least, err
		}
		if least.resident == 0 || n < least.resident {
			least.resident = n
		}
		if least.live == 0 || live < least.live {
			least.live = live
		}
	}
	return least, nil
}

// inUse returns what heap and stacks of a process take after a collection, in kB.
func inUse(admin int) (kB float64, err error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/heap?gc=1&debug=1", admin))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		if name == "# HeapAlloc" || strings.HasPrefix(name, "# Stack") {
			n, _, _ := strings.Cut(value, " / ")
			x, bad := strconv.ParseFloat(n, 64)
			if bad != nil {
				return 0, fmt.Errorf("a profile has %q: %w", line, bad)
			}
			kB += x / 1024
		}
	}
	return kB, err
}

// memory is B11: what a gateway takes idle, beside a bare Caddy, and for each worker.
func (l *lab) memory(ctx context.Context, rep *report) error {
	defer l.stopSides()
	g, err := l.gateway(ctx, "b11", l.o.binary)
	if err != nil {
		return err
	}
	idle, err := l.settled(ctx, g.process, g.admin)
	if err != nil {
		return err
	}
	bare, err := l.bareCaddy(ctx)
	if err != nil {
		return err
	}
	if _, err := l.worker("b11-few", l.o.binary, 0, g.addr, l.sides[0].port, l.o.few, 1); err != nil {
		return err
	}
	if err := g.awaitWorkers(ctx, l.o.few); err != nil {
		return err
	}
	few, err := l.settled(ctx, g.process, g.admin)
	if err != nil {
		return err
	}
	if _, err := l.worker("b11-many", l.o.binary, 0, g.addr, l.sides[0].port, l.o.many, 1); err != nil {
		return err
	}
	if err := g.awaitWorkers(ctx, l.o.few+l.o.many); err != nil {
		return err
	}
	many, err := l.settled(ctx, g.process, g.admin)
	if err != nil {
		return err
	}
	if l.o.profile != "" {
		if err := fetch(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/heap", g.admin), filepath.Join(l.o.profile, "gateway.heap")); err != nil {
			return err
		}
	}
	rep.add(finding{Bench: "B11", Text: fmt.Sprintf("memory of the gateway for each of %d workers", l.o.many), Unit: " kB", Limit: 45,
		Values: []float64{(many.resident - few.resident) / float64(l.o.many)}})
	rep.add(finding{Bench: "B11", Text: "heap and stacks of it", Unit: " kB", Limit: 45, Values: []float64{(many.live - few.live) / float64(l.o.many)}})
	rep.add(finding{Bench: "B11", Text: "memory of an idle gateway", To: "a bare Caddy", Limit: 1.25, Values: []float64{idle.resident / bare.resident}})
	return nil
}

// bareCaddy returns what a Caddy takes that answers by itself, in kB.
func (l *lab) bareCaddy(ctx context.Context) (usage, error) {
	ports, err := freePorts(2)
	if err != nil {
		return usage{}, err
	}
	path, err := l.config("bare.Caddyfile", fmt.Sprintf("{\n\tadmin 127.0.0.1:%d\n\tauto_https off\n}\nhttp://127.0.0.1:%d {\n\trespond hello\n}\n", ports[0], ports[1]))
	if err != nil {
		return usage{}, err
	}
	p, err := l.start("bare", l.o.binary, "run", "--config", path)
	if err != nil {
		return usage{}, err
	}
	defer p.stop()
	up := func(status int, _ string) bool { return status == http.StatusOK }
	if err := await(ctx, p, fmt.Sprintf("http://127.0.0.1:%d/", ports[1]), "", up); err != nil {
		return usage{}, err
	}
	return l.settled(ctx, p, ports[0])
}

// agents is the configuration of n agents.
func agents(n, slots, to int) string {
	var b bytes.Buffer
	for i := range n {
		name := "bench"
		if n > 1 {
			name = fmt.Sprintf("bench%d", i)
		}
		fmt.Fprintf(&b, `		agent %s {
			model %s
			max_tasks %d
			max_cpu off
			max_gpu off
			runtime openai {
				base_url http://127.0.0.1:%d/v1
				routes /v1/chat/completions
			}
		}
`, name, model, slots, to)
	}
	return b.String()
}
