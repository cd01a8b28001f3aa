// SPDX-License-Identifier: Apache-2.0

package unzip

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Limits of a name, in bytes: those of most file systems.
const (
	maxName = 4096
	maxPart = 255
)

// checkName returns the name without the slash that marks a folder, or an error for one
// that is not good on every system.
func checkName(name string) (clean string, folder bool, err error) {
	bad := func(what string) (string, bool, error) {
		return "", false, refuse("%.100q: the name %s", name, what)
	}
	clean, folder = strings.CutSuffix(name, "/")
	switch {
	case clean == "":
		return bad("is empty")
	case len(name) > maxName:
		return bad("is too long")
	case !utf8.ValidString(name):
		return bad("is not UTF-8")
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
		return bad("has a control character")
	case strings.HasPrefix(name, "/"):
		return bad("begins at the root")
	case strings.ContainsAny(name, `\:`):
		return bad("has a backslash or a colon")
	}
	for part := range strings.SplitSeq(clean, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return bad("leads elsewhere")
		case len(part) > maxPart:
			return bad("has a part that is too long")
		case strings.HasSuffix(part, ".") || strings.HasSuffix(part, " "):
			return bad("has a part that ends with a dot or a space")
		case isDevice(part):
			return bad("is that of a device on Windows")
		}
	}
	return clean, folder, nil
}

// isDevice reports whether Windows takes a name for that of a device, with any extension.
func isDevice(part string) bool {
	base, _, _ := strings.Cut(part, ".")
	base = strings.ToUpper(strings.TrimRight(base, " "))
	switch base {
	case "CON", "PRN", "AUX", "NUL", "CLOCK$", "CONIN$", "CONOUT$":
		return true
	}
	for _, port := range []string{"COM", "LPT"} {
		if digit, ok := strings.CutPrefix(base, port); ok && len(digit) > 0 && strings.Contains("0123456789¹²³", digit) && utf8.RuneCountInString(digit) == 1 {
			return true
		}
	}
	return false
}

// Types of files in Unix modes, and an attribute of Windows.
const (
	typeMask   = 0xf000
	typeFolder = 0x4000
	typeFile   = 0x8000

	attributeFolder = 0x10
	attributeLink   = 0x400
)

// checkType refuses links, devices and all else that is not a file or a folder, and what is
// one by its name and the other by its attributes.
func checkType(e *entry, attributes uint32) error {
	switch attributes >> 16 & typeMask {
	case 0:
	case typeFile:
		if e.folder {
			return refuse("%q: it is a file by its mode, and a folder by its name", e.name)
		}
	case typeFolder:
		if !e.folder {
			return refuse("%q: it is a folder by its mode, and a file by its name", e.name)
		}
	default:
		return refuse("%q: it is neither a file nor a folder", e.name)
	}
	if attributes&attributeLink != 0 || attributes&attributeFolder != 0 && !e.folder {
		return refuse("%q: it is not a file by its attributes", e.name)
	}
	return nil
}

// tree is the names of a zip file, to find those that clash on some system.
type tree struct {
	root node
	left int // how many there may still be
}

// node is a name below another.
type node struct {
	name  string // as it was first given
	file  bool
	given bool // by an entry of its own
	below map[string]*node
}

// newTree returns an empty one for so many names.
func newTree(limit int) *tree { return &tree{left: limit} }

// add adds a name and the folders above it.
func (t *tree) add(name string, folder bool) error {
	at := &t.root
	for part := range strings.SplitSeq(name, "/") {
		if at.file {
			return refuse("%q: it lies below a file", name)
		}
		key := norm.NFC.String(strings.ToLower(strings.ToUpper(norm.NFC.String(part))))
		next := at.below[key]
		if next == nil {
			if t.left--; t.left < 0 {
				return refuse("it has too many files and folders")
			}
			if at.below == nil {
				at.below = make(map[string]*node)
			}
			next = &node{name: part}
			at.below[key] = next
		}
		if next.name != part {
			return refuse("%q: on some systems, its name is that of another", name)
		}
		at = next
	}
	if at.given || !folder && at.below != nil {
		return refuse("%q: it is there twice", name)
	}
	at.given, at.file = true, !folder
	return nil
}
