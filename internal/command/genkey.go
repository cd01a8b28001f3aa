// SPDX-License-Identifier: Apache-2.0

package command

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// genkeyCommand is `caddy agentfm genkey`.
func genkeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "genkey [swarm | api [--name <name>]]",
		Short: "Makes a new key: of a private swarm, or for a client",
		Long: `
Makes a new key of 256 random bits.

"genkey swarm", the default, prints the file of a private swarm's key, for
swarm_key:

	caddy agentfm genkey > swarm.key

"genkey api" prints a key for a client, and to standard error the line for the
file of api_keys_file, which holds a hash and not the key:

	caddy agentfm genkey api --name ann 2>> keys`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"swarm", "api"},
		RunE:      runGenkey,
	}
	cmd.Flags().String("name", "", "Name of the client, in the line for the key file")
	return cmd
}

// keyName is what a name in a key file may be.
var keyName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// keyPrefix begins every key of a client. No name may: names get into logs.
const keyPrefix = "afm_"

// runGenkey makes a key and prints it.
func runGenkey(cmd *cobra.Command, args []string) error {
	name := cmd.Flag("name").Value.String()
	if len(args) == 0 || args[0] == "swarm" {
		if cmd.Flag("name").Changed {
			return errors.New("--name is for the keys of clients: genkey api")
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "/key/swarm/psk/1.0.0/\n/base16/\n%x\n", random())
		return err
	}
	if cmd.Flag("name").Changed && (!keyName.MatchString(name) || strings.HasPrefix(name, keyPrefix)) {
		return fmt.Errorf("--name: want 1 to 64 of a-z, A-Z, 0-9, . _ @ -, a letter or digit first, and not %s", keyPrefix)
	}
	key := keyPrefix + base64.RawURLEncoding.EncodeToString(random())
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), key); err != nil {
		return err
	}
	if name != "" {
		name += " "
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "%ssha256:%x\n", name, sha256.Sum256([]byte(key)))
	return err
}

// random returns 256 random bits.
func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: see crypto/rand
	return b
}
