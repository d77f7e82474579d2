"""Child processes that hold what may crash or hang, and the wire between them and us.

`channel` is the wire, `child` the end in the child, `worker` the end in the parent. The first two
need Python 3.10 and its standard library only, because they also run in environments of other
tools.
"""
