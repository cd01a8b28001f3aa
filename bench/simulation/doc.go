// SPDX-License-Identifier: Apache-2.0

// Package simulation has gateways choose workers on virtual time: the router is the
// real one, clients, network and workers are not. It answers how much longer than
// with an omniscient gateway the slowest hundredth of the requests take. It is all
// tests; see the README of bench.
package simulation
