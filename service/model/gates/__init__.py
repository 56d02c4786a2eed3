"""What is looked at before a candidate gets any traffic: one file a gate, and the report that all of them give."""
