"""The command ``serinus``: thin commands over the same rooms and over the HTTP API."""
