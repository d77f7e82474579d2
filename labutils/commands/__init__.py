"""The commands of ``labutils``: `options` is what they share, the rest come in groups."""
