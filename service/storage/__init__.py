"""Storage: where everything is kept. SQLite by default, PostgreSQL for more than one replica; one schema and code path.

It keeps what the ring hands it and answers the ring's questions; what a phase means is none of its business.
"""
