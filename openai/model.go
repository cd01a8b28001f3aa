// SPDX-License-Identifier: Apache-2.0

package openai

// ModelList is the answer of GET /v1/models.
type ModelList struct {
	Object string  `json:"object"`
	Data   []Model `json:"data"`
}

// Model is a worker as an entry of the list of models. OpenAI's fields come
// first; ours begin with agentfm_, so that clients pass over them.
type Model struct {
	// ID is the worker's peer id. An entry that was asked for by another name
	// has that name as its ID, and the peer id in PeerID.
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	Description string `json:"description,omitzero"`

	PeerID string `json:"agentfm_peer_id,omitzero"`
	Name   string `json:"agentfm_name"`
	Engine string `json:"agentfm_engine"`
	// Models are all models of a worker that offers several.
	Models        []string `json:"agentfm_models,omitzero"`
	Status        string   `json:"agentfm_status"`
	Hardware      string   `json:"agentfm_hardware"`
	CurrentTasks  int      `json:"agentfm_current_tasks"`
	MaxTasks      int      `json:"agentfm_max_tasks"`
	CPUPercent    float64  `json:"agentfm_cpu_usage_pct"`
	RAMFreeGB     float64  `json:"agentfm_ram_free_gb"`
	HasGPU        bool     `json:"agentfm_has_gpu"`
	GPUUsedGB     float64  `json:"agentfm_gpu_used_gb"`
	GPUTotalGB    float64  `json:"agentfm_gpu_total_gb"`
	GPUPercent    float64  `json:"agentfm_gpu_usage_pct"`
	Preparing     string   `json:"agentfm_preparing,omitzero"`
	Percent       float64  `json:"agentfm_preparing_pct,omitzero"`
	ImageRef      string   `json:"agentfm_image_ref,omitzero"`
	ImageDigest   string   `json:"agentfm_image_digest,omitzero"`
	Capability    string   `json:"agentfm_capability,omitzero"`
	HonestyScore  float64  `json:"agentfm_honesty_score"`
	IsEquivocator bool     `json:"agentfm_is_equivocator"`
	Dispatchable  bool     `json:"agentfm_dispatch_allowed"`
	RefuseReason  string   `json:"agentfm_dispatch_refuse_reason,omitzero"`
	Probation     bool     `json:"agentfm_on_probation"`
	Online        bool     `json:"agentfm_online"`
	LastSeen      string   `json:"agentfm_last_seen,omitzero"` // RFC 3339
}
