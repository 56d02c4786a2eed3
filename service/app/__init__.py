"""The application: the one place where the rooms are wired together, started, watched over and stopped."""
