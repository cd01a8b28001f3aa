// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// PeerService is about the reputation of peers: what is said of them in signed entries of a
// ledger.
type PeerService struct{ c *Client }

// List returns the workers on the mesh with what the gateway knows of them; includeOffline
// adds those that were online lately.
func (s *PeerService) List(ctx context.Context, includeOffline bool) ([]Worker, error) {
	return s.c.Workers.List(ctx, WorkerFilter{IncludeOffline: includeOffline})
}

// PeerSummary is what a gateway knows of a peer.
type PeerSummary struct {
	PeerID   string    `json:"peer_id"`
	Agent    string    `json:"agent_name,omitzero"`
	Author   string    `json:"author,omitzero"`
	Online   bool      `json:"online"`
	LastSeen time.Time `json:"last_seen,omitzero"`

	// HonestyScore is from -1 to 1; 0 is that of whom nobody has rated.
	HonestyScore float64 `json:"honesty_score"`
	// IsEquivocator says that it has signed two histories that contradict each other.
	IsEquivocator bool `json:"is_equivocator"`
	// DispatchAllowed says that the gateway gives it tasks; RefuseReason, why it does not:
	// "peer_is_equivocator", "reputation_below_floor", or "ledger_unreadable".
	DispatchAllowed bool   `json:"dispatch_allowed"`
	RefuseReason    string `json:"dispatch_refuse_reason,omitzero"`
	// OnProbation says that the gateway knows little good of the peer, and sends it few tasks.
	OnProbation bool `json:"on_probation,omitzero"`

	// EntriesCount is how many ratings of it and comments about it there are.
	EntriesCount int       `json:"entries_count"`
	LastEntryAt  time.Time `json:"last_entry_at,omitzero"`

	ImageRef    string `json:"advertised_image_ref,omitzero"`
	ImageDigest string `json:"advertised_image_digest,omitzero"`
	Capability  string `json:"advertised_capability,omitzero"`
	// Raters is who rated it; nil where the gateway does not say.
	Raters *RaterSummary `json:"rater_summary,omitzero"`
}

// RaterSummary counts raters. Verified are those who are themselves rated as honest.
type RaterSummary struct {
	Verified   int `json:"verified_raters_count"`
	Unverified int `json:"unverified_raters_count"`
}

// peerPath is the path of a peer, and of what is known of it.
func peerPath(peerID, what string) (string, error) {
	if peerID == "" || peerID == "." || peerID == ".." {
		return "", invalid("peer_id", "the peer id is missing")
	}
	return "/v1/peers/" + url.PathEscape(peerID) + what, nil
}

// getPeer asks for what is known of a peer.
func getPeer[T any](ctx context.Context, s *PeerService, peerID, what string, query url.Values) (*T, error) {
	path, err := peerPath(peerID, what)
	if err != nil {
		return nil, err
	}
	var v T
	if err := s.c.get(ctx, path, query, &v); err != nil {
		return nil, err
	}
	return &v, nil
}

// Get returns what the gateway knows of a peer.
func (s *PeerService) Get(ctx context.Context, peerID string) (*PeerSummary, error) {
	return getPeer[PeerSummary](ctx, s, peerID, "", nil)
}

// Reputation is how a peer is rated.
type Reputation struct {
	PeerID string `json:"peer_id"`
	// Scores are from -1 to 1, by dimension: "honesty".
	Scores        map[string]float64 `json:"scores"`
	RatingCount   int                `json:"rating_count"`
	LastUpdated   time.Time          `json:"last_updated,omitzero"`
	IsEquivocator bool               `json:"is_equivocator"`
	ImageRef      string             `json:"agent_image_ref,omitzero"`
	ImageDigest   string             `json:"agent_image_digest,omitzero"`
	Capability    string             `json:"agent_capability,omitzero"`
}

// Reputation returns how a peer is rated.
func (s *PeerService) Reputation(ctx context.Context, peerID string) (*Reputation, error) {
	return getPeer[Reputation](ctx, s, peerID, "/reputation", nil)
}

