"""The OpenAI-compatible HTTP server in front of an engine: `create_app` builds it, `run` serves it on a socket."""
