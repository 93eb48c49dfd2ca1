package simulate

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
)

// phillyColumns are those of traces cut down to what every cluster records.
// name, user and class may be there too.
var phillyColumns = []string{"timestamp", "duration", "num_gpus"}

// phillyTimes are the forms of a timestamp beside seconds.
var phillyTimes = []string{time.RFC3339Nano, "2006-01-02 15:04:05", "2006-01-02T15:04:05"}

// phillyJob reads a job: num_gpus devices for duration seconds from timestamp
// on. More than a node has become a gang.
func phillyJob(r *row, perNode int) TraceJob {
	n := r.count("num_gpus", gpuai.MaxGangTasks)
	tasks, gpus := split(n, perNode)
	j := TraceJob{
		Name: r.text("name"), GPUs: gpus, GPUMilli: 1000, Tasks: tasks, Timed: true,
		Arrive: gpuai.Instant(r.timestamp("timestamp")), Run: gpuai.Duration(r.seconds("duration")),
	}
	if j.Run > gpuai.MaxDuration {
		r.fail("duration", fmt.Sprintf("must be at most %s, not %q s", gpuai.MaxDuration, r.text("duration")))
	}
	if j.Name == "" {
		j.Name = "line-" + strconv.Itoa(r.line)
	}
	if c := r.text("class"); c != "" {
		if err := j.Class.UnmarshalText([]byte(c)); err != nil {
			r.fail("class", err.Error())
		}
	}
	return j
}

// seconds reads a number of seconds as milliseconds.
func (r *row) seconds(column string) int64 {
	v, err := milliseconds(r.text(column))
	if err != nil {
		r.fail(column, err.Error())
	}
	return v
}

// timestamp reads seconds, or a date and time, as milliseconds.
func (r *row) timestamp(column string) int64 {
	s := strings.TrimSpace(r.text(column))
	for _, f := range phillyTimes {
		if t, err := time.Parse(f, s); err == nil && t.Unix() >= 0 && t.Unix() <= maxSeconds {
			return t.UnixMilli()
		}
	}
	v, err := milliseconds(s)
	if err != nil {
		r.fail(column, fmt.Sprintf("must be seconds or a time such as 2017-10-03 07:20:00, not %q", s))
	}
	return v
}

// count reads a whole number up to a limit.
func (r *row) count(column string, limit int64) int {
	v := r.number(column)
	if v > limit {
		r.fail(column, fmt.Sprintf("must be at most %d, not %d", limit, v))
	}
	return int(v)
}

// milliseconds reads a decimal number of seconds that is not negative.
func milliseconds(s string) (int64, error) {
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || math.IsNaN(v) || v < 0 || v > maxSeconds {
		return 0, fmt.Errorf("must be a number of seconds from 0 to %d, not %q", int64(maxSeconds), s)
	}
	return int64(math.Round(v * 1000)), nil
}
