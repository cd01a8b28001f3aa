// SPDX-License-Identifier: Apache-2.0

//go:build unix && race

package e2e

// raceEnabled says whether the tests are built with the race detector.
const raceEnabled = true
