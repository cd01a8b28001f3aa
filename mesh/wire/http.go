// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// HTTPProtocol carries HTTP/1.1 over streams, as the HTTP specification of libp2p
// has it. A stream serves one request after another. It is mesh protocol 2, which
// is ours; a worker that speaks it says so in its telemetry.
const HTTPProtocol = "/http/1.1"

// ProtocolHTTP is the number of the protocol in [Telemetry.Protocol].
const ProtocolHTTP = 2

// Paths of a worker. Those of OpenAI's API are beside them, under /v1/.
const (
	// PathProtocols lists what the worker serves, as libp2p has it.
	PathProtocols = "/.well-known/libp2p/protocols"
	// PathProfile is the worker's [Profile].
	PathProfile = "/agentfm/v2/profile"
	// PathTasks takes a task, and holds what tasks have left.
	PathTasks = "/agentfm/v2/tasks"
)

// ArtifactPath is where the zip of a task's files is, until the gateway deletes it
// or some minutes have passed.
func ArtifactPath(taskID string) string { return PathTasks + "/" + taskID + "/artifacts" }

// ArtifactTag is the entity tag of a zip with that SHA-256.
func ArtifactTag(sum string) string { return `"sha256:` + sum + `"` }

// Routes are the routes of OpenAI's API that a worker may serve itself. The order is
// part of nothing that goes over the wire.
var Routes = [...]string{
	"/v1/chat/completions",
	"/v1/completions",
	"/v1/embeddings",
	"/v1/responses",
	"/v1/audio/speech",
	"/v1/audio/transcriptions",
	"/v1/audio/translations",
	"/v1/images/generations",
	"/v1/images/edits",
	"/v1/images/variations",
	"/v1/moderations",
	"/v1/rerank",
}

// Headers of a worker's answers, spelled as Go has them.
const (
	// HeaderRefusal says that the worker did not begin to work, and why. Such a
	// request may be sent to another.
	HeaderRefusal = "Agentfm-Refusal"
	// HeaderLoad is how many tasks the worker runs and how many it takes at once,
	// as "2/8".
	HeaderLoad = "Agentfm-Load"
)

// Refusal is a value of [HeaderRefusal].
type Refusal string

// Reasons of a refusal.
const (
	// RefusalCapacity says that the worker is full, or its machine is busy.
	RefusalCapacity Refusal = "capacity"
	// RefusalUnavailable says that what runs the tasks is not ready, or does not
	// answer.
	RefusalUnavailable Refusal = "unavailable"
	// RefusalForbidden says that the worker does not serve this gateway.
	RefusalForbidden Refusal = "forbidden"
	// RefusalRoute says that the worker does not serve this route.
	RefusalRoute Refusal = "route"
	// RefusalModel says that the worker does not have the model, or not any more.
	RefusalModel Refusal = "model"
	// RefusalRequest says that the request is not one that the worker takes.
	RefusalRequest Refusal = "request"
)

// Limits of a profile.
const (
	// MaxProfile is the largest profile in bytes.
	MaxProfile = 64 << 10
	// MaxModels is how many models one worker may offer.
	MaxModels = 64
	maxRoutes = 64
)

// Profile is what a worker says of itself when it is asked: its telemetry, and
// what does not fit there.
type Profile struct {
	Telemetry
	// Models are all models that it offers, by the names that clients ask for; the
	// first is [Telemetry.Model].
	Models []string `json:"models,omitempty"`
	// Routes are the routes of OpenAI's API that it serves itself.
	Routes []string `json:"routes,omitempty"`
	// MaxBody is the largest request in bytes that it takes on these routes.
	MaxBody int64 `json:"max_body_bytes,omitempty"`
}

// ParseProfile reads a profile and checks it as [ParseTelemetry] does telemetry.
func ParseProfile(b []byte) (Profile, error) { return parse[Profile]("profile", b, MaxProfile) }

// Validate returns an error that names the first field whose value no honest
// worker has.
func (p Profile) Validate() error {
	if err := p.Telemetry.Validate(); err != nil {
		return err
	}
	switch {
	case len(p.Models) > MaxModels:
		return fmt.Errorf("%d models, at most %d", len(p.Models), MaxModels)
	case len(p.Routes) > maxRoutes:
		return fmt.Errorf("%d routes, at most %d", len(p.Routes), maxRoutes)
	case p.MaxBody < 0:
		return errors.New("max_body_bytes is negative")
	}
	for _, m := range p.Models {
		if err := CheckModel(m); err != nil {
			return err
		}
	}
	if i := slices.IndexFunc(p.Routes, func(r string) bool { return len(r) > maxNameText || !strings.HasPrefix(r, "/v1/") }); i >= 0 {
		return fmt.Errorf("route %.80q is not one of OpenAI's", p.Routes[i])
	}
	return nil
}

// CheckModel returns an error when a name cannot be that of a model: it is empty,
// over 128 characters, steers a terminal, or reads like a peer id.
func CheckModel(name string) error {
	switch {
	case strings.TrimSpace(name) == "":
		return errors.New("a model has no name")
	case utf8.RuneCountInString(name) > maxNameText:
		return fmt.Errorf("model %.80q is over %d characters", name, maxNameText)
	case strings.ContainsFunc(name, unprintable):
		return fmt.Errorf("model %.80q contains control characters", name)
	case PosesAsPeer(name):
		return errors.New("model reads like a peer id; want another name")
	}
	return nil
}

// ReadBody reads a body to its end. One whose length was announced, and is not over
// trusted bytes, goes where it stays; any other grows as it comes, whatever was
// announced, and takes little more memory than its own.
func ReadBody(r io.Reader, length, trusted int64) ([]byte, error) {
	if length <= 0 || length > trusted {
		return io.ReadAll(r)
	}
	b := make([]byte, length+1)
	if _, err := io.ReadFull(r, b[:length]); err != nil {
		return nil, err
	}
	n, err := io.ReadFull(r, b[length:]) // nothing; but a server is to see the end
	if err != nil {
		if err == io.EOF {
			err = nil
		}
		return b[:length], err
	}
	rest, err := io.ReadAll(r)
	return append(b[:int(length)+n], rest...), err
}

// maxErrorMessage bounds a worker's words in an error, in bytes.
const maxErrorMessage = 500

// ErrorMessage returns what an answer says went wrong: the message of OpenAI's
// envelope, on one line and without what steers a terminal.
func ErrorMessage(body []byte) string {
	var envelope struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &envelope) != nil || envelope.Error.Message == "" {
		return "no reason was given"
	}
	message := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, envelope.Error.Message)
	if len(message) > maxErrorMessage {
		message = strings.ToValidUTF8(message[:maxErrorMessage], "") + "…"
	}
	return message
}
