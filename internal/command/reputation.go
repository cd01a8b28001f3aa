// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// reputationCommand is `caddy agentfm reputation`.
func reputationCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reputation <command>",
		Short: "Shows what is said of a peer, verifies the proofs of it, and recovers the gateway's own log",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(reputationShowCommand(), reputationVerifyCommand(), reputationRecoverCommand())
	return cmd
}

// reputationShowCommand is `caddy agentfm reputation show`.
func reputationShowCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "show <peer id> [--proofs [--entries <n>]] [--json] [--gateway <url>]",
		Short: "Shows what a gateway thinks of a peer, or the proofs of what is said of it",
		Long: `
Shows what a gateway thinks of a peer, as ` + "`peers get`" + ` does. With --proofs, the entries
that speak of it, the newest first, as lines of JSON: each with the proof that it is in the
log of its author, for ` + "`reputation verify`" + `. The entries alone are in ` + "`peers log`" + `.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(knownPeers),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
			entries, _ := cmd.Flags().GetInt("entries")
			proofs, _ := cmd.Flags().GetBool("proofs")
			switch {
			case entries < 0:
				return usage(fmt.Errorf("--entries %d: want a number from 0 on", entries))
			case proofs:
				return showProofs(ctx, cmd, c, args[0], entries)
			case entries > 0:
				return usage(errors.New("--entries is for --proofs: `peers log` lists the entries alone"))
			}
			return getPeer(ctx, cmd, c, args)
		}),
	})
	cmd.Flags().IntP("entries", "n", 0, "How many of the newest entries, with --proofs; 0 is all")
	cmd.Flags().Bool("proofs", false, "Print the entries with their proofs, as lines of JSON")
	jsonFlag(cmd)
	return cmd
}

// showProofs prints the newest entries about a peer with their proofs.
func showProofs(ctx context.Context, cmd *cobra.Command, c *client.Client, id string, most int) error {
	shown, without := 0, 0
	for e, err := range c.Peers.Log(ctx, id) {
		if err != nil {
			return err
		}
		p, err := c.Peers.Proof(ctx, id, e.Hash)
		switch {
		case errors.Is(err, client.CodeEntryNotFound): // no head covers it yet
			without++
			continue
		case err != nil:
			return err
		}
		if err := printLine(cmd.OutOrStdout(), p); err != nil {
			return err
		}
		if shown++; shown == most {
			break
		}
	}
	if without > 0 {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%d entries have no proof yet: the gateway has no signed head that covers them\n", without)
	}
	return nil
}

// reputationVerifyCommand is `caddy agentfm reputation verify`.
func reputationVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify <file> [--json]",
		Short: "Verifies entries and their proofs that were saved, and asks nobody",
		Long: `
Verifies what ` + "`reputation show --proofs`" + ` or GET /v1/peers/{id}/proof has answered: that
each entry is signed by its rater, and in the log whose head is signed by the same. The
keys are in the peer ids, so that nobody is asked or trusted. Two logs of one author,
where one of them was to be seen by somebody else, are found, too. Prints who said what;
a file of - is standard input. When anything is wrong, the exit code is 1.`,
		Args:         cobra.ExactArgs(1),
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			said, err := verifyProofs(in)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return printList(cmd, []string{"SAID", "KIND", "SAYS", "WHY", "OF", "RATER", "PLACE", "ENTRY"}, said, verified.row)
		},
	}
	cmd.Flags().Bool("json", false, "Print the entries as JSON")
	return cmd
}

// reputationRecoverCommand is `caddy agentfm reputation recover`.
func reputationRecoverCommand() *cobra.Command {
	cmd := askServer(&cobra.Command{
		Use:   "recover --yes [--force] [--json] [--address <listen>] [--config <path> [--adapter <name>]]",
		Short: "Begins the one epoch of the gateway's log, when that was continued twice by accident",
		Long: `
