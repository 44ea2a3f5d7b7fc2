"""A page of its own on this machine: ``uge web`` (extra ``web``)."""
