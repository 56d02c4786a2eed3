"""The core: a pure state machine. A stimulus goes in; a new state, journal rows and owed instructions come out.

Nothing here reads a clock, makes a random number or waits: the same history always gives the same states.
"""