For a gateway whose log of ratings was continued twice, by a restored backup for example: it
says so in its log, signs no more, and its peers take it for an equivocator. It declares to
them, by the admin API of the running Caddy, that what it has signed up to now is void. What it has
of that itself it signs anew. For 30 days it is trusted no further than a newcomer. Peers forgive a
node once: first stop whatever else signs with its key. They are asked before whether they have
done so; --force does without the answers of bootstrap nodes and witnesses that are gone for good.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if yes, _ := cmd.Flags().GetBool("yes"); !yes {
				return usage(errors.New("peers forgive a node once, and this cannot be taken back; say --yes to do it"))
			}
			force, _ := cmd.Flags().GetBool("force")
			answer, err := ask(cmd, "recover", map[string]bool{"force": force})
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			var done struct {
				Entries uint64 `json:"entries"`
			}
			if err := json.Unmarshal(answer, &done); err != nil {
				return fmt.Errorf("reading the answer: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "a new epoch has begun; %d entries were signed anew\n", done.Entries)
			return err
		},
	})
	cmd.Flags().Bool("yes", false, "Do it")
	cmd.Flags().Bool("force", false, "Do without the answers of who does not answer")
	return cmd
}

// verified is an entry that was verified.
type verified struct {
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Rater   string    `json:"rater_peer_id"`
	Subject string    `json:"subject_peer_id"`

	Dimension string   `json:"dimension,omitzero"`
	Score     *float64 `json:"score,omitzero"`
	Context   string   `json:"context,omitzero"`
	TextCID   string   `json:"text_cid,omitzero"`

	Hash     string `json:"entry_hash"`
	Position int64  `json:"position"`
	Size     int64  `json:"tree_size"`
}

// row returns the fields of the table.
func (v verified) row() []string {
	said := "text " + v.TextCID
	if v.Score != nil {
		said = v.Dimension + " " + fmt.Sprintf("%+.2f", *v.Score)
	}
	return []string{when(v.Time), v.Kind, said, v.Context, v.Subject, v.Rater, fmt.Sprintf("%d of %d", v.Position+1, v.Size), v.Hash}
}

// maxProof bounds one proof in a file, in bytes, and maxProofs their number.
const (
	maxProof  = 1 << 20
	maxProofs = 1_000_000
)

// verifyProofs reads proofs, one after another, and verifies each.
func verifyProofs(in io.Reader) (all []verified, err error) {
	limited := &io.LimitedReader{R: in}
	dec := json.NewDecoder(limited)
	seen := make(map[string]string) // by the place in a log, or a size of it: what is there
	for n := 1; ; n++ {
		limited.N = maxProof
		var p client.Proof
		switch err := dec.Decode(&p); {
		case err == io.EOF && n > 1 && limited.N > 0:
			return all, nil
		case err == io.EOF:
			return nil, errors.New("there is no proof in it")
		case err != nil && limited.N <= 0:
			return nil, fmt.Errorf("proof %d: it has more than %d bytes", n, maxProof)
		case err != nil:
			return nil, fmt.Errorf("proof %d: %w", n, plainError{err})
		case n > maxProofs:
			return nil, fmt.Errorf("there are more than %d proofs", maxProofs)
		}
		v, err := verifyProof(&p)
		if err != nil {
			return nil, fmt.Errorf("proof %d: %w", n, err)
		}
		for at, what := range map[string]string{
			fmt.Sprintf("head of size %d", v.Size):         strings.ToLower(p.Head.RootHash),
			fmt.Sprintf("entry in place %d", v.Position+1): v.Hash,
		} {
			key := v.Rater + " " + at
			if before, ok := seen[key]; ok && before != what {
				return nil, fmt.Errorf("proof %d: %s has signed two logs: another %s stands further up in the file", n, v.Rater, at)
			}
			seen[key] = what
		}
		all = append(all, v)
	}
}

// verifyProof verifies a proof with nothing but what is in it.
func verifyProof(p *client.Proof) (v verified, err error) {
	if err := p.Verify(); err != nil {
		return v, err
	}
	e, err := wire.ParseEntry(p.SignedEntry)
	if err != nil {
		return v, fmt.Errorf("signed_entry: %w", err)
	}
	v = verified{
		Time: time.Unix(0, e.Time).UTC(), Kind: e.Kind.String(), Rater: e.Rater.String(), Subject: e.Subject.String(),
		Dimension: e.Dimension, Context: e.Context, Hash: e.Hash().String(), Position: p.Position, Size: p.Head.TreeSize,
	}
	if e.Kind == wire.Rating {
		v.Score = &e.Score
	} else {
		v.TextCID = fmt.Sprintf("%x", e.TextCID)
	}
	return v, nil
}
