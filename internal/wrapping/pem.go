package wrapping

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"regexp"
)

// block is one PEM block (RFC 7468) and its position.
type block struct {
	kind         string // its label: CERTIFICATE, PUBLIC KEY, …
	der          []byte // a copy of our own
	number, line int    // from 1
}

// invalid returns an error about this block.
func (b block) invalid(format string, args ...any) *KeyError {
	return &KeyError{fmt.Sprintf("PEM block %d (line %d) ", b.number, b.line) + fmt.Sprintf(format, args...)}
}

func wipeBlocks(blocks []block) {
	for _, b := range blocks {
		clear(b.der)
	}
}

var (
	// boundaryLine is the first or last line of a block, without white space behind it.
	boundaryLine = regexp.MustCompile(`^-----(BEGIN|END) ([A-Z0-9][A-Z0-9 .#/]*)-----$`)
	// boundaryRemains matches a damaged boundary: four dashes, or a dash that a word processor inserted before BEGIN
	// or END.
	boundaryRemains = regexp.MustCompile(`----|(--|[\x{2010}-\x{2015}\x{2212}])[ \t]*(BEGIN|END)\b`)
	// bodyLine is a line of Base64 that is too long for a word.
	bodyLine = regexp.MustCompile(`^[ \t]*[A-Za-z0-9+/]{32,}={0,2}$`)
)

func isPEM(text []byte) bool {
	return bytes.Contains(text, []byte("-----BEGIN ")) || boundaryRemains.Match(text)
}

// readPEM returns the blocks of a text, in order. A part that looks like a block but is invalid makes the whole text
// invalid, because it may be the intended key. Text between the blocks, which openssl and people add, is skipped. The
// caller must wipe the blocks.
func readPEM(text []byte) ([]block, error) {
	var blocks []block
	var open *block
	start, end := 0, 0
	fail := func(err *KeyError) ([]block, error) {
		wipeBlocks(blocks)
		return nil, err
	}
	for i, line := range bytes.SplitAfter(text, []byte("\n")) {
		begin := end
		end += len(line)
		line = bytes.TrimRight(line, " \t\r\n")
		word, kind := boundary(line)
		switch {
		case open == nil && word == "BEGIN":
			open, start = &block{kind: kind, number: len(blocks) + 1, line: i + 1}, begin
		case open != nil && word == "END" && kind == open.kind:
			if err := open.decode(text[start:end]); err != nil {
				return fail(err)
			}
			blocks, open = append(blocks, *open), nil
		case open != nil && word != "":
			return fail(open.invalid("does not end with its END line before another BEGIN or END line (line %d)", i+1))
		case word != "" || boundaryRemains.Match(line):
			return fail(damagedBoundary(i+1, line))
		case open == nil && bodyLine.Match(line):
			return fail(&KeyError{fmt.Sprintf("line %d looks like Base64 of a PEM block without a BEGIN line; use the whole block", i+1)})
		}
	}
	if open != nil {
		return fail(open.invalid("has no END line: it is truncated; keep its line breaks"))
	}
	return blocks, nil
}

// boundary returns BEGIN or END and the block's label, or "" for any other line.
func boundary(line []byte) (word, kind string) {
	if m := boundaryLine.FindSubmatch(line); m != nil {
		return string(m[1]), string(m[2])
	}
	return "", ""
}

func damagedBoundary(number int, line []byte) *KeyError {
	word, _ := boundary(bytes.TrimLeft(line, " \t"))
	switch {
	case word == "END" && len(line) > 0 && line[0] == '-':
		return &KeyError{fmt.Sprintf("line %d ends a PEM block without a BEGIN line; use the whole block", number)}
	case word != "":
		return &KeyError{fmt.Sprintf("the PEM is indented at line %d; remove the spaces at the start of its lines", number)}
	}
	return &KeyError{fmt.Sprintf("the PEM is damaged at line %d, which must be a BEGIN or END line between five dashes "+
		"and nothing else; keep its line breaks", number)}
}

// decode reads the block from its lines, from BEGIN to END.
func (b *block) decode(lines []byte) *KeyError {
	decoded, rest := pem.Decode(lines)
	if decoded == nil || len(bytes.TrimSpace(rest)) > 0 {
		return b.invalid("is damaged: the text between BEGIN and END is not Base64")
	}
	if len(decoded.Headers) > 0 {
		clear(decoded.Bytes)
		return b.invalid("has header lines, which keys and certificates do not have; remove them")
	}
	b.der = decoded.Bytes
	return nil
}
