"""Pictures: the procedural Things-16 and Marked Things, photographs, a learner's own."""
