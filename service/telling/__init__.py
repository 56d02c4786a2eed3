"""Telling: words and view models, pure. One wording feeds the journal, pages, the bus, the API and the terminal."""
