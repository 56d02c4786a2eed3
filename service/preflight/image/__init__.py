"""The image gate: what is in an image, read from its reference, manifest and configuration, and what changed.

No layer is fetched and nothing is run, so what only the files inside would tell stays "not known".
"""
