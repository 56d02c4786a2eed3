"""The lab: the embedded world of `serinus demo`, where everything outside Serinus is played by small real servers.

Its parts serve the tests too; each is held to the same contract test as the real thing.
"""
