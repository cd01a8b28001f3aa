// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// peersCommand is `caddy agentfm peers`.
func peersCommand() *cobra.Command {
	cmd := askServer(&cobra.Command{
		Use:   "peers [--json] [--address <listen>] [--config <path> [--adapter <name>]]",
		Short: "Lists the peers to which the gateway is connected, and shows what is said of peers",
		Long: `
Alone, lists the peers to which the running Caddy is connected, by its admin API. Its
commands are about the reputation of peers, and use the API of a gateway with your key:

	caddy agentfm peers list
	caddy agentfm peers get 12D3KooW...
	caddy agentfm peers comment 12D3KooW... --rating 0.5 "Quick, and right."
	caddy agentfm peers log 12D3KooW...`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			head := []string{"PEER", "DIRECTION", "LATENCY", "BOOTSTRAP", "SOFTWARE", "ADDRESS"}
			return list(cmd, "peers", head, peerEntry.row)
		},
	})
	cmd.AddCommand(peersListCommand(), peersGetCommand(), peersLogCommand(), peersCommentCommand(), peersTextCommand())
	return cmd
}

// peerEntry is what is shown of a peer.
type peerEntry struct {
	Peer        string  `json:"peer_id"`
	Software    string  `json:"agent_version"`
	Latency     float64 `json:"latency_ms"`
	Bootstrap   bool    `json:"is_bootstrap"`
	Connections []struct {
		Address   string `json:"address"`
		Direction string `json:"direction"`
	} `json:"connections"`
}

// row returns the fields of the table: of the connections it shows the first.
func (p peerEntry) row() []string {
	latency, bootstrap, address, direction := "", "", "", ""
	if p.Latency > 0 {
		latency = milliseconds(p.Latency)
	}
	if p.Bootstrap {
		bootstrap = "yes"
	}
	if len(p.Connections) > 0 {
		address, direction = p.Connections[0].Address, p.Connections[0].Direction
	}
	return []string{p.Peer, direction, latency, bootstrap, p.Software, address}
}

// peersListCommand is `caddy agentfm peers list`.
func peersListCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "list [--online] [--json] [--gateway <url>]",
		Short:             "Lists the workers that a gateway knows, and how far it trusts them",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, _ []string) error {
			online, _ := cmd.Flags().GetBool("online")
			peers, err := c.Peers.List(ctx, !online)
			if err != nil {
				return err
			}
			head := []string{"STATUS", "HONESTY", "DISPATCH", "NAME", "MODEL", "AUTHOR", "LAST SEEN", "PEER"}
			return printList(cmd, head, peers, func(w client.Worker) []string {
				return []string{presence(w.Online), score(w.HonestyScore), dispatch(w.DispatchAllowed, w.RefuseReason, w.OnProbation), w.Name, w.Model, w.Author, when(w.LastSeen), w.PeerID}
			})
		}),
	})
	cmd.Flags().Bool("online", false, "Only those that are online")
	jsonFlag(cmd)
	return cmd
}

// peersGetCommand is `caddy agentfm peers get`.
func peersGetCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "get <peer id> [--json] [--gateway <url>]",
		Short:             "Shows what a gateway knows of a peer",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(knownPeers),
		RunE:              withClient(getPeer),
	})
	jsonFlag(cmd)
	return cmd
}

// getPeer prints what a gateway knows of a peer.
func getPeer(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
	p, err := c.Peers.Get(ctx, args[0])
	if err != nil {
		return err
	}
	fields := [][]string{
		{"peer", p.PeerID}, {"status", presence(p.Online)}, {"last seen", when(p.LastSeen)}, {"agent", p.Agent}, {"author", p.Author},
		{"honesty", score(p.HonestyScore)}, {"dispatch", dispatch(p.DispatchAllowed, p.RefuseReason, p.OnProbation)},
		{"entries", strconv.Itoa(p.EntriesCount)}, {"last entry", when(p.LastEntryAt)},
		{"image", p.ImageRef}, {"digest", p.ImageDigest}, {"capability", p.Capability},
	}
	if p.IsEquivocator {
		fields = append(fields, []string{"equivocator", "yes"})
	}
	if r := p.Raters; r != nil {
		fields = append(fields, []string{"verified raters", strconv.Itoa(r.Verified)}, []string{"other raters", strconv.Itoa(r.Unverified)})
	}
	return printFields(cmd, p, fields)
}

