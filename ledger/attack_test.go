// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// What a mesh is in which some are hostile.
const (
	meshWorkers = 200
	meshHostile = 60
	meshTasks   = 4000
	meshLate    = 20 // honest workers that come when all others are known
	meshSlots   = 4
	atOnce      = 20 // tasks that run at one time
	learning    = 200
)

// TestAttacks plays a mesh of which three in ten are hostile, with the store, the gate and the
// router as they are. Some cheat until they are refused and come back under new names, some
// do so after each task, some do well for long first, some cheat now and then. All praise
// each other and slander the honest and the new, with dates of the past and of the future,
// also when they are refused. Honest workers fail one task in fifty. No honest one may ever
// be refused, of the tasks after the first 200 at most one in fifty may go to who cheats,
// and the vote of one stranger moves no score by more than 0.05.
func TestAttacks(t *testing.T) {
	games := uint64(1)
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		games = 1000
	}
	for n := range games {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { play(t, n, meshHostile) })
		})
	}
}

// TestHonestMesh plays a mesh without hostile workers: each tenth task is for them to be known by,
// of which it takes three.
func TestHonestMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := play(t, 0, 0)
		known := 0
		for _, w := range g.workers {
			if !g.Standing(w.id).Probation {
				known++
			}
		}
		t.Logf("%d of %d workers are known after %d tasks", known, len(g.workers), meshTasks)
		if known < meshTasks/10/3/4 { // trials fail, too, after which there are fewer
			t.Errorf("%d of %d workers are known", known, len(g.workers))
		}
	})
}

// player is a worker of a mesh that is played.
type player struct {
	key  crypto.PrivKey
	id   peer.ID
	name string
	prev wire.Hash

	way   way
	tasks int // that it was sent
	loyal int // how many of them it does well before it cheats
	cpu   float64
}

// way is how a worker behaves.
type way int

const (
	cheat  way = iota // until it is refused; then it comes back
	renew             // comes back after each task
	sleep             // does well first
	now               // cheats now and then
	honest            // does well
)

// cheats reports whether the worker is hostile by now.
func (p *player) cheats() bool { return p.way != honest && p.tasks >= p.loyal }

// well reports whether it does a task well.
func (p *player) well(r *rand.Rand) bool {
	switch {
	case !p.cheats():
		return r.IntN(50) > 0
	case p.way == now:
		return r.IntN(3) > 0
	}
	return r.IntN(20) == 0
}

// game is a mesh that is played.
type game struct {
	*Ledger
	t       *testing.T
	r       *rand.Rand
	router  *router.Router
	sel     router.Selector
	trust   func(string) mesh.Trust
	workers []*player
	online  map[string]*player
	running []router.Slot
	late    int // tasks after the first ones
	cheated int // of these
	renamed int
}

// play plays a mesh of which so many workers are hostile.
func play(t *testing.T, seed uint64, hostile int) *game {
	time.Sleep(26 * 365 * 24 * time.Hour) // to a time after the one that weights are relative to
	g := newGame(t, seed)
	for i := range meshWorkers - meshLate {
		p := &player{way: honest, cpu: 100 * g.r.Float64()}
		if i < hostile {
			p = hostilePlayer(g.r, way(i%int(honest)))
		}
		g.join(p)
	}
	for n := range meshTasks {
		if n == meshTasks/3 {
			for range meshLate {
				g.join(&player{way: honest, cpu: 100 * g.r.Float64()})
			}
		}
		if n%1000 == 0 {
			g.slander()
		}
		g.task(n >= learning)
		time.Sleep(100 * time.Millisecond)
		if n%10 == 0 {
			g.learn()
		}
	}
	for len(g.running) > 0 {
		g.end()
	}
	g.learn()
	share := float64(g.cheated) / float64(g.late)
	t.Logf("game %d, %T: of %d later tasks, %.2f %% went to cheats, which took %d new names", seed, g.sel, g.late, 100*share, g.renamed)
	if share > 0.02 {
		t.Errorf("game %d: of the later tasks, %.2f %% went to cheats", seed, 100*share)
	}
	g.oneVote()
	return g
}

func hostilePlayer(r *rand.Rand, w way) *player {
	p := &player{way: w}
	if w == sleep {
		p.loyal = 20 + r.IntN(60)
	}
	return p
}

func newGame(t *testing.T, seed uint64) *game {
	s, err := store.Open(t.TempDir(), newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	g := &game{t: t, r: rand.New(rand.NewPCG(seed, 18)), router: router.New(), online: make(map[string]*player)}
	g.sel = []router.Selector{router.LeastLoaded{}, router.PowerOfTwo{}, router.RoundRobin{}, router.Sticky{}}[seed%4]
	g.Ledger = &Ledger{store: s, first: Settings{Floor: mesh.DefaultFloor}, parts: newParts(), ctx: ctx}
	log := zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel), zaptest.WrapOptions(zap.Hooks(func(e zapcore.Entry) error {
		t.Errorf("it logs: %s", e.Message)
		return nil
	})))
	g.node = mesh.Node{Log: func() *zap.Logger { return log }, Trust: func(how func(string) mesh.Trust) { g.trust = how }}
	g.gate.dirty, g.gate.fresh = make(chan struct{}, 1), make(map[string]store.Tally)
	if err := g.score(); err != nil {
		t.Fatal(err)
	}
	return g
}

