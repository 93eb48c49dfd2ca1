package main

import "time"

// scenarios are all there are, in the order in which they are played.
var scenarios = []*scenario{
	{
		name: "leader", cases: []string{"1"}, what: "kill -9 of the leader",
		limit: func(p profile) time.Duration { return time.Minute + time.Duration(p.leaderKills)*20*time.Second },
		play:  playLeaderKills,
	},
	{
		name: "killall", cases: []string{"2"}, what: "kill -9 of all servers",
		limit: func(p profile) time.Duration { return time.Minute + time.Duration(p.allKills)*20*time.Second },
		play:  playAllKills,
	},
	{
		name: "power", cases: []string{"3"}, what: "power cuts of one server, and of all",
		limit: func(p profile) time.Duration {
			return time.Minute + time.Duration(p.powerOne+p.powerAll)*20*time.Second
		},
		play: playPowerCuts,
	},
	{
		name: "stop", cases: []string{"4"}, what: "the leader stopped for a while",
		limit: func(p profile) time.Duration {
			d := time.Minute
			for _, stop := range p.stops {
				d += stop + 30*time.Second
			}
			return d
		},
		play: playStops,
	},
	{
		name: "damage", cases: []string{"9", "10"}, what: "damaged logs",
		limit: func(p profile) time.Duration { return time.Minute + time.Duration(p.damages*len(damages))*time.Minute },
		play:  playDamages,
	},
	{
		name: "snapshot", cases: []string{"11"}, what: "damaged snapshots",
		limit: func(p profile) time.Duration { return time.Minute + time.Duration(p.damages*len(spoils))*time.Minute },
		play:  playSnapshots,
	},
	{
		name: "rejoin", cases: []string{"9", "10"}, what: "lost disks, one after the other",
		limit: func(p profile) time.Duration { return time.Minute + time.Duration(p.rejoins)*time.Minute },
		play:  playRejoins,
	},
	{
		name: "disk", cases: []string{"7"}, what: "full disks",
		limit: func(p profile) time.Duration {
			return 2*time.Minute + time.Duration(len(fullnesses))*(p.full+time.Minute)
		},
		play: playFullDisks,
	},
	{
		name: "partition", cases: []string{"13"}, what: "every cut between five servers",
		limit: func(p profile) time.Duration {
			return 3*time.Minute + time.Duration(len(cuts)*p.cutRounds)*(p.cut+time.Minute)
		},
		play: playPartitions,
	},
	{
		name: "delay", cases: []string{"13", "25"}, what: "packets that come late and overtake each other", patient: true,
		limit: func(p profile) time.Duration {
			return 4*time.Minute + time.Duration(p.lagKinds*p.lagRounds)*(p.lag+time.Minute)
		},
		play: playDelays,
	},
	{
		name: "agents", cases: []string{"21", "22", "23"}, what: "agents cut off, stopped and killed", patient: true,
		limit: func(p profile) time.Duration { return time.Minute + time.Duration(p.agentRounds)*2*time.Minute },
		play:  playAgents,
	},
	{
		name: "clock", cases: []string{"16"}, what: "clocks of servers and agents bent", patient: true,
		limit: func(p profile) time.Duration { return 4*time.Minute + 16*p.skewed },
		play:  playClocks,
	},
	{
		name: "certificates", cases: []string{"33"}, what: "certificates that end, a node that is revoked", patient: true,
		limit: func(profile) time.Duration { return 4 * time.Minute },
		play:  playCertificates,
	},
	{
		name: "vanish", cases: []string{"27"}, what: "30 % of the nodes gone at once", patient: true,
		limit: func(profile) time.Duration { return 3 * time.Minute },
		play:  playVanish,
	},
}
