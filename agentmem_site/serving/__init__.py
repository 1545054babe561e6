"""Serving: between granian's event loop and Django's threads, so that a client that sends or reads
slowly holds no thread.

`application.py` is the path of a request. `bodies.py` reads bodies, `doors.py` limits who may send
how much, `threads.py` limits how many requests run at the same time, `responses.py` sends
responses. Django is called as a WSGI application and knows nothing of this package.
"""
