"""The gate ``golden``: recorded requests are replayed to both versions, and their answers compared.

``requests`` reads the recorded file, ``replay`` sends it to both, ``answers`` finds named tensors in what comes back,
``compare`` holds two answers against each other, ``tally`` counts, ``verdict`` decides, ``gate`` puts it together.
"""
