"""The self-test: its parts, and what it says of servers, ours and others."""
