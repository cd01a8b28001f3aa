// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The tests in this file load a gateway and a worker whose model is a server of the
// test. What they measure is logged; what they want is that nothing is lost, and that
// memory is bounded.

// L1: chats that are answered whole, by many clients at once.
func TestL1Chats(t *testing.T) {
	a := newAttacked(t, 256)
	clients, length := scaled(32, 64), scaled(2*time.Second, 5*time.Minute)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	pad := strings.Repeat("x", 1<<10)
	var mu sync.Mutex
	var took []time.Duration
	end := time.Now().Add(length)
	each(clients, clients, func(c int) {
		for n := 0; time.Now().Before(end); n++ {
			begun := time.Now()
			mark := fmt.Sprintf("%d-%d.", c, n)
			r, err := ask(t.Context(), client, http.MethodPost, a.gateway.url+"/v1/chat/completions",
				strings.NewReader(fmt.Sprintf(`{"model":"mock","messages":[{"role":"user","content":"echo %s%s"}]}`, mark, pad)), bearer(testKey)...)
			if err != nil || r.status != 200 || !strings.Contains(r.body, mark+pad) {
				t.Errorf("%s %d %.300q, %v", mark, r.status, r.body, err)
				return
			}
			mu.Lock()
			took = append(took, time.Since(begun))
			mu.Unlock()
		}
	})
	slices.Sort(took)
	if all, inside := a.model.now(); all != len(took) || inside != 0 {
		t.Errorf("%d chats at the model, %d answers", all, len(took))
	}
	if len(took) > 0 {
		t.Logf("%d clients: %.0f chats/s; half within %v, 99 %% within %v, the slowest %v", clients, float64(len(took))/length.Seconds(),
			took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	}
}

// TestAtCapacity has as many clients as a worker has slots, each of which sends one request
// after another. There is always room for the next.
func TestAtCapacity(t *testing.T) {
	for _, slots := range []int{1, 4} {
		a := newAttacked(t, slots)
		each(slots, slots, func(int) {
			for i := range 2 * scaled(250, 3000) {
				r, err := a.gateway.chat(t, "mock", "echo x", i%2 == 0)
				if err != nil || r.status != 200 {
					t.Errorf("request %d: %d %.300q, %v", i, r.status, r.body, err)
					return
				}
			}
		})
	}
}

// L2: many answers at once that come as they are made: each whole, and in order. Beside them
// an answer of one event is asked for again and again, here and of the model itself, in turn.
func TestL2Streams(t *testing.T) {
	streams, count := scaled(50, 1000), scaled(20, 6000)
	a := newAttacked(t, streams+1)
	before, _ := a.gateway.resident()
	replies := make([]reply, streams)
	begun := time.Now()
	length := time.Duration(count) * 100 * time.Millisecond
	var added []time.Duration
	var probe sync.WaitGroup
	probe.Go(func() {
		model := &process{t: t, url: strings.TrimSuffix(a.model.url, "/v1")}
		for time.Since(begun) < length {
			direct, through := model.stream(t.Context(), chatRequest("mock", "echo x", true)), a.gateway.stream(t.Context(), chatRequest("mock", "echo x", true))
			if !direct.well() || !through.well() {
				t.Errorf("%+v, through the gateway %+v", direct, through)
				return
			}
			added = append(added, through.duration-direct.duration)
		}
	})
	each(streams, streams, func(i int) {
		replies[i] = a.gateway.stream(t.Context(), chatRequest("mock", fmt.Sprintf("count %d 100ms", count), true))
	})
	probe.Wait()
	slices.Sort(added)
	want := numbers(count)
	for i, r := range replies {
		if !r.well() || r.text != want {
			t.Errorf("stream %d: %d %q, %v, %.300q", i, r.status, r.code, r.err, r.text)
		}
	}
	_, peak := a.gateway.resident()
	took := time.Since(begun)
	t.Logf("%d streams of %d events in %v, at best in %v; %d MiB resident before, %d at most", streams, count, took.Round(time.Millisecond),
		length, before>>20, peak>>20)
	if len(added) > 0 {
		t.Logf("beside them, %d answers of one event took longer than at the model itself: half up to %v, 99 %% up to %v", len(added),
			added[len(added)/2], added[len(added)*99/100])
	}
	if peak > 700<<20 {
		t.Errorf("%d MiB resident", peak>>20)
	}
}

// L3: answers that are silent for long are kept, and cost little.
func TestL3IdleStreams(t *testing.T) {
	streams, every := scaled(250, 5000), scaled(3*time.Second, time.Minute)
	count := scaled(1, 15)
	a := newAttacked(t, streams)
	processes := []*process{a.gateway, a.worker}
	var heap, resident [2]int64
	for i, p := range processes {
		heap[i] = p.liveHeap(t)
		resident[i], _ = p.resident()
	}
	var lost, ended atomic.Int64
	var group sync.WaitGroup
	for range streams {
		group.Go(func() {
			r := a.gateway.stream(t.Context(), chatRequest("mock", fmt.Sprintf("count %d %v", count, every), true))
			if ended.Add(1); !r.well() || r.text != numbers(count) {
				if lost.Add(1) == 1 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	a.gateway.await("all streams are open", func() bool { _, inside := a.model.now(); return inside == streams || ended.Load() > 0 })
	for i, p := range processes {
		now, _ := p.resident()
		resident[i] = (now - resident[i]) >> 10 / int64(streams)
		heap[i] = (p.liveHeap(t) - heap[i]) >> 10 / int64(streams)
	}
	group.Wait()
	t.Logf("%d streams: each %d KiB of heap and %d KiB resident at the gateway, %d and %d at the worker", streams, heap[0], resident[0], heap[1], resident[1])
	if lost.Load() > 0 {
		t.Errorf("%d of %d streams were lost", lost.Load(), streams)
	}
	if max(heap[0], heap[1]) > 200 {
		t.Error("a stream takes too much memory")
	}
}

// L9: files of many tasks at once, each to the byte.
func TestL9Files(t *testing.T) {
	tasks, size := scaled(10, 200), scaled(1<<20, 64<<20)
	m := newMesh(t, withKey)
	block := agent("files", "Files", "files", command(writeScript(t, fmt.Sprintf(
		"head -c %d /dev/urandom >$AGENTFM_OUTPUT/f\nsha256sum <$AGENTFM_OUTPUT/f | cut -d' ' -f1\n", size))))
	m.worker(replaceOnce(t, block, "max_tasks 4", "max_tasks 8"))
	m.gateway.awaitWorkers(1)
	before := m.gateway.liveHeap(t)
	begun := time.Now()
	each(tasks, 8, func(i int) {
		a, err := m.gateway.chat(t, "files", "x", false)
		if err != nil || a.status != 200 {
			t.Errorf("task %d: %d %.300q, %v", i, a.status, a.body, err)
			return
		}
		got, err := hashOf(filepath.Join(m.gateway.cmd.Dir, "artifacts", a.header.Get("X-AgentFM-Task")+".zip"))
		if err != nil || !bytes.Contains([]byte(a.body), []byte(got)) {
			t.Errorf("task %d: %s, %v, %.300q", i, got, err, a.body)
		}
	})
	took := time.Since(begun)
	after := m.gateway.liveHeap(t)
	_, peak := m.gateway.resident()
	t.Logf("%d × %d MiB in %v: %.0f MiB/s with the making, packing and hashing; the heap grew by %d MiB, %d MiB resident at most",
		tasks, size>>20, took.Round(time.Millisecond), float64(tasks*size>>20)/took.Seconds(), (after-before)>>20, peak>>20)
	if after > before+64<<20 {
		t.Errorf("the heap has grown by %d MiB", (after-before)>>20)
	}
}
