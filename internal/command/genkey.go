// SPDX-License-Identifier: Apache-2.0

package command

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
)

// genkeyCommand is `caddy agentfm genkey`.
func genkeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "genkey [swarm | api [--name <name>] [--file <key file>]]",
		Short: "Makes a new key: of a private swarm, or for a client",
		Long: `
Makes a new key of 256 random bits.

"genkey swarm", the default, prints the file of a private swarm's key, for
swarm_key:

	caddy agentfm genkey > swarm.key

"genkey api" prints a key for a client. What the gateway needs is a line of the
file of api_keys_file, which holds a hash and not the key. With --file it is
added to that file, which is made if it is not there; else it is printed to
standard error:

	caddy agentfm genkey api --name ann --file /etc/caddy/api-keys`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"swarm", "api"},
		RunE:      runGenkey,
	}
	cmd.Flags().String("name", "", "Name of the client, in the line for the key file")
	cmd.Flags().String("file", "", "Key file to add the line to")
	_ = cmd.MarkFlagFilename("file") // fails for no flag that is there
	jsonFlag(cmd)
	return cmd
}

// runGenkey makes a key and prints it.
func runGenkey(cmd *cobra.Command, args []string) error {
	name := cmd.Flag("name").Value.String()
	if len(args) == 0 || args[0] == "swarm" {
		for _, flag := range []string{"name", "file"} {
			if cmd.Flag(flag).Changed {
				return usage(fmt.Errorf("--%s is for the keys of clients: genkey api", flag))
			}
		}
		file := fmt.Sprintf("/key/swarm/psk/1.0.0/\n/base16/\n%x\n", random())
		if asJSON(cmd) {
			return printValue(cmd, map[string]string{"swarm_key": file})
		}
		_, err := io.WriteString(cmd.OutOrStdout(), file)
		return err
	}
	if cmd.Flag("name").Changed && !auth.ValidName(name) {
		return usage(errors.New("--name: want 1 to 64 of a-z, A-Z, 0-9, _ . @ -, and nothing that looks like a key"))
	}
	file := cmd.Flag("file").Value.String()
	if cmd.Flag("file").Changed && file == "" {
		return usage(errors.New("--file: want a file"))
	}
	key := auth.NewKey()
	line := strings.TrimSpace(name + " " + auth.Hash(key))
	if file != "" {
		if err := auth.AddLine(file, line); err != nil {
			return err
		}
	}
	if asJSON(cmd) {
		return printValue(cmd, map[string]string{"api_key": key, "name": name, "hash": auth.Hash(key)})
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), key); err != nil || file != "" {
		return err
	}
	_, err := fmt.Fprintln(cmd.ErrOrStderr(), line)
	return err
}

// random returns 256 random bits.
func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: see crypto/rand
	return b
}
