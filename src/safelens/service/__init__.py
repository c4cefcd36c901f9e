"""The service: jobs over HTTP, a store, and processes that may die at any moment.

Nothing is imported here: the client needs httpx2 alone, the server `safelens[service]`.
"""
