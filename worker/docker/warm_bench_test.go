// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// BenchmarkTaskStart measures the time from a task to the agent's first byte: in a
// container that was started ahead, with its prompt in a file or on standard input, in a
// fresh one, and by the command `docker run`, in turns. An iteration is one of each.
func BenchmarkTaskStart(b *testing.B) {
	f := startWarm(b, "once", 2, nil)
	file := startWarm(b, "once", 2, func(r *Runtime) { r.Prompt = promptInFile })
	fresh := f.withWarm(nil)
	cli, err := exec.LookPath("docker")
	if err != nil {
		b.Skip("no command docker")
	}
	ways := []string{"warm-file", "warm-stdin", "fresh", "docker-run"}
	took := make(map[string][]time.Duration)
	for b.Loop() {
		f.waiting(2)
		file.waiting(2)
		for _, way := range ways {
			var d time.Duration
			switch way {
			case "warm-file":
				d = file.firstByte(func(task worker.Task) { _, err = file.Run(b.Context(), task) })
				file.waiting(2)
			case "warm-stdin":
				d = f.firstByte(func(task worker.Task) { _, err = f.Run(b.Context(), task) })
				f.waiting(2) // so that nothing is started while the others are measured
			case "fresh":
				d = f.firstByte(func(task worker.Task) { _, err = fresh.run(b.Context(), task) })
			default:
				d = f.firstByte(func(task worker.Task) {
					run := exec.CommandContext(b.Context(), cli, "-H", f.Host, "run", "--rm", "-i", "--network", "none", "--log-driver", "none", "-e", "PROBE=once", f.Image)
					run.Stdin, run.Stdout = strings.NewReader(task.Prompt), task.Output
					err = run.Run()
				})
			}
			if err != nil {
				b.Fatal(way, err)
			}
			took[way] = append(took[way], d)
		}
	}
	for _, way := range ways {
		slices.Sort(took[way])
		b.ReportMetric(ms(quantile(took[way], 0.5)), way+"-p50-ms")
		b.ReportMetric(ms(quantile(took[way], 0.99)), way+"-p99-ms")
	}
	for _, way := range ways[:2] {
		b.ReportMetric(ms(quantile(took["docker-run"], 0.5))/ms(quantile(took[way], 0.5)), "docker-run/"+way)
	}
	b.ReportMetric(0, "ns/op")
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

// firstByte returns how long a task takes to its first output.
func (f *warmFixture) firstByte(run func(worker.Task)) time.Duration {
	task, _ := f.task("hello")
	first := &firstWrite{to: io.Discard}
	task.Output = first
	began := time.Now()
	run(task)
	return first.at.Sub(began)
}

// firstWrite remembers when it was written to first.
type firstWrite struct {
	to io.Writer
	at time.Time
}

// Write implements io.Writer.
func (w *firstWrite) Write(p []byte) (int, error) {
	if w.at.IsZero() {
		w.at = time.Now()
	}
	return w.to.Write(p)
}

var _ io.Writer = (*firstWrite)(nil)
