"""The database: tables, transactions, and every query there is.

``Session``, ``Database`` and ``Page`` are what other packages need to name; tables are imported
from ``core.db.models``, query modules as ``from core.db import jobs``. Query functions never
commit: ``Database.write()`` does, once, at its end.
"""

from sqlalchemy.orm import Session

from core.db.engine import Database, open_database
from core.db.pages import Page

__all__ = ["Database", "Page", "Session", "open_database"]
