// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// scatterCommand is `caddy agentfm scatter`.
func scatterCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "scatter --model <engine> | --peer <peer id>,... [--files <folder>] [--json] <file of prompts | ->",
		Short: "Gives many prompts to many workers and prints a line of JSON for each",
		Long: `
Gives each line of a file, or of standard input, to a worker as a prompt; a line that
begins with a quotation mark is a string of JSON, for prompts of more lines. A prompt
whose worker fails goes to another. For each there is a line of JSON, in their order:

	{"index":0,"status":"success","worker_id":"12D3...","text":"...","duration_seconds":1.2,"attempts":1}
	{"index":1,"status":"failed","worker_id":"12D3...","text":"","error":"...","code":"mesh_overloaded",...}

On a terminal, without --json, each is a line of a table that shows where its text begins.
The exit status is 0 only when none has failed.`,
		Args: cobra.ExactArgs(1),
		RunE: withClient(scatter),
	})
	whoFlags(cmd)
	cmd.Flags().IntP("concurrency", "c", client.DefaultConcurrency, "How many at once, at most")
	cmd.Flags().Int("retries", client.DefaultScatterRetries, "How many more workers a prompt is given to when one fails")
	cmd.Flags().Int("workers", 0, "How many of the workers of the model are used; 0 is all")
	cmd.Flags().String("files", "", "Folder for what the agents leave")
	jsonFlag(cmd)
	return cmd
}

// scatter is the work of scatterCommand.
func scatter(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
	model, peers, err := who(cmd, false)
	if err != nil {
		return err
	}
	prompts, err := readPrompts(cmd, args[0])
	if err != nil {
		return err
	}
	p := &progress{
		total: len(prompts), out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), done: make(map[int]client.ScatterResult),
		rows: terminal(cmd.OutOrStdout()) && !asJSON(cmd),
	}
	o := client.ScatterOptions{Peers: peers, OnResult: p.add}
	o.MaxConcurrency, _ = cmd.Flags().GetInt("concurrency")
	if o.MaxRetries, _ = cmd.Flags().GetInt("retries"); o.MaxRetries == 0 {
		o.MaxRetries = -1
	}
	o.ArtifactsDir, _ = cmd.Flags().GetString("files")
	most, _ := cmd.Flags().GetInt("workers")
	p.show()
	if model != "" {
		_, err = c.Tasks.ScatterByModel(ctx, prompts, client.ScatterByModelOptions{Model: model, MaxWorkers: most, ScatterOptions: o})
	} else {
		_, err = c.Tasks.Scatter(ctx, prompts, o)
	}
	p.end()
	switch {
	case err != nil:
		return err
	case p.err != nil:
		return p.err
	case p.failed > 0:
		return coded{fmt.Errorf("%d of %d prompts failed", p.failed, p.total), exitAgent}
	}
	return nil
}

// maxPrompts bounds how many prompts a file may have.
const maxPrompts = 100_000

// readPrompts reads a file of prompts, or standard input for "-".
func readPrompts(cmd *cobra.Command, file string) ([]string, error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usage(err)
		}
		defer f.Close()
		in = f
	}
	var prompts []string
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 2*maxPrompt)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if strings.TrimSpace(line) == "" {
			continue
		}
		if strings.HasPrefix(line, `"`) {
			if err := json.Unmarshal([]byte(line), &line); err != nil {
				return nil, usage(fmt.Errorf("line %d begins with a quotation mark and is no string of JSON: %w", n, err))
			}
		}
		if prompts = append(prompts, line); len(prompts) > maxPrompts {
			return nil, usage(fmt.Errorf("there are more than %d prompts", maxPrompts))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the prompts: %w", err)
	}
	if len(prompts) == 0 {
		return nil, usage(errors.New("there is no prompt"))
	}
	return prompts, nil
}

// progress prints results in the order of their prompts, as soon as those before are there,
// and on a terminal how far it is.
type progress struct {
	total  int
	out    io.Writer
	rows   bool // for people
	notes  io.Writer
	done   map[int]client.ScatterResult // that wait for others
	next   int
	ended  int
	failed int
	err    error // of writing
}

// add takes a result.
func (p *progress) add(r client.ScatterResult) {
	p.ended++
	if r.Status == client.ScatterFailed {
		p.failed++
	}
	for p.done[r.Index] = r; ; p.next++ {
		r, ok := p.done[p.next]
		if !ok {
			break
		}
		delete(p.done, p.next)
		if err := p.print(lineOf(r)); err != nil && p.err == nil {
			p.err = err
		}
	}
	p.show()
}

// textShown is how much of a text a line for people has, in characters.
const textShown = 60

// print prints the line of a result.
func (p *progress) print(r runResult) error {
	if !p.rows {
		return printLine(p.out, r)
	}
	text := []rune(plain(r.Text))
	if r.Error != "" {
		text = []rune(plain(r.Error))
	}
	if len(text) > textShown {
		text = append(text[:textShown], '…')
	}
	_, err := fmt.Fprintf(p.out, "%s%5d  %-7s  %6.1fs  %s\n", eraseLine, *r.Index, r.Status, r.Seconds, string(text))
	return err
}

// lineOf returns a result as it is printed.
func lineOf(r client.ScatterResult) runResult {
	return runResult{
		Index: &r.Index, Status: string(r.Status), Worker: r.WorkerID, Task: r.TaskID, Text: r.Text,
		Files: r.Artifacts, Seconds: r.Duration.Seconds(), Attempts: r.Attempts,
	}.failed(r.Err)
}

// barWidth is how many characters a bar has.
const barWidth = 30

// eraseLine takes the bar off a terminal.
const eraseLine = "\r\x1b[K"

// show shows a bar on a terminal.
func (p *progress) show() {
	if !p.shown() {
		return
	}
	full := barWidth * p.ended / p.total
	fmt.Fprintf(p.notes, "\r[%s%s] %d/%d, %d failed ", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), p.ended, p.total, p.failed)
}

// shown reports whether there is a bar: not among lines of JSON.
func (p *progress) shown() bool { return terminal(p.notes) && (p.rows || !terminal(p.out)) }

// end ends the line of the bar.
func (p *progress) end() {
	if p.shown() {
		fmt.Fprintln(p.notes)
	}
}
