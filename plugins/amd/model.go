package amd

import (
	"fmt"
	"regexp"
	"strings"
)

// A pciID is what tells models apart: of some chips the revision does.
type pciID struct {
	device   uint16
	revision int // -1: any
}

// models names what product_name does not, from libdrm's amdgpu.ids without
// "AMD" and "Instinct". IDs that it gives two models are left out, but for 740c
// (MI250X / MI250), of which the lesser is said.
var models = map[pciID]string{
	{0x738c, -1}: "MI100",
	{0x7408, -1}: "MI250X",
	{0x740c, -1}: "MI250",
	{0x740f, -1}: "MI210",
	{0x74a0, -1}: "MI300A",
	{0x74a1, -1}: "MI300X",
	{0x74a2, -1}: "MI308X",
	{0x74a5, -1}: "MI325X",
	{0x74a9, -1}: "MI300X-HF",
	{0x74b5, -1}: "MI300X-VF",

	{0x66a1, 0x06}: "Radeon Pro VII",
	{0x66af, 0xc1}: "Radeon VII",
	{0x73bf, 0xc0}: "Radeon RX 6900 XT",
	{0x73bf, 0xc1}: "Radeon RX 6800 XT",
	{0x73bf, 0xc3}: "Radeon RX 6800",
	{0x744c, 0xc8}: "Radeon RX 7900 XTX",
	{0x744c, 0xcc}: "Radeon RX 7900 XT",
	{0x7448, 0x00}: "Radeon Pro W7900",
	{0x7550, 0xc0}: "Radeon RX 9070 XT",
	{0x7550, 0xc3}: "Radeon RX 9070",
}

var instinct = regexp.MustCompile(`\bMI[0-9]{1,5}[A-Z]{0,2}\b`)

const maxModel = 64

// modelName returns what jobs ask for: "MI300X" of an Instinct card, the name of
// a Radeon without the vendor's, or the PCI ID of one that nobody names.
func modelName(product string, device uint16, revision uint8) string {
	if m := instinct.FindString(product); m != "" {
		return m
	}
	if m, ok := models[pciID{device, int(revision)}]; ok {
		return m
	}
	if m, ok := models[pciID{device, -1}]; ok {
		return m
	}
	product = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(product, "AMD "), "ATI "))
	if product != "" && len(product) <= maxModel && product != "N/A" {
		return product
	}
	return fmt.Sprintf("AMD-%04x", device)
}
