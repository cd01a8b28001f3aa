// SPDX-License-Identifier: Apache-2.0

package router

import (
	"cmp"
	"math/rand/v2"
)

// LeastLoaded chooses the candidate with the smallest share of its slots in
// use; among those the one with the lowest CPU use, and among those any.
type LeastLoaded struct{}

// Select implements [Selector].
func (LeastLoaded) Select(candidates []Candidate) int {
	best, ties := 0, 1
	for i := 1; i < len(candidates); i++ {
		switch compareLoad(candidates[i], candidates[best]) {
		case -1:
			best, ties = i, 1
		case 0: // each of the ties is kept with the same chance
			if ties++; rand.IntN(ties) == 0 {
				best = i
			}
		}
	}
	return best
}

// compareLoad orders two candidates by load, then CPU.
func compareLoad(a, b Candidate) int {
	// a.Load/a.MaxTasks < b.Load/b.MaxTasks, without the division
	if c := cmp.Compare(a.Load*b.MaxTasks, b.Load*a.MaxTasks); c != 0 {
		return c
	}
	return cmp.Compare(a.CPU, b.CPU)
}

// Interface guard
var _ Selector = LeastLoaded{}
