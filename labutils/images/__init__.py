"""Pictures: the procedural Things-16, photographs, a learner's own."""
