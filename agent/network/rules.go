package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"text/template"
	"time"
)

// A filter is what the rules say.
type filter struct {
	Table  string // the owner's own
	Links  string // what its links' names begin with
	All    string // what all owners' do
	Pool   netip.Prefix
	Egress Egress
	Tasks  []element
	Never, Private, LAN,
	Resolvers []netip.Prefix
}

// An element is a link of the host and the address that its task has.
type element struct {
	link string
	addr netip.Addr
}

func (e element) String() string { return fmt.Sprintf("%q . %s", e.link, e.addr) }

// maxFlows bounds the connections of one task, which share a table of the host's.
const maxFlows = 8192

// rules make the table anew. What comes from a task is judged before anybody
// else's rules can change where it goes, and again when it is sent on. An interface
// that no element names is let nowhere, so that a task is never ahead of its rules.
var rules = template.Must(template.New("rules").Funcs(template.FuncMap{"set": setOf[netip.Prefix], "tasks": setOf[element]}).Parse(`table inet {{.Table}} {
}
delete table inet {{.Table}}
table inet {{.Table}} {
	set tasks { type ifname . ipv4_addr; {{tasks .Tasks}} }
	set never { type ipv4_addr; flags interval; auto-merge; {{set .Never}} }
	set private { type ipv4_addr; flags interval; auto-merge; {{set .Private}} }
	set lan { type ipv4_addr; flags interval; auto-merge; {{set .LAN}} }
	set listed { type ipv4_addr; flags interval; auto-merge; {{set .Egress.Listed}} }
	set resolvers { type ipv4_addr; flags interval; {{set .Resolvers}} }
	set flows { type ipv4_addr; size 65535; flags dynamic; }

	chain judge {
		meta nfproto != ipv4 counter reject with icmpx admin-prohibited
		iifname . ip saddr != @tasks counter drop
		ip daddr @never counter reject with icmpx admin-prohibited
		fib daddr type != unicast counter reject with icmpx admin-prohibited
		ip daddr @resolvers meta l4proto { tcp, udp } th dport 53 accept
		ip daddr @listed accept
		ip daddr @private counter reject with icmpx admin-prohibited
		ip daddr @lan counter reject with icmpx admin-prohibited
		{{if .Egress.Internet}}accept{{else}}counter reject with icmpx admin-prohibited{{end}}
	}
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname "{{.Links}}*" jump judge
	}
	chain input {
		type filter hook input priority filter - 10; policy accept;
		iifname "{{.Links}}*" counter drop
	}
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		oifname "{{.Links}}*" ct state established,related accept
		oifname "{{.Links}}*" counter drop
		iifname "{{.Links}}*" ct state new add @flows { ip saddr ct count over ` + fmt.Sprint(maxFlows) + ` } counter reject with icmpx admin-prohibited
		iifname "{{.Links}}*" jump judge
	}
	chain output {
		type filter hook output priority filter - 10; policy accept;
		oifname "{{.Links}}*" ct state established,related accept
		oifname "{{.Links}}*" icmp type destination-unreachable accept
		oifname "{{.Links}}*" counter drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {{.Pool}} oifname != "{{.All}}*" masquerade
	}
}
`))

// setOf writes a set's elements; a set may be empty.
func setOf[T element | netip.Prefix](list []T) string {
	if len(list) == 0 {
		return ""
	}
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = fmt.Sprint(e)
	}
	slices.Sort(out)
	return "elements = { " + strings.Join(out, ", ") + " };"
}

// text is the whole table.
func (f *filter) text() (string, error) {
	var b strings.Builder
	err := rules.Execute(&b, f)
	return b.String(), err
}

// nftPaths is where nft is, whatever the agent's PATH says.
var nftPaths = []string{"nft", "/usr/sbin/nft", "/sbin/nft"}

// errNoNFT says what to install.
var errNoNFT = errors.New("there is no program nft to filter by: install nftables")

// nftTime bounds one load.
const nftTime = 10 * time.Second

// nft loads rules, all or none of them; with "-c" none, it only checks them.
func nft(text string, options ...string) error {
	_, err := nftOut(text, options...)
	return err
}

// nftOut does so and returns what nft printed.
func nftOut(text string, options ...string) ([]byte, error) {
	for _, name := range nftPaths {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), nftTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, append(options, "-f", "-")...)
		cmd.Stdin = strings.NewReader(text)
		var out, wrong bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &wrong
		if err := cmd.Run(); err != nil {
			line, _, _ := bytes.Cut(wrong.Bytes(), []byte("\n"))
			return nil, fmt.Errorf("nft: %w: %s", err, line)
		}
		return out.Bytes(), nil
	}
	return nil, errNoNFT
}
