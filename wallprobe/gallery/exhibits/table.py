"""The page of a kind that nobody made an exhibit for: its summary and its long table."""

from wallprobe.gallery import longtable
from wallprobe.gallery.exhibit import Exhibit, Figure, Table
from wallprobe.store.results import Result

ROWS = 400


def headline(result: Result, otherwise: str) -> str:
    """The finding of a Result, or `otherwise` when it states none."""
    finding = result.summary.get("finding")
    return str(finding) if finding else otherwise


def exhibit(result: Result, note: str = "") -> Exhibit:
    """Summary and values as tables; the page names how many rows it left to the CSV."""
    subject = result.manifest.get("subject", "a result")
    return Exhibit(headline(result, f"{result.kind} of {subject}"), tables(result), note=note)


def tables(result: Result) -> tuple[Figure | Table, ...]:
    """The long table, cut at `ROWS`."""
    columns = longtable.columns(result)
    count = max(map(len, columns.values()), default=0)
    if not count:
        return ()
    rows = list(zip(*(column[:ROWS] for column in columns.values()), strict=True))
    cut = f" The first {ROWS:,} of {count:,} rows; the CSV has all." if count > ROWS else ""
    return (Table("Values", tuple(columns), rows, f"One row for each {', '.join(result.table) or 'value'}.{cut}"),)
