package main

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newPriceListCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show the price list", Args: cobra.NoArgs,
		Long: `Show what a GPU and hour costs, by model. A node whose agent or operator says a
price of its own costs that: see gpuai node status.`,
		Example: `  gpuai operator price list
  gpuai operator price list -o json > prices.json`,
		RunE: does(func(ctx context.Context, _ []string) error {
			p, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Prices, error) { return c.Prices(ctx) })
			if err != nil {
				return err
			}
			return a.showObject(ctx, p, pricesView(&p))
		}),
	})
}

func pricesView(p *gpuai.Prices) *view {
	v := &view{head: []string{"MODEL", "USD/GPU-HOUR"}}
	for _, m := range p.Models {
		v.row(m.Model, m.Model, dollars(m.Price))
	}
	if p.FeeBps > 0 {
		v.row("fee", "fee", fmt.Sprintf("%d.%02d%%", p.FeeBps/100, p.FeeBps%100))
	}
	return v
}

func newPriceSetCmd(a *app) *cobra.Command {
	var fee string
	var nodes []string
	var dryRun bool
	c := &cobra.Command{
		Use: "set [MODEL=USD...]", Short: "Change prices of models or of nodes",
		Long: `Change what a GPU and hour costs, in US dollars, by model; the others stay as they
are, "none" takes one off the list. --node gives a node a price of its own, which
stands before the list and what its agent says. Leases keep the price that they
were granted at.

--dry-run shows what would follow.`,
		Example: `  gpuai operator price set H100=1.85 A100-80=0.90
  gpuai operator price set H100=2.10 --fee 2.5 --dry-run
  gpuai operator price set --node gpu-c11=0.75
  gpuai operator price set --node gpu-c11=none`,
	}
	c.Flags().StringVar(&fee, "fee", "", "fee on top of what is billed, in percent")
	c.Flags().StringSliceVar(&nodes, "node", nil, "price of one node, as NODE=USD")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would follow and change nothing")
	c.RunE = does(func(ctx context.Context, args []string) error {
		if len(args) == 0 && fee == "" && len(nodes) == 0 {
			return usageError{errors.New("give prices as MODEL=USD, a --fee or a --node")}
		}
		p, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Prices, error) { return c.Prices(ctx) })
		if err != nil {
			return err
		}
		list := len(args) > 0 || fee != ""
		own, err := changePrices(&p, args, nodes, fee)
		if err != nil {
			return usageError{err}
		}
		if fields := p.Validate(); fields != nil {
			return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the price list would be invalid", Fields: fields}
		}
		if dryRun {
			req := &client.PlanRequest{NodePrices: own}
			if list {
				req.Prices = &p
			}
			return a.suppose(ctx, req)
		}
		_, err = ask(ctx, a, func(ctx context.Context, c *client.Client) (struct{}, error) {
			if list {
				if err := c.SetPrices(ctx, p); err != nil {
					return struct{}{}, err
				}
			}
			for _, n := range own {
				if err := c.SetNodePrice(ctx, n.Node, n.Price); err != nil {
					return struct{}{}, err
				}
			}
			return struct{}{}, nil
		})
		if err != nil {
			return err
		}
		v := pricesView(&p)
		for _, n := range own {
			v.row(string(n.Node), "node "+string(n.Node), dollars(max(n.Price, 0)))
		}
		return a.showObject(ctx, p, v)
	})
	return a.talks(c)
}

// changePrices changes a price list by what a command says, and returns the prices of
// nodes.
func changePrices(p *gpuai.Prices, models, nodes []string, fee string) (own []gpuai.NodePrice, err error) {
	for _, s := range models {
		model, usd, err := priceOf(s, "MODEL")
		if err != nil {
			return nil, err
		}
		p.Models = slices.DeleteFunc(p.Models, func(m gpuai.ModelPrice) bool { return m.Model == model })
		if usd >= 0 {
			p.Models = append(p.Models, gpuai.ModelPrice{Model: model, Price: usd})
		}
	}
	slices.SortFunc(p.Models, func(a, b gpuai.ModelPrice) int { return strings.Compare(a.Model, b.Model) })
	for _, s := range nodes {
		node, usd, err := priceOf(s, "NODE")
		if err != nil {
			return nil, err
		}
		own = append(own, gpuai.NodePrice{Node: gpuai.NodeID(node), Price: usd})
	}
	if fee != "" {
		r, ok := new(big.Rat).SetString(fee)
		if ok {
			r.Mul(r, big.NewRat(100, 1))
		}
		if !ok || !r.IsInt() || r.Sign() < 0 || r.Num().Cmp(big.NewInt(gpuai.MaxFeeBps)) > 0 {
			return nil, fmt.Errorf("--fee %s: must be a percentage with at most two decimals, such as 2.5", fee)
		}
		p.FeeBps = uint32(r.Num().Uint64())
	}
	return own, nil
}

// priceOf reads NAME=USD; -1 stands for none.
func priceOf(s, what string) (name string, usd gpuai.Micros, err error) {
	name, text, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", 0, fmt.Errorf("%s: give %s=USD, such as 1.85", s, what)
	}
	if text == none {
		return name, -1, nil
	}
	if usd, err = parsePrice(text); err != nil {
		return "", 0, fmt.Errorf("%s: the price %w", s, err)
	}
	return name, usd, nil
}
