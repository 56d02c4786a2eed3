"""Sources: where numbers come from. One file, one source; they read and never write."""
