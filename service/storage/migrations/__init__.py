"""The schema's history. Every revision goes up and down, so that an upgrade can be taken back."""
