"""The report of a run: one page of HTML that needs no network and can be read on a phone."""
