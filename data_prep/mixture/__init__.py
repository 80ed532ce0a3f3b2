"""Which documents are used, how often, and in which packed row: on plain arrays with one entry per document."""
