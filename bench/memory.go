// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
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

// settled is the least that a process of Go has of memory in a while in which its
// garbage is collected.
func (l *lab) settled(ctx context.Context, p *process, admin int) (float64, error) {
	least, looks := 0.0, 6
	if l.o.form == smoke {
		looks = 1
	}
	for range looks {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/heap?gc=1", admin))
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Second):
		}
		n, err := p.resident()
		if err != nil {
			return 0, err
		}
		if least == 0 || n < least {
			least = n
		}
	}
	return least, nil
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
	rep.add(finding{Bench: "B11", Text: fmt.Sprintf("memory of the gateway for each of %d workers", l.o.many), Unit: " kB", Limit: 45,
		Values: []float64{(many - few) / float64(l.o.many)}})
	rep.add(finding{Bench: "B11", Text: "memory of an idle gateway", To: "a bare Caddy", Limit: 1.25, Values: []float64{idle / bare}})
	return nil
}

// bareCaddy returns what a Caddy takes that answers by itself, in kB.
func (l *lab) bareCaddy(ctx context.Context) (float64, error) {
	ports, err := freePorts(2)
	if err != nil {
		return 0, err
	}
	path, err := l.config("bare.Caddyfile", fmt.Sprintf("{\n\tadmin 127.0.0.1:%d\n\tauto_https off\n}\nhttp://127.0.0.1:%d {\n\trespond hello\n}\n", ports[0], ports[1]))
	if err != nil {
		return 0, err
	}
	p, err := l.start("bare", l.o.binary, "run", "--config", path)
	if err != nil {
		return 0, err
	}
	defer p.stop()
	up := func(status int, _ string) bool { return status == http.StatusOK }
	if err := await(ctx, p, fmt.Sprintf("http://127.0.0.1:%d/", ports[1]), "", up); err != nil {
		return 0, err
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
