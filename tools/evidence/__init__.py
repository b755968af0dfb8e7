"""Every number of the pages, tied to the cell of the table that it comes from.

``tables`` reads results, ``claim`` finds and renders text, ``coverage`` finds numbers that no claim has, ``commands``
knows what makes a table; the other modules are lists, one for each page or group of pages.
"""
