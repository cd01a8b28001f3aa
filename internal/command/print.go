// SPDX-License-Identifier: Apache-2.0

package command

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// plain makes a text fit for one line of a terminal: a stranger's could steer it.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
}

// jsonFlag gives a command the flag --json.
func jsonFlag(cmd *cobra.Command) {
	cmd.Flags().Bool("json", false, "Print JSON")
}

// asJSON reports whether a command shall print JSON.
func asJSON(cmd *cobra.Command) bool {
	on, _ := cmd.Flags().GetBool("json")
	return on
}

// printValue prints a value as JSON.
func printValue(cmd *cobra.Command, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return printJSON(cmd.OutOrStdout(), append(b, '\n'))
}

// printLine prints a value as one line of JSON.
func printLine(out io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return printJSON(out, append(b, '\n'))
}

// printList prints entries: as JSON where the command shall, or else with a row for each.
func printList[T any](cmd *cobra.Command, head []string, entries []T, row func(T) []string) error {
	if asJSON(cmd) {
		return printValue(cmd, entries)
	}
	rows := make([][]string, len(entries))
	for i, e := range entries {
		rows[i] = row(e)
	}
	return printRows(cmd.OutOrStdout(), head, rows)
}

// printFields prints one thing: as JSON where the command shall, or else those of its fields
// that say something, by their names.
func printFields(cmd *cobra.Command, v any, fields [][]string) error {
	if asJSON(cmd) {
		return printValue(cmd, v)
	}
	var known [][]string
	for _, f := range fields {
		if f[1] != "" {
			known = append(known, f)
		}
	}
	return printRows(cmd.OutOrStdout(), []string{"FIELD", "VALUE"}, known)
}

// printJSON prints JSON. What in a stranger's text could steer a terminal is
// escaped, which JSON itself asks for of some of it alone.
func printJSON(out io.Writer, b []byte) error {
	var safe strings.Builder
	for _, r := range string(b) {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			safe.WriteRune(r)
			continue
		}
		for _, u := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&safe, "\\u%04x", u)
		}
	}
	_, err := io.WriteString(out, safe.String())
	return err
}

// printRows prints a table on a terminal, and lines with tabs elsewhere.
func printRows(out io.Writer, head []string, rows [][]string) error {
	table := terminal(out)
	w := out
	if table {
		aligned := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		defer aligned.Flush()
		w, rows = aligned, append([][]string{head}, rows...)
	}
	for _, r := range rows {
		fields := make([]string, len(r))
		for i, f := range r {
			if fields[i] = plain(f); table && fields[i] == "" {
				fields[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(w, strings.Join(fields, "\t")); err != nil {
			return err
		}
	}
	return nil
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

// answers returns where to write what a stranger says: a terminal must not be steered.
func answers(cmd *cobra.Command) io.Writer {
	out := cmd.OutOrStdout()
	if terminal(out) {
		return &plainWriter{out: out}
	}
	return out
}

// terminal reports whether a file is one. A variable for tests.
var terminal = func(file any) bool {
	f, ok := file.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
