"""The attack table, and a client that plays it against a server: ours in tests, anybody's own by ``postbus selftest``.

``attacks.json`` is the one file of vectors: it feeds the engine's tests, tests over live sockets and the self-test. This room imports no
other room of ours, since a server is judged by what it says on the wire and by nothing else.
"""
