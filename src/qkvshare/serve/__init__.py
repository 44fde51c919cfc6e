"""The model in memory over HTTP, A2A and MCP, and a page to look at its cards."""
