"""Serving: between granian's event loop and Django's threads, so that no client holds a thread
with what it does not send, or does not read.

`application.py` is the way of a request; `bodies.py` reads what is sent, `doors.py` says who may
send how much, `threads.py` says how many requests are worked on, `answers.py` hands out answers.
Django is called as the WSGI application that it is, and knows nothing of this room.
"""