// join gives a worker a new name, by which it announces itself.
func (g *game) join(p *player) {
	p.key = newKey(g.t)
	p.id, _ = peer.IDFromPrivateKey(p.key)
	p.name, p.prev, p.tasks = p.id.String(), wire.Hash{}, 0
	g.workers = append(g.workers, p)
	g.online[p.name] = p
	g.announce(p)
}

// announce is the telemetry of a worker. Who is hostile has always nothing to do.
func (g *game) announce(p *player) {
	t := g.trust(p.name)
	if t == mesh.Barred {
		g.router.Bar(p.name)
		return
	}
	g.router.Update(router.Worker{Peer: p.name, Model: "m", MaxTasks: meshSlots, MaxPrompt: 1, CPU: p.cpu, Probation: t == mesh.OnProbation})
}

// task sends one to a worker.
func (g *game) task(late bool) {
	if len(g.running) >= atOnce {
		g.end()
	}
	s, err := g.router.Acquire(&router.Request{Model: "m", Affinity: string(rune(g.r.IntN(1000)))}, g.sel)
	if err != nil {
		g.t.Fatal(err)
	}
	if late {
		g.late++
		if g.online[s.Worker.Peer].cheats() {
			g.cheated++
		}
	}
	g.running = append(g.running, s)
}

// end ends one of the running tasks.
func (g *game) end() {
	i := g.r.IntN(len(g.running))
	s := g.running[i]
	g.running[i] = g.running[len(g.running)-1]
	g.running = g.running[:len(g.running)-1]
	p, ok := g.online[s.Worker.Peer]
	if !ok { // it left with the task
		s.Release(router.Failed)
		return
	}
	well := p.well(g.r)
	p.tasks++
	if well {
		s.Release(router.Succeeded)
	} else {
		s.Release(router.Failed)
	}
	g.judge(p.name, well)
	if p.way == renew {
		g.rename(p)
	}
}

// rename has a worker come back under a new name.
func (g *game) rename(p *player) {
	g.router.Remove(p.name)
	delete(g.online, p.name)
	again := hostilePlayer(g.r, p.way)
	for i := range g.workers {
		if g.workers[i] == p {
			g.workers = append(g.workers[:i], g.workers[i+1:]...)
			break
		}
	}
	g.renamed++
	g.join(again)
}

// learn makes the scores anew, as the gate does each second.
func (g *game) learn() {
	g.keepOutcomes(ctx)
	if err := g.score(); err != nil {
		g.t.Fatal(err)
	}
	for _, p := range append([]*player(nil), g.workers...) {
		refused := g.Standing(p.id).Refused != ""
		switch {
		case refused && p.way == honest:
			g.t.Fatalf("an honest worker is refused, with %.2f after %d tasks", g.Standing(p.id).Score, p.tasks)
		case refused && g.r.IntN(10) == 0: // some others take revenge first
			g.rename(p)
		default:
			g.announce(p)
		}
	}
}

// vote signs a rating of a worker.
func (g *game) vote(from *player, about peer.ID, score float64, at time.Time) *wire.Entry {
	e := &wire.Entry{Kind: wire.Rating, Rater: from.id, Subject: about, Dimension: wire.Honesty, Score: score, Time: at.UnixNano(), Prev: from.prev}
	if err := e.Sign(from.key); err != nil {
		g.t.Fatal(err)
	}
	if !at.After(time.Now()) { // or it is refused
		from.prev = e.Hash()
	}
	return e
}

// accept takes in votes. Those of the future are refused.
func (g *game) accept(votes ...*wire.Entry) {
	outcomes, reasons, err := g.store.Accept(ctx, votes)
	if err != nil {
		g.t.Fatal(err)
	}
	for i, o := range outcomes {
		if future := time.Unix(0, votes[i].Time).After(time.Now()); future != errors.Is(reasons[i], store.ErrFuture) || future == (o == store.Stored) {
			g.t.Fatal(o, reasons[i])
		}
	}
}

// slander has all that are hostile vote: against the honest and the new, and for each other.
func (g *game) slander() {
	var votes []*wire.Entry
	for _, from := range g.workers {
		if from.way == honest {
			continue
		}
		for range 6 {
			about := g.workers[g.r.IntN(len(g.workers))]
			score, at := -1.0, time.Now()
			if about.way != honest {
				score = 1
			}
			switch g.r.IntN(6) {
			case 0:
				at = at.Add(-5 * 365 * 24 * time.Hour)
			case 1:
				at = at.Add(365 * 24 * time.Hour)
			}
			if about != from {
				votes = append(votes, g.vote(from, about.id, score, at))
			}
		}
	}
	g.accept(votes...)
}

// oneVote has strangers vote, and looks what each vote has moved.
func (g *game) oneVote() {
	for range 10 {
		stranger := &player{key: newKey(g.t)}
		stranger.id, _ = peer.IDFromPrivateKey(stranger.key)
		about := g.workers[g.r.IntN(len(g.workers))].id
		before := g.Standing(about).Score
		g.accept(g.vote(stranger, about, float64(1-2*g.r.IntN(2)), time.Now()))
		if err := g.score(); err != nil {
			g.t.Fatal(err)
		}
		if moved := g.Standing(about).Score - before; moved > 0.05 || moved < -0.05 {
			g.t.Errorf("the vote of a stranger has moved a score by %.3f", moved)
		}
	}
}
