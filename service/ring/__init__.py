"""The ring: one door in, one transaction a turn, and the ports through which the world is asked and told.

Every fact, from the bus, the mesh, a window, a person or the clock, enters by ``door``; what it leads to is committed
together with it; the rooms around carry it out and come back by the same door.
"""
