"""Thumbnails: a few marks of inline SVG for the index, coloured by the page's CSS."""

from markupsafe import Markup

from wallprobe.gallery.exhibit import Glance

WIDTH, HEIGHT, PAD, SHADES = 120.0, 44.0, 3.0, 16


def svg(glance: Glance | None) -> Markup:
    """The thumbnail as SVG that assistive technology skips; empty for None or nothing to draw."""
    seen = [value for row in glance.values for value in row if value is not None] if glance else []
    if glance is None or not seen:
        return Markup("")
    marks = {"line": _line, "bars": _bars, "cells": _cells}[glance.shape](glance, seen)
    frame = f'<svg class="glance" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" aria-hidden="true" focusable="false">'
    return Markup(frame + marks + "</svg>")  # only numbers and our own words are in it


def _line(glance: Glance, seen: list[float]) -> str:
    row, top = glance.values[0], max(max(seen), 1e-12)
    step = (WIDTH - 2 * PAD) / max(len(row) - 1, 1)
    points = [(PAD + place * step, HEIGHT - PAD - (HEIGHT - 2 * PAD) * value / top) for place, value in enumerate(row) if value is not None]
    wall = (
        ""
        if glance.mark is None
        else f'<line class="g-wall" x1="{PAD + glance.mark * step:.1f}" x2="{PAD + glance.mark * step:.1f}" y1="0" y2="{HEIGHT}"/>'
    )
    return wall + f'<polyline class="g-line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _bars(glance: Glance, seen: list[float]) -> str:
    row, base = glance.values[0], glance.mark or 0.0
    low, high = min([*seen, base]), max([*seen, base])
    scale, step = (HEIGHT - 2 * PAD) / max(high - low, 1e-12), (WIDTH - 2 * PAD) / len(row)
    zero = HEIGHT - PAD - (base - low) * scale
    bars = []
    for place, value in enumerate(row):
        if value is None:
            continue
        y = HEIGHT - PAD - (value - low) * scale
        size = f'width="{max(step - 1.5, 1):.1f}" height="{max(abs(zero - y), 0.6):.1f}"'
        bars.append(
            f'<rect class="{"g-bar" if value >= base else "g-bar-under"}" x="{PAD + place * step:.1f}" y="{min(y, zero):.1f}" {size}/>'
        )
    return "".join(bars) + f'<line class="g-wall" x1="0" x2="{WIDTH}" y1="{zero:.1f}" y2="{zero:.1f}"/>'


def _cells(glance: Glance, seen: list[float]) -> str:
    rows, floor = glance.values, glance.mark or 0.0
    top = max(max(seen), floor + 1e-12)
    wide, tall = WIDTH / max(len(row) for row in rows), HEIGHT / len(rows)
    wide_cell, tall_cell = max(wide - 1, 0.5), max(tall - 1, 0.5)
    # One path a shade: an attention map has 256 cells, and an index a thousand maps.
    shades: dict[int, list[str]] = {}
    for place, row in enumerate(reversed(rows) if glance.mark is not None else rows):
        for column, value in enumerate(row):
            share = 0.0 if value is None else min(max((value - floor) / (top - floor), 0.0), 1.0)
            cell = f"M{column * wide:.1f} {place * tall:.1f}h{wide_cell:.1f}v{tall_cell:.1f}h-{wide_cell:.1f}z"
            shades.setdefault(round(share * SHADES), []).append(cell)
    inks = {shade: 0.08 + 0.92 * shade / SHADES for shade in shades}
    return "".join(f'<path class="g-cell" fill-opacity="{inks[shade]:.2f}" d="{"".join(shades[shade])}"/>' for shade in sorted(shades))
