"""Run docs/tour.ipynb and keep its outputs.

python scripts/run_tour.py
"""

from pathlib import Path

import nbclient
import nbformat

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
LIMIT_S = 600


def run():
    """The notebook, with fresh outputs; raises CellExecutionError at a cell that fails."""
    book = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(book, timeout=LIMIT_S, kernel_name="python3").execute()
    for cell in book.cells:
        cell.metadata.clear()  # times of day
        if cell.cell_type == "code":
            # Progress and warnings of this run are nobody's reading.
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return book


if __name__ == "__main__":
    nbformat.write(run(), TOUR)
