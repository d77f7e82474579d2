"""Environments of other vendors' tools, whose pins conflict with the lab's.

`lock` reads which packages a tool needs (``data/tools/``), `environment` installs and removes
them, `calling` calls what they offer in a child process, whose end is `program`; `writing` makes
a program of a notebook's functions.
"""
