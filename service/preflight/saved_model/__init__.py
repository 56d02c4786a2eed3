"""SavedModels and checkpoints against the TensorFlow that is to serve them, before any traffic.

`graph` reads what a model uses from its files, without TensorFlow. `runtime` has the candidate's own Python say what it
has registered, in a subprocess; `job` asks in a Kubernetes Job in the candidate's image. `check` compares the two and
is pure; it runs on either side. `checkpoint` holds the variables' files against what the graph restores, `signatures`
the way clients call the model against the stable one. `gate` puts the answers together.

Models are files of others: every reader here bounds bytes, counts, depth and work, and executes nothing of them.
"""
