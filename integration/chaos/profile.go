package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A profile says how often each fault is injected.
type profile struct {
	name string
	// nodes is how many simulated nodes hold the leases of a region under load;
	// a node holds 1,024 at most.
	nodes int

	leaderKills int // kill -9 of the leader
	allKills    int // kill -9 of all servers
	perRegion   int // of them, and of power cuts, in one region before the next
	powerOne    int // power cuts of one server
	powerAll    int // power cuts of all servers
	stops       []time.Duration
	damages     int           // times that each kind of damage is done
	cut         time.Duration // how long each cut of a partition lasts
	cutKinds    int           // different cuts of a partition, chosen by the seed
	cutRounds   int           // times that each cut is made
	agentRounds int           // times that agents are cut off, stopped and killed
	skewed      time.Duration // how long clocks are watched
	full        time.Duration // how long a disk stays full
	rejoins     int           // servers that lose their disks
	lagKinds    int           // different delays, chosen by the seed
	lagRounds   int           // times that each is there
	lag         time.Duration // how long it lasts
}

// profiles are those of --profile. The counts of long are the project's goals
// for a release.
var profiles = []profile{
	{
		name: "short", nodes: 16, leaderKills: 3, allKills: 2, perRegion: 25, powerOne: 2, powerAll: 2,
		stops: []time.Duration{3 * time.Second}, damages: 1, cut: 2 * time.Second, cutKinds: 5, cutRounds: 1,
		agentRounds: 1, skewed: 3 * time.Second, full: 3 * time.Second,
		rejoins: 1, lagKinds: 2, lagRounds: 1, lag: 3 * time.Second,
	},
	{
		name: "full", nodes: 32, leaderKills: 30, allKills: 25, perRegion: 25, powerOne: 20, powerAll: 20,
		stops: []time.Duration{time.Second, 5 * time.Second, 20 * time.Second}, damages: 1, cut: 5 * time.Second, cutKinds: len(cuts), cutRounds: 1,
		agentRounds: 3, skewed: 20 * time.Second, full: 8 * time.Second,
		rejoins: 6, lagKinds: len(lags), lagRounds: 1, lag: 6 * time.Second,
	},
	{
		name: "long", nodes: 160, leaderKills: 100, allKills: 200, perRegion: 25, powerOne: 100, powerAll: 100,
		stops:   []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute},
		damages: 5, cut: 15 * time.Second, cutKinds: len(cuts), cutRounds: 4, agentRounds: 10, skewed: 2 * time.Minute, full: 30 * time.Second,
		rejoins: 60, lagKinds: len(lags), lagRounds: 5, lag: 20 * time.Second,
	},
}

// profileNamed returns one of the profiles.
func profileNamed(name string) (profile, error) {
	i := slices.IndexFunc(profiles, func(p profile) bool { return p.name == name })
	if i < 0 {
		return profile{}, fmt.Errorf("--profile is short, full or long, not %q", name)
	}
	return profiles[i], nil
}

// chosen returns the scenarios that --only names, by name or by case; all where
// it names none.
func chosen(only string) ([]*scenario, error) {
	if only == "" {
		return scenarios, nil
	}
	var out []*scenario
	for _, word := range strings.Split(only, ",") {
		found := false
		for _, sc := range scenarios {
			if sc.name == word || slices.Contains(sc.cases, word) {
				found = true
				if !slices.Contains(out, sc) {
					out = append(out, sc)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("--only names %q, which is neither a scenario nor a case; there are %s", word, names())
		}
	}
	return out, nil
}

// names lists the scenarios for people.
func names() string {
	var out []string
	for _, sc := range scenarios {
		out = append(out, fmt.Sprintf("%s (case %s)", sc.name, strings.Join(sc.cases, ", ")))
	}
	return strings.Join(out, ", ")
}