// LogEntry is a signed entry about a peer.
type LogEntry struct {
	ReceivedAt time.Time `json:"received_at,omitzero"`
	Kind       string    `json:"kind"` // "Rating" or "Comment"
	Hash       string    `json:"entry_hash"`

	RaterPeerID  string  `json:"rater_peer_id"`
	RaterStatus  string  `json:"rater_status"` // "verified" or "unverified"
	RaterHonesty float64 `json:"rater_honesty_score"`

	// Of a rating.
	Dimension string  `json:"dimension,omitzero"`
	Score     float64 `json:"score,omitzero"`
	Context   string  `json:"context,omitzero"`

	// Of a comment. TextCID is for [PeerService.CommentBody].
	Language string `json:"language,omitzero"`
	TextCID  string `json:"text_cid,omitzero"`
}

// LogPage is a part of what is said of the peer Subject.
type LogPage struct {
	Subject  string     `json:"subject"`
	Limit    int        `json:"limit"`
	Offset   int        `json:"offset"`
	Returned int        `json:"returned"`
	Entries  []LogEntry `json:"entries"`
}

// DefaultLogPage is how many entries are fetched at once.
const DefaultLogPage = 50

// LogPage returns so many entries about a peer, the newest first, after leaving out the
// first offset of them. A limit of 0 is [DefaultLogPage].
func (s *PeerService) LogPage(ctx context.Context, peerID string, limit, offset int) (*LogPage, error) {
	if limit == 0 {
		limit = DefaultLogPage
	}
	return getPeer[LogPage](ctx, s, peerID, "/log", url.Values{"limit": {strconv.Itoa(limit)}, "offset": {strconv.Itoa(offset)}})
}

// Log returns the entries about a peer, the newest first, and fetches them page by page
// while they are looped over. An error is the last. One that is added meanwhile may show
// another twice.
func (s *PeerService) Log(ctx context.Context, peerID string) iter.Seq2[LogEntry, error] {
	return func(yield func(LogEntry, error) bool) {
		for offset := 0; ; {
			page, err := s.LogPage(ctx, peerID, 0, offset)
			if err != nil {
				yield(LogEntry{}, err)
				return
			}
			for _, e := range page.Entries {
				if !yield(e, nil) {
					return
				}
			}
			offset += len(page.Entries)
			if len(page.Entries) < DefaultLogPage {
				return
			}
		}
	}
}

// CommentRequest is a comment about a peer, that the gateway signs with its own key.
type CommentRequest struct {
	Text     string `json:"text"`
	Language string `json:"language,omitzero"`
	// Rating is from -1 to 1; nil for none.
	Rating *float64 `json:"rating,omitzero"`
	// AttachedRatingHash is the hash of a rating that the comment explains.
	AttachedRatingHash string `json:"attached_rating_hash,omitzero"`
}

// CommentReceipt says where a comment is.
type CommentReceipt struct {
	CID        string `json:"cid"` // of its text
	LedgerHash string `json:"ledger_hash"`
}

// Comment adds a comment about a peer to the gateway's ledger, which nothing takes back. With
// an [IdempotencyKey] it is sent again where that may help, and signed once.
func (s *PeerService) Comment(ctx context.Context, peerID string, r CommentRequest, opts ...CallOption) (*CommentReceipt, error) {
	path, err := peerPath(peerID, "/comments/self")
	if err != nil {
		return nil, err
	}
	var receipt CommentReceipt
	if _, err := s.c.call(ctx, request{method: http.MethodPost, path: path, body: r}.with(opts), &receipt); err != nil {
		return nil, err
	}
	return &receipt, nil
}

// CommentBody returns the text of a comment. That it is the text that was signed is
// checked: its hash is in the cid.
func (s *PeerService) CommentBody(ctx context.Context, peerID, cid string) (string, error) {
	path, err := peerPath(peerID, "/comments/"+url.PathEscape(cid))
	if err != nil {
		return "", err
	}
	if cid == "" {
		return "", invalid("cid", "the cid of the comment is missing")
	}
	var body []byte
	r := request{method: http.MethodGet, path: path, accept: "text/plain", again: true}
	err = s.c.retry(ctx, r, func(ctx context.Context, resp *http.Response) error {
		defer resp.Body.Close()
		body, err = readAll(ctx, resp, maxComment, r.doing())
		return err
	})
	if err != nil {
		return "", err
	}
	if !hasCID(body, cid) {
		return "", &Error{Kind: ErrProof, Param: "cid", Message: "the text is not the one that the cid is of"}
	}
	return string(body), nil
}
