package gpuai

// A RetiredJob is a job that has left the machine, whole, as a history archive
// keeps it. It is the same on every replica.
type RetiredJob struct {
	Job Job // ended, with its spec
	// Tasks are those that have had a lease, by group and index: in each group
	// they come first. All others were stopped before they had one.
	Tasks []Task
	// Leases are the latest of each of Tasks, in their order.
	Leases []Lease
}

// An IndexRange is the log indexes From … To, both included.
type IndexRange struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// An ExportKind says what a line of an export holds.
type ExportKind string

// The kinds. An export begins with one begin and, when it is whole, ends with
// one end.
const (
	ExportBegin ExportKind = "begin"
	ExportEvent ExportKind = "event"
	ExportJob   ExportKind = "job"
	ExportTask  ExportKind = "task"
	ExportLease ExportKind = "lease"
	ExportEnd   ExportKind = "end"
)

// An ExportLine is one line of an export.
type ExportLine struct {
	Kind ExportKind `json:"kind"`
	// Index is where the line has its place: the event's, or that at which the
	// job left the machine. Of what is still in the machine it is the index of
	// the state that was read; of begin the index asked for, and of end the one
	// up to which the export is whole.
	Index uint64 `json:"index"`
	// Archived lines come by index: an export that broke off is resumed from
	// the last one. Lines of the machine are read anew each time.
	Archived bool   `json:"archived,omitzero"`
	Event    *Event `json:"event,omitzero"`
	Job      *Job   `json:"job,omitzero"`
	Task     *Task  `json:"task,omitzero"`
	Lease    *Lease `json:"lease,omitzero"`
	// Dropped, of begin: history up to this index may have made way for newer.
	Dropped uint64 `json:"dropped_index,omitzero"`
	// Missing, of begin: no server has the history of these indexes.
	Missing []IndexRange `json:"missing,omitempty"`
}
