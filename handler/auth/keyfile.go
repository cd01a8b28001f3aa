// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

// Limits of a key file.
const (
	maxFile = 1 << 20 // bytes
	maxKeys = 10_000
)

// Options of a line, and their values.
const (
	optModels  = "models"
	optScope   = "scope"
	optExpires = "expires"
	optSecret  = "webhook_secret"
	scopeRead  = "read"
	scopeRun   = "run"
)

// options are the names of all of them.
var options = []string{optModels, optScope, optExpires, optSecret}

// nameForm is how names look. A key of [NewKey] does, too; see [parseLine].
var nameForm = regexp.MustCompile(`^[a-zA-Z0-9_.@-]{1,64}$`)

// optionForm is in options, and in no key: an equals sign and a value after it.
// Base64 ends with the sign.
var optionForm = regexp.MustCompile(`=[^=]`)

// parseFile reads a key file: one key a line, blank lines, and comments, which
// are lines that begin with #.
//
//	[<name>] <key or sha256:<64 hex>> [models=<a>,<b>] [scope=read|run] [expires=<RFC 3339>]
//		[webhook_secret=<new>[,<old>]]
//
// Fields are separated by spaces or tabs. Only the value of an option may have
// them inside, in quotation marks. What stands before the options is a key, or a
// name and a key. Errors name the line and quote nothing: anything may be a key
// in the wrong place.
func parseFile(b []byte) ([]key, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	text := strings.TrimPrefix(string(b), "\uFEFF") // as some editors write
	if !utf8.ValidString(text) {
		return nil, errors.New("not UTF-8")
	}
	var keys []key
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.Trim(line, " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		if len(keys) == maxKeys {
			return nil, fmt.Errorf("line %d: more than %d keys", n, maxKeys)
		}
		k, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		k.line = n
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("no key is in it")
	}
	return keys, nil
}

// AddLine adds a line to a key file. Where there is none, it is made, for its owner alone. A
// file that has a fault, or would have one with the line, such as a name twice, stays as it is.
func AddLine(path, line string) error {
	var b []byte
	info, err := os.Stat(path)
	if err == nil {
		b, err = readFile(path, info)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	line += "\n"
	if len(b) > 0 && b[len(b)-1] != '\n' {
		line = "\n" + line
	}
	keys, err := parseFile(append(b, line...))
	if err == nil {
		_, err = merge(nil, keys)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Sync(), f.Close())
}

// parseLine reads a line that has a key.
func parseLine(line string) (key, error) {
	fields, err := splitFields(line)
	if err != nil {
		return key{}, err
	}
	n := 0
	for n < len(fields) && !isOption(fields[n]) {
		n++
	}
	var name, text string
	switch n {
	case 0:
		return key{}, errors.New("the key is missing")
	case 1:
		text = fields[0]
	case 2:
		name, text = fields[0], fields[1]
	default:
		return key{}, errors.New("too many fields; want a name, a key and options")
	}
	hash, err := hashKey(text)
	if err != nil {
		return key{}, fmt.Errorf("the key %w", err)
	}
	id, err := idOf(name, hash)
	if err != nil {
		return key{}, err
	}
	k := key{hash: hash, identity: Unrestricted(id)}
	return k, k.setOptions(fields[n:])
}

// ValidName reports whether a key in a key file may have that name: 1 to 64 of the
// characters a-z, A-Z, 0-9, _ . @ -, and not what begins as keys do, for names
// get into logs.
func ValidName(name string) bool {
	return nameForm.MatchString(name) && !strings.HasPrefix(name, newKeyPrefix)
}

// idOf returns the identity of a key with a name, or without.
func idOf(name string, hash [sha256.Size]byte) (string, error) {
	switch {
	case name == "":
		return defaultID(hash), nil
	case !nameForm.MatchString(name):
		return "", errors.New("the name is not 1 to 64 of the characters a-z, A-Z, 0-9, _ . @ -")
	case !ValidName(name):
		return "", errors.New("the name looks like a key")
	}
	return name, nil
}

// isOption reports whether a field is an option, or means to be.
func isOption(field string) bool {
	for _, name := range options {
		if strings.HasPrefix(field, name+"=") {
			return true
		}
	}
	return optionForm.MatchString(field)
}

// splitFields splits a line at white space outside of quoted values, and takes
// the quotation marks away.
func splitFields(line string) ([]string, error) {
	var fields []string
	for line = strings.TrimLeft(line, " \t"); line != ""; line = strings.TrimLeft(line, " \t") {
		end := strings.IndexAny(line, " \t\"")
		if end < 0 || line[end] != '"' {
			if end < 0 {
				end = len(line)
			}
			if line[0] == '#' {
				return nil, errors.New("a comment must stand on a line of its own")
			}
			fields = append(fields, line[:end])
			line = line[end:]
			continue
		}
		value, rest, ok := strings.Cut(line[end+1:], `"`)
		if !isQuotable(line[:end]) || !ok || rest != "" && rest[0] != ' ' && rest[0] != '\t' {
			return nil, errors.New(`a quotation mark out of place; want option="value"`)
		}
		fields = append(fields, line[:end]+value)
		line = rest
	}
	return fields, nil
}

// isQuotable reports whether a quoted value may follow: after the equals sign of
// an option.
func isQuotable(s string) bool {
	name, value, ok := strings.Cut(s, "=")
	return ok && value == "" && slices.Contains(options, name)
}

// setOptions sets the options of a line.
func (k *key) setOptions(fields []string) error {
	seen := make(map[string]bool)
	for _, field := range fields {
		if !isOption(field) {
			return errors.New("a name and a key must stand before the options")
		}
		name, value, _ := strings.Cut(field, "=")
		if seen[name] {
			return errors.New("an option is already specified")
		}
		seen[name] = true
		var err error
		switch name {
		case optModels:
			err = k.setModels(value)
		case optScope:
			err = k.setScope(value)
		case optExpires:
			if k.expires, err = time.Parse(time.RFC3339, value); err != nil {
				err = errors.New("expires is not a time such as 2030-12-31T23:59:59Z")
			}
		case optSecret:
			if k.signer, err = webhook.NewSigner(strings.Split(value, ",")...); err != nil {
				err = fmt.Errorf("webhook_secret: %w", err)
			}
		default:
			err = errors.New("unrecognized option; want models=, scope=, expires= or webhook_secret= (a key with = inside must be given by its hash)")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setModels reads a list of models.
func (k *key) setModels(list string) error {
	k.identity.models = make(map[string]bool)
	for model := range strings.SplitSeq(list, ",") {
		switch model = foldModel(model); model {
		case "":
			return errors.New("models has an empty name")
		case "*":
			return errors.New("models has a *; for all models, leave models out")
		}
		k.identity.models[model] = true
	}
	return nil
}

// setScope reads a scope.
func (k *key) setScope(scope string) error {
	switch scope {
	case scopeRead:
		k.identity.run = false
	case scopeRun:
		k.identity.read = false
	default:
		return errors.New("scope is neither read nor run")
	}
	return nil
}
