"""Tasks and their data: splits by role, GLUE, the user's files, the bundled corpus, tokens and metrics."""
