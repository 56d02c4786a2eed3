"""Dispatch: carries out what the outbox owes, and brings each outcome back by the one door.

Lanes never wait for each other: a page never stands behind a mesh write, a rollback never behind anything else.
"""
