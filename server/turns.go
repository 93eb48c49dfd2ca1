package server

import (
	"runtime"
	"sync"
	"time"
)

// turnFor is how long a turn is held at most: behind that its session waits for
// its agent and no longer for a processor.
const turnFor = 100 * time.Millisecond

// turns bounds how many sessions build and send frames at once: one a
// processor, at least two. An entry that grants leases on
// thousands of nodes wakes as many sessions; were all of them runnable, the
// goroutine that applies would stand in line behind them each time that the
// scheduler takes the processor from it, for seconds in all.
type turns struct{ free chan struct{} }

func newTurns() *turns { return &turns{make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))} }

// do calls f once it is its turn. f may block: its turn goes to another then.
func (t *turns) do(f func()) {
	t.free <- struct{}{}
	var once sync.Once
	give := func() { once.Do(func() { <-t.free }) }
	late := time.AfterFunc(turnFor, give)
	defer func() { late.Stop(); give() }()
	f()
}
