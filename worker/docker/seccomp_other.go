// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package docker

// seccompProfile returns nothing: the engine's own profile it is.
func seccompProfile() (string, error) { return "", nil }
