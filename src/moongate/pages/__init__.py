"""Pages and pictures for people: self-contained HTML files, charts, contact sheets and PNG files.

This package alone writes HTML and SVG. It knows nothing of models or concepts.
"""

from moongate.pages.charts import Chart, bar_chart, line_chart, sparkline
from moongate.pages.page import Cell, Level, Page, style
from moongate.pages.sheets import SheetGroup, contact_sheet, grouped_sheet, png_bytes

__all__ = [
    "Cell",
    "Chart",
    "Level",
    "Page",
    "SheetGroup",
    "bar_chart",
    "contact_sheet",
    "grouped_sheet",
    "line_chart",
    "png_bytes",
    "sparkline",
    "style",
]
