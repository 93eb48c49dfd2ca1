package wire

import "github.com/gpuai/gpuai"

// Texts are texts that many things have in common, in one memory each. What it
// holds reaches nothing but the allocator.
type Texts struct{ texts [256]string }

// Share has the reader take from t the texts that nodes have in common.
func (r *Reader) Share(t *Texts) { r.texts = t }

// A Brief reads the descriptions of many nodes, one after the other, for what
// they have and not for who they are: IDs, address, health codes and version
// stay empty. It costs no memory but for texts that it meets the first time.
type Brief struct {
	Texts
	devices []gpuai.Device
}

// ReadNodeSpec is ReadNodeSpecFrom, briefly. The devices are valid until the
// next call.
func (b *Brief) ReadNodeSpec(r *Reader) (gpuai.NodeSpec, error) {
	r.brief, r.texts = b, &b.Texts
	s, err := ReadNodeSpecFrom(r)
	r.brief, r.texts = nil, nil
	if cap(s.Devices) > cap(b.devices) {
		b.devices = s.Devices
	}
	return s, err
}

// text returns a text as a string that those equal to it share.
func (t *Texts) text(v []byte) string {
	if len(v) == 0 {
		return ""
	}
	at := &t.texts[uint8(len(v))*31+v[0]*7+v[len(v)-1]]
	if *at != string(v) {
		*at = string(v)
	}
	return *at
}

// kind reads a text that many nodes have in common.
func (r *Reader) kind() string {
	if r.texts != nil {
		return r.texts.text(r.text())
	}
	return string(r.text())
}

// own reads a text that is a node's or device's own.
func (r *Reader) own() string {
	v := r.text()
	if r.brief != nil {
		return ""
	}
	return string(v)
}

// room returns an empty list for n devices.
func (r *Reader) room(n int) []gpuai.Device {
	if r.brief != nil && n <= cap(r.brief.devices) {
		return r.brief.devices[:0]
	}
	return make([]gpuai.Device, 0, n)
}