// peersLogCommand is `caddy agentfm peers log`.
func peersLogCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "log <peer id> [--limit <n>] [--json] [--gateway <url>]",
		Short:             "Lists the ratings of a peer and the comments about it, the newest first",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(knownPeers),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
			limit, _ := cmd.Flags().GetInt("limit")
			if limit < 1 || limit > maxList {
				return usage(fmt.Errorf("--limit %d: want 1 to %d", limit, maxList))
			}
			entries := []client.LogEntry{}
			for e, err := range c.Peers.Log(ctx, args[0]) {
				if err != nil {
					return err
				}
				if entries = append(entries, e); len(entries) == limit {
					break
				}
			}
			return printList(cmd, []string{"RECEIVED", "KIND", "SAYS", "WHY", "RATER", "RATER IS", "ENTRY"}, entries, logRow)
		}),
	})
	listFlags(cmd)
	return cmd
}

// logRow returns the fields of the table.
func logRow(e client.LogEntry) []string {
	says := e.TextCID
	if e.Kind == "Rating" {
		says = e.Dimension + " " + score(e.Score)
	}
	return []string{when(e.ReceivedAt), e.Kind, says, e.Context, e.RaterPeerID, e.RaterStatus, e.Hash}
}

// peersCommentCommand is `caddy agentfm peers comment`.
func peersCommentCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "comment <peer id> [--rating <-1..1>] [--language <code>] [--json] [--gateway <url>] [<text> | -]",
		Short:             "Comments on a peer, in the gateway's name, for everybody to read",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: first(knownPeers),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
			text, err := textOf(cmd, "comment", args[1:])
			if err != nil {
				return err
			}
			request := client.CommentRequest{Text: text, Language: cmd.Flag("language").Value.String()}
			if cmd.Flag("rating").Changed {
				rating, _ := cmd.Flags().GetFloat64("rating")
				if !(rating >= -1 && rating <= 1) {
					return usage(errors.New("--rating: want -1 to 1"))
				}
				request.Rating = &rating
			}
			receipt, err := c.Peers.Comment(ctx, args[0], request)
			if err != nil {
				return err
			}
			return printFields(cmd, receipt, [][]string{{"cid", receipt.CID}, {"entry", receipt.LedgerHash}})
		}),
	})
	cmd.Flags().Float64("rating", 0, "A rating beside the comment, from -1 to 1")
	cmd.Flags().String("language", "", "Language of the comment, such as en")
	jsonFlag(cmd)
	return cmd
}

// peersTextCommand is `caddy agentfm peers text`.
func peersTextCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "text <peer id> <cid> [--json] [--gateway <url>]",
		Short: "Prints the text of a comment about a peer, which its cid is checked to be of",
		Args:  cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return knownComments(args[0])(cmd, args, begun)
			}
			return first(knownPeers)(cmd, args, begun)
		},
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
			text, err := c.Peers.CommentBody(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printValue(cmd, map[string]string{"cid": args[1], "text": text})
			}
			_, err = io.WriteString(answers(cmd), text+"\n")
			return err
		}),
	})
	jsonFlag(cmd)
	return cmd
}

// presence writes whether a peer is.
func presence(online bool) string {
	if online {
		return "online"
	}
	return "offline"
}

// dispatch writes whether a peer is given tasks, and why none or few.
func dispatch(allowed bool, reason string, probation bool) string {
	switch {
	case !allowed:
		return strings.TrimSpace("refused " + reason)
	case probation:
		return "allowed, on probation"
	}
	return "allowed"
}

// score writes a number from -1 to 1.
func score(s float64) string { return strconv.FormatFloat(s, 'f', 2, 64) }
