"""How asking an endpoint for an answer may fail; apart from `chat_client`, which needs an HTTP library."""


class EndpointError(Exception):
    """A question that got no answer in the end; others may."""


class EndpointStop(Exception):
    """The endpoint will answer no question; the message says what to change."""
