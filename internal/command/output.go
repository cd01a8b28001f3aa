// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// tasksLogsCommand is `caddy agentfm tasks logs`.
func tasksLogsCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "logs <task id> [-f] [--gateway <url>]",
		Short: "Prints what a task's agent has said so far, or with -f as it comes",
		Args:  cobra.ExactArgs(1),
		RunE: withGateway(func(ctx context.Context, cmd *cobra.Command, g *gatewayClient, args []string) error {
			path, err := taskPath(args[0])
			if err != nil {
				return err
			}
			l := &logs{client: g, path: path, out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr()}
			if terminal(l.out) {
				l.out = &plainWriter{out: l.out}
			}
			if follow, _ := cmd.Flags().GetBool("follow"); follow {
				return l.follow(ctx)
			}
			return l.print(ctx, nil)
		}),
	})
	cmd.Flags().BoolP("follow", "f", false, "Wait for more until the task ends; fails when the task does")
	return cmd
}

// logs prints the output of a task.
type logs struct {
	client     *gatewayClient
	path       string
	out, notes io.Writer

	printed int64  // of the output of this run, in bytes
	run     string // of the task
}

// headerRun names in an answer the run of which the output is.
const headerRun = "X-AgentFM-Task-Run"

// print prints the output as one answer has it.
func (l *logs) print(ctx context.Context, query url.Values) error {
	resp, err := l.client.do(ctx, http.MethodGet, l.path+"/output?"+query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	l.run = resp.Header.Get(headerRun)
	n, err := io.Copy(l.out, resp.Body)
	l.printed += n
	if err != nil {
		return fmt.Errorf("reading the output: %w", err)
	}
	return nil
}

// maxBroken is how often in a row an output that is followed may break off.
const maxBroken = 10

// followPause is the time before it is asked for again. A variable for tests.
var followPause = time.Second

// follow prints the output until the task ends, also over connections that break.
func (l *logs) follow(ctx context.Context) error {
	for broken := 0; ; {
		var t task
		_, err := l.client.ask(ctx, http.MethodGet, l.path, &t)
		if err == nil {
			before := l.printed
			if err = l.more(ctx); err == nil && t.ended() {
				return t.failure()
			}
			if l.printed > before {
				broken = 0
			}
		}
		answer := (*gatewayError)(nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			broken = 0
		case errors.As(err, &answer) && answer.status < 500:
			return err
		default:
			if broken++; broken > maxBroken {
				return err
			}
		}
		wait := time.NewTimer(followPause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		}
	}
}

// more prints what the output has beyond what was printed. An agent that is run again
// begins anew.
func (l *logs) more(ctx context.Context) error {
	query := url.Values{"follow": {"true"}}
	if l.printed > 0 {
		query.Set("offset", strconv.FormatInt(l.printed, 10))
		query.Set("run", l.run)
	}
	err := l.print(ctx, query)
	if answer := (*gatewayError)(nil); errors.As(err, &answer) && answer.code == "output_restarted" {
		l.printed = 0
		_, err = fmt.Fprintln(l.notes, "\nthe connection to the worker was lost, and the task runs again: its output from the beginning")
	}
	return err
}

// plainWriter makes what a stranger says fit for a terminal, which it could steer. Lines and
// tabs stay.
type plainWriter struct {
	out  io.Writer
	half []byte // of a rune
}

// Write implements io.Writer.
func (w *plainWriter) Write(p []byte) (int, error) {
	text := append(w.half, p...)
	var b strings.Builder
	for len(text) > 0 && (utf8.FullRune(text) || len(text) >= utf8.UTFMax) {
		r, size := utf8.DecodeRune(text)
		if r != '\n' && r != '\t' && (!unicode.IsPrint(r) || r == unicode.ReplacementChar) {
			r = '?'
		}
		b.WriteRune(r)
		text = text[size:]
	}
	w.half = append([]byte(nil), text...)
	if _, err := io.WriteString(w.out, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// tasksArtifactsCommand is `caddy agentfm tasks artifacts`.
func tasksArtifactsCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "artifacts <task id> [--output <file>] [--gateway <url>]",
		Short: "Fetches the zip of a task's files to <task id>.zip",
		Long: `
Fetches the zip of the files that a task left, and prints the name of the file. It is
there only when all of it has come, and replaces none that is there. It holds what a
stranger made: look at it before you unpack it.`,
		Args: cobra.ExactArgs(1),
		RunE: withGateway(func(ctx context.Context, cmd *cobra.Command, g *gatewayClient, args []string) error {
			path, err := taskPath(args[0])
			if err != nil {
				return err
			}
			file, _ := cmd.Flags().GetString("output")
			if file == "" {
				file = args[0] + ".zip"
			}
			if err := fetch(ctx, g, path+"/artifacts", file); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), file)
			return err
		}),
	})
	cmd.Flags().StringP("output", "o", "", "File to write, in place of <task id>.zip")
	return cmd
}

// maxZip bounds what is taken for a task's files, in bytes: more than any task may leave.
const maxZip = 6 << 30

// hashTag is the ETag of a file that is its SHA-256.
var hashTag = regexp.MustCompile(`^"([0-9a-f]{64})"$`)

// fetch writes an answer to a new file, which is there when it is whole.
func fetch(ctx context.Context, g *gatewayClient, path, file string) error {
	if err := absent(file); err != nil {
		return err
	}
	resp, err := g.do(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(tmp, hash), io.LimitReader(resp.Body, maxZip+1))
	switch {
	case err != nil:
		return fmt.Errorf("fetching the files: %w", err)
	case n > maxZip:
		return errors.New("fetching the files: there are more than a task may leave")
	}
	if tag := hashTag.FindStringSubmatch(resp.Header.Get("ETag")); tag != nil && tag[1] != hex.EncodeToString(hash.Sum(nil)) {
		return errors.New("fetching the files: what arrived is not what the gateway has, by its SHA-256; try again")
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	// A link fails where a file is, as a new name for another does not.
	if os.Link(tmp.Name(), file) == nil {
		return nil
	}
	if err := absent(file); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file) // there are file systems without links
}

// absent returns an error when a file is there.
func absent(file string) error {
	_, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		return fmt.Errorf("%s is there already; remove it, or name another file with --output", file)
	}
	return err
}
