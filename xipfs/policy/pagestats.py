"""PageStats: numbers about pages, a row for each page that was ever touched.

    stats = PageStats(count=np.uint32, last_epoch=np.int32)
    rows = stats.rows(page_set(batch.page))         rows of these pages, new ones are zeros
    stats["count"][rows] += 1
    stats.keep(stats["count"] > 0)                  forget the others

Rows stand in the order of their pages' numbers. Memory is 8 bytes and the columns for a page that
has a row, nothing for others.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xipfs.policy.contract import PageIds, no_pages
from xipfs.policy.pageset import is_in

__all__ = ["PageStats"]


class PageStats:
    """Columns by name, each of shape (number of rows,) and the dtype that it was given here.

    pages: the sorted page ids of the rows. A column is valid until rows are added or taken away.
    """

    __slots__ = ("_columns", "pages")

    def __init__(self, **dtypes: DTypeLike) -> None:
        self.pages = no_pages()
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(0, dtype) for name, dtype in dtypes.items()
        }

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column, not a copy."""
        return self._columns[name]

    def __setitem__(self, name: str, values: NDArray[Any]) -> None:
        """Replace a column; so that `stats[name] >>= 1` works. Values are cast to its dtype."""
        column = self._columns[name]
        if values is not column:
            column[...] = values

    def rows(self, pages: PageIds) -> NDArray[np.int64]:
        """Return the rows of *pages* (sorted, none twice), after adding those that are missing."""
        new = pages[~is_in(pages, self.pages)]
        if len(new):
            places = np.searchsorted(self.pages, new)
            self.pages = np.insert(self.pages, places, new)
            for name, column in self._columns.items():
                self._columns[name] = np.insert(column, places, np.zeros(len(new), column.dtype))
        return np.searchsorted(self.pages, pages)

    def find(self, pages: PageIds) -> NDArray[np.int64]:
        """Return the rows of *pages*, in any order, -1 for those that have none."""
        return np.where(is_in(pages, self.pages), np.searchsorted(self.pages, pages), -1)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Keep the rows where *kept* is true, in their order."""
        self.pages = self.pages[kept]
        for name, column in self._columns.items():
            self._columns[name] = column[kept]

    @property
    def size_bytes(self) -> int:
        """Memory of all rows."""
        return self.pages.nbytes + sum(column.nbytes for column in self._columns.values())
