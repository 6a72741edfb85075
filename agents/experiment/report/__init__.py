"""The report of a comparison: `page.write` makes it.

Each module imports only those before it: `chart` (a figure as a table), `charts` (which figures there are), `drawing`
(how a figure becomes a picture), `page` (the HTML page and its files).
"""
