// SPDX-License-Identifier: Apache-2.0

package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"
)

// idCommand is `caddy agentfm id`.
func idCommand() *cobra.Command {
	cmd := askServer(&cobra.Command{
		Use:   "id [<identity file>] [--json] [--address <listen>] [--config <path> [--adapter <name>]]",
		Short: "Prints the peer id of the running node, or of an identity file",
		Long: `
Prints the peer id of the node of the running Caddy, by its admin API, and on a terminal
its addresses. With a file, prints the peer id of the private key in it, such as the option
identity names; nothing needs to run for that.`,
		Args: cobra.MaximumNArgs(1),
		RunE: runID,
	})
	return cmd
}

// identity is what is told of a node.
type identity struct {
	Peer      string   `json:"peer_id"`
	Private   bool     `json:"private_swarm,omitempty"`
	Announced []string `json:"announced,omitempty"`
}

// runID is the work of idCommand.
func runID(cmd *cobra.Command, args []string) error {
	var id identity
	if len(args) > 0 {
		for _, flag := range []string{"address", "config", "adapter"} {
			if cmd.Flag(flag).Changed {
				return usage(fmt.Errorf("--%s is for the id of the running node, not for that of a file", flag))
			}
		}
		var err error
		if id.Peer, err = idOfFile(args[0]); err != nil {
			return err
		}
	} else {
		answer, err := ask(cmd, "about", nil)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(answer, &id); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
	}
	if asJSON(cmd) {
		return printValue(cmd, id)
	}
	if !terminal(cmd.OutOrStdout()) {
		return printRows(cmd.OutOrStdout(), nil, [][]string{{id.Peer}})
	}
	rows := [][]string{{"peer", id.Peer}}
	for _, a := range id.Announced {
		rows = append(rows, []string{"address", a + "/p2p/" + id.Peer})
	}
	return printRows(cmd.OutOrStdout(), []string{"FIELD", "VALUE"}, rows)
}

// maxIdentity bounds an identity file, in bytes.
const maxIdentity = 64 << 10

// idOfFile returns the peer id of the private key in a file.
func idOfFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIdentity+1))
	if err != nil {
		return "", err
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil || len(b) > maxIdentity {
		return "", fmt.Errorf("%s is no identity file: it does not hold a private key of libp2p", file)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return "", errors.Join(fmt.Errorf("%s has no peer id", file), err)
	}
	return id.String(), nil
}
