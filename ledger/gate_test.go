// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// TestFailsClosed breaks the store while the ledger is in use: nobody gets tasks then, and an
// alarm is raised, unless the settings say otherwise, also when a reload changes them by then.
func TestFailsClosed(t *testing.T) {
	for _, open := range []bool{false, true} {
		n := fresh(t)
		core, logs := observer.New(zap.ErrorLevel)
		n.log.Store(zap.New(core))
		n.parts.Join(&Part{s: Settings{Floor: -0.5, FailOpen: open}})
		worker := newID(t)
		n.judge(worker.String(), true)
		await.Until(t, "the task counts", func() bool { return n.Standing(worker).Score > 0 })
		if err := n.store.Close(); err != nil {
			t.Fatal(err)
		}
		n.news()
		await.Until(t, "scores cannot be made", func() bool { return n.gate.failures.Load() >= maxFailures })
		await.Until(t, "the gate is closed, or not", func() bool { return (n.Standing(worker).Refused == ReasonUnreadable) != open })
		if logs.FilterMessage("the ledger fails").Len() == 0 {
			t.Error("no alarm")
		}
		if told := logs.FilterMessageSnippet("no worker gets tasks").Len(); open && told != 0 || !open && told != 1 {
			t.Errorf("fail open %t: said %d times that nobody gets tasks", open, told)
		}
		if got := n.Standing(worker).Refused; open && got != "" || !open && got != ReasonUnreadable {
			t.Errorf("fail open %t: refused %q", open, got)
		}
		if barred := (*n.trusts.Load())(worker.String()) == mesh.Barred; barred == open {
			t.Errorf("fail open %t: barred %t", open, barred)
		}
		n.parts.Join(&Part{s: Settings{Floor: -0.5, FailOpen: !open}})
		await.Until(t, "the reload counts", func() bool {
			return (n.Standing(worker).Refused == ReasonUnreadable) == open && ((*n.trusts.Load())(worker.String()) == mesh.Barred) == open
		})
		if got := n.Standing(worker).Score; !open && got <= 0 {
			t.Errorf("what was read last is forgotten: score %v", got)
		}
		n.close()
		if (*n.trusts.Load())(worker.String()) != mesh.Trusted {
			t.Error("a closed ledger bars a worker")
		}
	}
}

// TestGateOpensAgain takes a table away for a while: the gate is closed until it is back.
func TestGateOpensAgain(t *testing.T) {
	dir, worker := t.TempDir(), newID(t)
	n := newNode(t, newKey(t), dir)
	db, err := sql.Open("sqlite", filepath.Join(dir, "ledger.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, c := range []struct{ change, refused string }{
		{"ALTER TABLE vote RENAME TO away", ReasonUnreadable},
		{"ALTER TABLE away RENAME TO vote", ""},
	} {
		if _, err := db.Exec(c.change); err != nil {
			t.Fatal(err)
		}
		n.news()
		await.Until(t, c.change, func() bool { return n.Standing(worker).Refused == c.refused })
	}
	n.judge(worker.String(), true)
	await.Until(t, "the task counts", func() bool { return n.Standing(worker).Score > 0 })
}

// TestOutcomesAreStoredSoon has a task end between two times at which scores are made, which for
// a large ledger are minutes apart: it is on disk within two seconds.
func TestOutcomesAreStoredSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, worker := newGame(t, 0), newID(t)
		c, cancel := context.WithCancel(ctx)
		g.ctx = c
		rested := make(chan struct{})
		go func() { defer close(rested); g.rest(time.Hour) }()
		time.Sleep(10 * time.Minute)
		g.judge(worker.String(), true)
		time.Sleep(2 * time.Second)
		if all, err := g.store.Tallies(ctx); err != nil || all[worker].Good == 0 {
			t.Errorf("%+v, %v", all, err)
		}
		cancel()
		<-rested
	})
}

// TestRatingsAfterRestart has tasks end, and the node restart before the hour is over: what was
// counted is still there, and the rating comes when it is time, and once.
func TestRatingsAfterRestart(t *testing.T) {
	key, dir, worker := newKey(t), t.TempDir(), newID(t)
	n := newNode(t, key, dir)
	for range 3 {
		n.judge(worker.String(), true)
	}
	await.Until(t, "the tasks count", func() bool { return n.Standing(worker).Proven })
	n.judge(worker.String(), true) // is stored when the ledger is closed
	n.close()
	n = newNode(t, key, dir)
	if st := n.Standing(worker); !st.Proven || n.Size() != 0 {
		t.Errorf("after a restart: %+v, %d entries", st, n.Size())
	}
	n.close()
	for i := range 2 { // the second time there is nothing to rate
		db, err := sql.Open("sqlite", filepath.Join(dir, "ledger.db"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec("UPDATE number SET value = value - ? WHERE name = 'rated'", ratingWindow); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		n = newNode(t, key, dir)
		await.Until(t, "the worker is rated", func() bool { return n.Size() > 0 })
		n.judge(newID(t).String(), false)
		await.Until(t, "the ledger has gone on", func() bool { return len(n.gate.now.Load().known) > 2+i })
		lines, err := n.store.About(ctx, worker, 10, 0)
		if err != nil || len(lines) != 1 || lines[0].Kind != wire.Rating || lines[0].Rater != n.id() || lines[0].Score != 0.4 ||
			lines[0].Context != "task:successes=4,failures=0,window=3600s" {
			t.Errorf("%+v, %v", lines, err)
		}
		n.close()
	}
}
