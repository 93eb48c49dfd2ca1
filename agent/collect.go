package agent

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// keptTasks is how many ended attempts' directories, with their output, are kept.
const keptTasks = 512

// collect removes the directories of attempts that ended long ago, beside the
// loop: of the oldest those that are too many, or whose output is too much.
func (a *Agent) collect() {
	known := make(map[gpuai.Token]bool, len(a.records))
	for t := range a.records {
		known[t] = true
	}
	go a.collectBut(known)
}

// collectBut spares the attempts of leases that are known.
func (a *Agent) collectBut(known map[gpuai.Token]bool) {
	a.collecting.Lock()
	defer a.collecting.Unlock()
	entries, err := os.ReadDir(a.path(tasksDir))
	if err != nil {
		return
	}
	var ended []fs.FileInfo
	left := a.cfg.LogSpace
	size := map[string]int64{}
	for _, e := range entries {
		var t gpuai.Token
		fi, err := e.Info()
		if err != nil || t.UnmarshalText([]byte(e.Name())) != nil {
			continue
		}
		size[e.Name()] = watchdog.LogSize(filepath.Join(a.path(tasksDir), e.Name()))
		left -= size[e.Name()]
		// A lease that came after known was made is live.
		if !known[t] && !a.isLive(t) {
			ended = append(ended, fi)
		}
	}
	slices.SortFunc(ended, func(x, y fs.FileInfo) int { return x.ModTime().Compare(y.ModTime()) })
	for len(ended) > keptTasks || left < 0 && len(ended) > 0 {
		name := ended[0].Name()
		if err := a.trash.take(filepath.Join(a.path(tasksDir), name)); err != nil {
			a.log.Warn("an old attempt's directory stays", "error", err)
		}
		var t gpuai.Token
		if t.UnmarshalText([]byte(name)) == nil {
			a.uploads.dropped(t)
		}
		left += size[name]
		ended = ended[1:]
	}
}
