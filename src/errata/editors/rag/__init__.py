"""RAG: facts that lie near a question are put in front of it."""
