"""Events: the event bus in and out. Bytes become stimuli or dead letters here; decisions become messages.

What cannot be read goes to the dead-letter topic with its reason and never stops a partition.
"""
