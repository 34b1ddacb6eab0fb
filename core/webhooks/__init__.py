"""How an event is told over HTTP: what is said, how it is signed, where it may go, how it is sent.

Knows no database and no tenant: the api sends tests with it, a worker everything else.
"""
