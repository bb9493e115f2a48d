#!/usr/bin/env python3
"""Turns a terminal's text with its colours into an SVG picture, for the README.

    tmux new-session -d -s show -x 100 -y 30 'tidegate demo --once; sleep 60'
    sleep 22; tmux capture-pane -t show -p -e > busy      # in the middle of the last burst
    sleep 16; tmux capture-pane -t show -p -e > over      # the same run's verdict
    (cat busy; grep -A 99 'round robin   inference' over) | cat -s |
        python3 tests/tools/screen_to_svg.py 'tidegate demo' > docs/demo.svg

It knows the few escape sequences that the demo uses (bold, faint, three colours) and nothing else. Bars are drawn as
rectangles, because fonts leave gaps between block characters. No dependencies.
"""

import re
import sys
from html import escape

CELL_WIDTH, CELL_HEIGHT, FONT_SIZE = 8.4, 19, 14
MARGIN, TITLE_HEIGHT = 16, 34
INK, PAPER, FRAME = "#d6deeb", "#0f1722", "#1b2635"
COLOURS = {31: "#ff6b6b", 32: "#5fd38d", 33: "#f5c451"}
FAINT = "#7b8ba1"
EIGHTHS = {"█": 8, "▉": 7, "▊": 6, "▋": 5, "▌": 4, "▍": 3, "▎": 2, "▏": 1}
SEQUENCE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


def runs(line, state):
    """Pieces of a line as (text, state); a state is (colour, bold, faint). The last piece carries the state on."""
    at = 0
    for found in SEQUENCE.finditer(line):
        if found.start() > at:
            yield line[at : found.start()], state
        if found[2] == "m":
            state = changed(state, found[1])
        at = found.end()
    yield line[at:], state


def changed(state, codes):
    colour, bold, faint = state
    for code in (int(code or 0) for code in codes.split(";")):
        if code == 0:
            colour, bold, faint = None, False, False
        elif code == 1:
            bold = True
        elif code == 2:
            faint = True
        elif code == 22:
            bold = faint = False
        elif code == 39:
            colour = None
        elif code in COLOURS:
            colour = COLOURS[code]
    return colour, bold, faint


def draw_run(text, state, column, row):
    """One run as SVG: rectangles for bars, text for the rest."""
    colour, bold, faint = state
    ink = colour or (FAINT if faint else INK)
    y = TITLE_HEIGHT + MARGIN + row * CELL_HEIGHT
    for piece in re.findall(r"[█▉▊▋▌▍▎▏]+|·+|─+|[^█▉▊▋▌▍▎▏·─]+", text):
        x = MARGIN + column * CELL_WIDTH
        width = len(piece) * CELL_WIDTH
        column += len(piece)
        if piece[0] in EIGHTHS:
            filled = sum(EIGHTHS[it] for it in piece) / 8 * CELL_WIDTH
            yield f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{CELL_HEIGHT - 6}" fill="{FRAME}"/>'
            yield f'<rect x="{x:.1f}" y="{y + 3}" width="{filled:.1f}" height="{CELL_HEIGHT - 6}" fill="{ink}"/>'
        elif piece[0] == "·":
            yield f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{CELL_HEIGHT - 6}" fill="{FRAME}"/>'
        elif piece[0] == "─":
            yield f'<rect x="{x:.1f}" y="{y + CELL_HEIGHT / 2}" width="{width:.1f}" height="1" fill="#3a4a60"/>'
        else:
            yield from draw_words(piece, x, y + CELL_HEIGHT - 5, ink, bold)


def draw_words(piece, x, y, ink, bold):
    """Word by word, each at its own column, so that the grid holds in any font."""
    weight = ' font-weight="bold"' if bold else ""
    for word in re.finditer(r"\S+(?: \S+)*", piece):
        left = x + word.start() * CELL_WIDTH
        length = len(word[0]) * CELL_WIDTH
        yield (
            f'<text x="{left:.1f}" y="{y}" fill="{ink}"{weight} textLength="{length:.1f}" '
            f'lengthAdjust="spacingAndGlyphs">{escape(word[0])}</text>'
        )


def main():
    title = sys.argv[1] if len(sys.argv) > 1 else ""
    lines = sys.stdin.read().rstrip().split("\n")
    columns = max(len(SEQUENCE.sub("", line).rstrip()) for line in lines)
    width = 2 * MARGIN + columns * CELL_WIDTH
    height = TITLE_HEIGHT + 2 * MARGIN + len(lines) * CELL_HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" '
        f'font-size="{FONT_SIZE}" role="img" aria-label="{escape(title)}">',
        f'<rect width="100%" height="100%" rx="10" fill="{PAPER}"/>',
        f'<path d="M0 10a10 10 0 0 1 10-10h{width - 20:.0f}a10 10 0 0 1 10 10v{TITLE_HEIGHT - 10}H0z" fill="{FRAME}"/>',
    ]
    for at, colour in enumerate(("#ff6b6b", "#f5c451", "#5fd38d")):
        out.append(f'<circle cx="{MARGIN + 4 + at * 18}" cy="{TITLE_HEIGHT / 2}" r="5.5" fill="{colour}"/>')
    out.append(
        f'<text x="{width / 2:.0f}" y="{TITLE_HEIGHT / 2 + 5}" fill="{FAINT}" text-anchor="middle">{escape(title)}</text>'
    )
    state = (None, False, False)
    for row, line in enumerate(lines):
        column = 0
        for text, state in runs(line, state):
            out.extend(draw_run(text, state, column, row))
            column += len(text)
    out.append("</svg>")
    print("\n".join(out))


if __name__ == "__main__":
    main()
