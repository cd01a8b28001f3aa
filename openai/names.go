// SPDX-License-Identifier: Apache-2.0

package openai

// manyNames is how many fields an object has whose names are compared one by one.
const manyNames = 32

// nameSet is the names of an object that is open.
type nameSet struct {
	s    *scanner
	base int                 // of them in s.names
	many map[string]struct{} // of all of them, once they are many
}

// add adds a name. It is false when the object has it already.
func (n *nameSet) add(name []byte) bool {
	all := append(n.s.names, name)
	n.s.names = all
	if len(all)-n.base <= manyNames {
		for _, other := range all[n.base : len(all)-1] {
			if string(other) == string(name) {
				return false
			}
		}
		return true
	}
	if n.many == nil {
		n.many = make(map[string]struct{})
		for _, other := range all[n.base : len(all)-1] {
			n.many[string(other)] = struct{}{}
		}
	}
	size := len(n.many)
	n.many[string(name)] = struct{}{}
	return len(n.many) > size
}

// done forgets the names.
func (n *nameSet) done() { n.s.names = n.s.names[:n.base] }
