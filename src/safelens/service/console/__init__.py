"""The moderator's console: pages of the web process, a file a page; signed sessions in place of API keys in requests."""
