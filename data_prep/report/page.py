"""report.html: one file, filled from the report's numbers, without scripts or external links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.report.charts import histogram_chart, range_chart
from data_prep.report.samples import Sample
from data_prep.shards import Manifest

_SAMPLE_CHARACTERS = (900, 300)  # shown of a long text's beginning and end
_DROPPED_CHARACTERS = (400, 100)
_RARE = 0.001  # languages with a smaller share are summed up

DroppedExamples = dict[str, dict[str, list[dict[str, Any]]]]


def render_page(manifest: Manifest, numbers: dict[str, Any], samples: list[Sample], dropped: DroppedExamples) -> str:
    """Fill report_template.html; everything that comes from the data is escaped by the template engine."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, share=_share, short=_short, text=_value_text)
    template = environment.from_string(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    longest = max(s["train"]["length"].get("p99", 1) for s in numbers["sources"])
    return template.render(
        manifest=manifest,
        numbers=numbers,
        sources=[_view(i, s, longest) for i, s in enumerate(numbers["sources"])],
        overall=_view(-1, {"name": "All training data", **numbers["overall"]}, longest),
        kinds=_matrix(numbers, "task_types", rare=0),
        languages=_matrix(numbers, "languages", rare=_RARE),
        samples=[{"sample": s, "runs": _shown_runs(s.runs)} for s in samples],
        examples={name: found for name, found in dropped.items() if any(found.values())},
        needs_cjk_font=any(numbers["overall"]["languages"]["rows"].get(name) for name in ("ko", "ja", "zh")),
    )


def _view(index: int, figures: dict[str, Any], longest: float) -> dict[str, Any]:
    view = {**figures, "colour": index % 8 + 1 if index >= 0 else 0}
    if "histogram" in figures:
        h = figures["histogram"]
        view["chart"] = histogram_chart(h["counts"], h["edges"], h["density"])
        view["range"] = range_chart(figures["train"]["length"], round(longest))
    return view


def _matrix(numbers: dict[str, Any], key: str, rare: float) -> list[dict[str, Any]]:
    """One row per task type or language, most frequent first: shares overall and in each source; rare ones together."""
    overall = numbers["overall"][key]
    columns = [s.get(key, {}).get("rows", {}) for s in numbers["sources"]]
    often = [name for name, share in overall["rows"].items() if share >= rare]
    rest = [name for name in overall["rows"] if name not in often]
    groups = [(name, [name]) for name in often]
    if rest:
        groups.append((", ".join(rest), rest))

    def total(table: dict[str, float], members: list[str]) -> float:
        return sum(table.get(name, 0.0) for name in members)

    return [
        {
            "name": title,
            "rows": total(overall["rows"], members),
            "trained_tokens": total(overall["trained_tokens"], members),
            "sources": [total(column, members) for column in columns],
        }
        for title, members in groups
    ]


def _shown_runs(runs: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    return [(cut(visible(text), *_SAMPLE_CHARACTERS), trained) for text, trained in runs]


def _value_text(value: Any) -> str:
    """A dropped row's raw value as one line of text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return cut(visible(text), *_DROPPED_CHARACTERS)


def cut(text: str, head: int, tail: int) -> str:
    """The beginning and the end of a long text."""
    left_out = len(text) - head - tail
    return text if left_out <= 100 else f"{text[:head]} […{left_out:,} characters…] {text[-tail:]}"


# Control characters, and marks that turn the direction of writing; joiners stay, as emoji and Persian need them.
_INVISIBLE: dict[int, str] = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_INVISIBLE |= {
    code: f"⟨U+{code:04X}⟩"
    for code in (*range(0x7F, 0xA0), 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
}


def visible(text: str) -> str:
    """Text that HTML and UTF-8 can hold: control characters and what turns the direction of writing made visible."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_INVISIBLE)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _share(value: float | None) -> str:
    """A percentage with what digits it deserves; a share that is not quite nothing never reads as nothing."""
    if value is None:
        return "–"
    percent = 100 * value
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.0f} %" if percent in (0.0, 100.0) else f"{percent:.1f} %"


def _short(value: int) -> str:
    """1,234 as it is, 7,012,641 as 7.0 M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            scale = 10**3 if unit == "k" else size
            return f"{value / scale:.1f} {unit}"
    return f"{value:,}"
