// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"log/slog"
	"sync"

	"github.com/caddyserver/caddy/v2"
	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
)

// bridgeLogs sends what libp2p and its family log to Caddy's log, where the
// operator expects it, under the name agentfm.libp2p. It takes them one level
// down: a stranger's broken stream is no warning of ours.
var bridgeLogs = sync.OnceFunc(func() {
	gologshim.SetDefaultHandler(libp2pHandler{})
	golog.SetPrimaryCore(libp2pCore{})
})

// libp2pHandler is the slog side of the bridge. Caddy's logger is looked up for
// each record, since a reload may replace it.
type libp2pHandler struct {
	attrs []slog.Attr
}

func (h libp2pHandler) target() slog.Handler {
	return zapslog.NewHandler(caddy.Log().Core(), zapslog.WithName("agentfm.libp2p")).WithAttrs(h.attrs)
}

// lower takes a level down: errors are warnings, all else is for debugging.
func lower(l slog.Level) slog.Level {
	if l >= slog.LevelError {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (h libp2pHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.target().Enabled(ctx, lower(l))
}

func (h libp2pHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lower(r.Level)
	return h.target().Handle(ctx, r)
}

func (h libp2pHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return libp2pHandler{attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

func (h libp2pHandler) WithGroup(string) slog.Handler { return h }

// libp2pCore is the zap side of the bridge, for the packages that use go-log.
type libp2pCore struct {
	fields []zapcore.Field
}

func (c libp2pCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.ErrorLevel && caddy.Log().Core().Enabled(zapcore.WarnLevel)
}

func (c libp2pCore) With(f []zapcore.Field) zapcore.Core {
	return libp2pCore{fields: append(c.fields[:len(c.fields):len(c.fields)], f...)}
}

func (c libp2pCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c libp2pCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	e.Level, e.LoggerName = zapcore.WarnLevel, "agentfm.libp2p."+e.LoggerName
	return caddy.Log().Core().With(c.fields).Write(e, f)
}

func (c libp2pCore) Sync() error { return nil }
