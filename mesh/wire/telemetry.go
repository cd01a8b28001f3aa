// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Values of [Telemetry.Status].
const (
	StatusAvailable = "AVAILABLE"
	StatusBusy      = "BUSY"
)

// Limits of telemetry. The text limits are in characters; operators of AgentFM
// 1.3 are held to less, so that nothing honest is refused.
const (
	maxNameText        = 128
	maxDescriptionText = 3000
	maxTasks           = 100_000
	maxAmount          = 1e6 // GB of memory, CPU cores
	maxPercent         = 1000
	maxProtocol        = 1000
)

// Telemetry is what a worker announces of itself about every two seconds.
// Fields that AgentFM 1.3 does not know are ignored by it.
type Telemetry struct {
	PeerID       string  `json:"peer_id"`
	CPUCores     int     `json:"cpu_cores"`
	CPUPercent   float64 `json:"cpu_usage_pct"`
	RAMFreeGB    float64 `json:"ram_free_gb"`
	Model        string  `json:"model"`
	AgentName    string  `json:"agent_name"`
	Description  string  `json:"agent_desc"`
	Status       string  `json:"status"`
	HasGPU       bool    `json:"has_gpu"`
	GPUUsedGB    float64 `json:"gpu_used_gb"`
	GPUTotalGB   float64 `json:"gpu_total_gb"`
	GPUPercent   float64 `json:"gpu_usage_pct"`
	CurrentTasks int     `json:"current_tasks"`
	MaxTasks     int     `json:"max_tasks"`
	Author       string  `json:"author"`
	IsWitness    bool    `json:"is_witness,omitempty"`
	ImageDigest  string  `json:"agent_image_digest,omitempty"`
	ImageRef     string  `json:"agent_image_ref,omitempty"`
	Capability   string  `json:"agent_capability,omitempty"`
	// MaxPrompt is the largest prompt in bytes that the worker takes. It is
	// ours; 0, as AgentFM 1.3 workers have it, means [MaxArgumentPrompt].
	MaxPrompt int `json:"max_prompt_bytes,omitempty"`
	// Duplex says that the worker takes a task whose gateway keeps its side of
	// the stream open, and so notices at once when the gateway resets it. It is
	// ours: AgentFM 1.3 waits for the gateway to close its side, after which a
	// worker cannot see a reset before it writes again.
	Duplex bool `json:"duplex,omitempty"`
	// Protocol is the newest mesh protocol that the worker speaks beside the first.
	// It is ours; see [ProtocolHTTP].
	Protocol int `json:"mesh_protocol,omitempty"`
	// ProfileTag is another one when the worker's [Profile] has changed in what
	// telemetry does not say. It is ours, and empty when there is nothing of that.
	ProfileTag string `json:"profile,omitempty"`
	// Preparing says what a worker does before it can take tasks, such as "pulling image",
	// and PreparingPercent how far that is. They are ours, and empty when it is ready.
	Preparing        string  `json:"preparing,omitempty"`
	PreparingPercent float64 `json:"preparing_pct,omitempty"`
}

// ParseTelemetry reads one telemetry object and checks its size, types and
// ranges. Every error wraps [ErrBadFrame] or [ErrFrameTooLarge].
func ParseTelemetry(b []byte) (Telemetry, error) {
	return parse[Telemetry]("telemetry", b, MaxTelemetry)
}

// parse reads an object of at most limit bytes and checks it. what names it in errors.
func parse[T interface{ Validate() error }](what string, b []byte, limit int) (T, error) {
	var v T
	if len(b) > limit {
		return v, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrFrameTooLarge, what, len(b), limit)
	}
	if !utf8.Valid(b) {
		return v, fmt.Errorf("%w: %s is not UTF-8", ErrBadFrame, what)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("%w: %s: %w", ErrBadFrame, what, err)
	}
	if err := v.Validate(); err != nil {
		return v, fmt.Errorf("%w: %s: %w", ErrBadFrame, what, err)
	}
	return v, nil
}

// Validate returns an error that names the first field whose value no honest
// worker has.
func (t Telemetry) Validate() error {
	for _, f := range []struct {
		name     string
		v        float64
		min, max float64
	}{
		{"cpu_cores", float64(t.CPUCores), 1, maxAmount},
		{"cpu_usage_pct", t.CPUPercent, 0, maxPercent},
		{"ram_free_gb", t.RAMFreeGB, 0, maxAmount},
		{"gpu_used_gb", t.GPUUsedGB, 0, maxAmount},
		{"gpu_total_gb", t.GPUTotalGB, 0, maxAmount},
		{"gpu_usage_pct", t.GPUPercent, 0, maxPercent},
		{"current_tasks", float64(t.CurrentTasks), 0, maxTasks},
		{"max_tasks", float64(t.MaxTasks), 1, maxTasks},
		{"max_prompt_bytes", float64(t.MaxPrompt), 0, MaxTaskFrame},
		{"preparing_pct", t.PreparingPercent, 0, 100},
		{"mesh_protocol", float64(t.Protocol), 0, maxProtocol},
	} {
		if f.v < f.min || f.v > f.max {
			return fmt.Errorf("%s %v is not within %v and %v", f.name, f.v, f.min, f.max)
		}
	}
	if t.Status != StatusAvailable && t.Status != StatusBusy {
		return fmt.Errorf("status %q", t.Status)
	}
	for _, f := range []struct {
		name, v string
		max     int
	}{
		{"peer_id", t.PeerID, maxNameText},
		{"model", t.Model, maxNameText},
		{"agent_name", t.AgentName, maxNameText},
		{"author", t.Author, maxNameText},
		{"agent_capability", t.Capability, maxNameText},
		{"agent_image_digest", t.ImageDigest, maxNameText},
		{"agent_image_ref", t.ImageRef, 2 * maxNameText},
		{"agent_desc", t.Description, maxDescriptionText},
		{"profile", t.ProfileTag, maxNameText},
		{"preparing", t.Preparing, maxNameText},
	} {
		if utf8.RuneCountInString(f.v) > f.max {
			return fmt.Errorf("%s is over %d characters", f.name, f.max)
		}
		if strings.ContainsFunc(f.v, unprintable) {
			return fmt.Errorf("%s contains control characters", f.name)
		}
	}
	switch {
	case t.PeerID == "":
		return errors.New("no peer_id")
	case PosesAsPeer(t.AgentName):
		return errors.New("agent_name reads like a peer id; want another name")
	case PosesAsPeer(t.Model):
		return errors.New("model reads like a peer id; want another name")
	}
	return nil
}

// PosesAsPeer reports whether a name reads like a peer id, in any case: requests
// and keys name workers by either, and who means a peer must not get another.
func PosesAsPeer(name string) bool {
	runes := []rune(strings.TrimSpace(name))
	if len(runes) < len("Qm")+44 || slices.ContainsFunc(runes, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		return false
	}
	for _, prefix := range []string{"12D3KooW", "16Uiu2HA", "Qm"} {
		if strings.EqualFold(string(runes[:len(prefix)]), prefix) {
			return true
		}
	}
	return false
}

// unprintable reports whether r can steer a terminal.
func unprintable(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r'
}

// PromptLimit is the largest prompt in bytes that the worker takes.
func (t Telemetry) PromptLimit() int {
	if t.MaxPrompt == 0 {
		return MaxArgumentPrompt
	}
	return t.MaxPrompt
}
